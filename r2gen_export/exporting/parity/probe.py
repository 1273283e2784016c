"""What the parity gate runs both models on, and which of a bundle's precisions it has to allow for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from r2gen_export.bundle import Dims, ImageSpec, Prompt
from r2gen_export.decoding import Decoding, Semantics
from r2gen_export.exporting.settings import Gate

Floats = NDArray[np.float32]

VIEWS: Final = (1, 2, 3, 1)
"""Views of the probe studies."""

SEED: Final = 20_230_918


@dataclass(frozen=True)
class ExportedBundle:
    """The exported bundle, complete but for its manifest: its folder and what the manifest will say.

    `image` is its preprocessing, None where the reference logits of the manifest are not to be computed.
    """

    folder: Path
    dims: Dims
    prompt: Prompt
    image: ImageSpec | None = None


@dataclass(frozen=True)
class GatePlan:
    """How the gate goes about it, and what the decoder's weights are stored as."""

    gate: Gate
    precision: str
    head_precision: str
    vision_precision: str = "fp32"
    embeddings: str = "fp32"

    @property
    def exact(self) -> bool:
        """Whether everything is float32."""
        return {self.precision, self.head_precision, self.vision_precision, self.embeddings} == {"fp32"}


@dataclass(frozen=True)
class Probe:
    """What both models are run on: pixel values [V, 3, H, W] of each study, and how to decode."""

    studies: Sequence[Floats]
    decodings: Mapping[str, Decoding]
    semantics: Semantics

    @classmethod
    def make(
        cls, image: ImageSpec, presets: Mapping[str, Decoding], semantics: Semantics, max_new_tokens: int | None
    ) -> Probe:
        """Random shadings, and the deterministic presets."""
        return cls(probe_studies(image), gate_decodings(presets, max_new_tokens), semantics)


def probe_studies(spec: ImageSpec) -> list[Floats]:
    """Pixel values [V, 3, H, W] of studies with 1, 2, 3 and 1 views: smooth random shading under noise."""
    rng = np.random.default_rng(SEED)
    mean, std = (np.array(value, np.float32)[:, None, None] for value in (spec.mean, spec.std))
    studies = []
    for views in VIEWS:
        shading = rng.uniform(0, 255, (views, 1, 7, 7)).repeat(-(-spec.height // 7), 2).repeat(-(-spec.width // 7), 3)
        shading = shading[:, :, : spec.height, : spec.width]
        grey = np.clip(shading + rng.normal(0, 20, shading.shape), 0, 255).round().astype(np.float32)
        studies.append((grey * np.float32(spec.rescale_factor) - mean) / std)
    return studies


def gate_decodings(presets: Mapping[str, Decoding], max_new_tokens: int | None = None) -> dict[str, Decoding]:
    """The decodings the gate compares: the deterministic presets, and greedy and the paper's beams if those lack them.

    Args:
        presets: the bundle's presets.
        max_new_tokens: stop every one of them here, None: at their own limit.
    """
    chosen = {name: decoding for name, decoding in presets.items() if not decoding.do_sample}
    if all(decoding.num_beams > 1 for decoding in chosen.values()):
        chosen["greedy"] = Decoding(
            num_beams=1, min_new_tokens=0, max_new_tokens=60, repetition_penalty=1.0, length_penalty=1.0
        )
    if all(decoding.num_beams < 3 for decoding in chosen.values()):
        chosen["beam 3"] = Decoding(min_new_tokens=30, max_new_tokens=60)
    if max_new_tokens is None:
        return chosen
    return {
        name: dataclasses.replace(
            decoding,
            max_new_tokens=min(decoding.max_new_tokens, max_new_tokens),
            min_new_tokens=min(decoding.min_new_tokens, max_new_tokens),
        )
        for name, decoding in chosen.items()
    }
