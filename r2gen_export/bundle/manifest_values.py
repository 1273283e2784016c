"""What a manifest's numbers must be to each other, beyond their types."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final

from r2gen_export.bundle.manifest_json import malformed, shown

if TYPE_CHECKING:
    from r2gen_export.bundle.manifest import Manifest

LARGEST: Final = 2**31 - 1
"""Of a size or a token id: tokenizers and graphs count in 32 bits."""

LARGEST_EDGE: Final = 4096
"""Pixels of an image's edge as the encoder takes it; as at export."""


def check_values(manifest: Manifest) -> None:
    """Refuse sizes that are none, and token ids outside the vocabulary.

    Raises:
        R2GenError: `R2G-BUNDLE-MANIFEST`, naming the field.
    """
    dims, prompt, image = manifest.dims, manifest.prompt, manifest.image
    for entry in dataclasses.fields(dims):
        _within(getattr(dims, entry.name), 1, LARGEST, f"dims.{entry.name}")
    last = dims.vocab_size - 1
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"):
        _within(getattr(prompt, name), 0, last, f"prompt.{name}")
    for name in ("before_ids", "after_ids"):
        for at, number in enumerate(getattr(prompt, name)):
            _within(number, 0, last, f"prompt.{name}[{at}]")
    if manifest.reference is not None:
        _within(manifest.reference.token_id, 0, last, "reference.token_id")
        for at, number in enumerate(manifest.reference.vocab_ids):
            _within(number, 0, last, f"reference.vocab_ids[{at}]")
    for name in ("height", "width"):
        _within(getattr(image, name), 1, LARGEST_EDGE, f"image.{name}")
    if 0.0 in image.std:
        raise malformed("image.std", "0.0, by which pixels would be divided")


def _within(value: int, least: int, most: int, where: str) -> None:
    if not least <= value <= most:
        raise malformed(where, f"{shown(value)}, expected {least} to {most}")
