"""Reference logits of the manifest: PyTorch's, however the gate goes about it, from a picture that never changes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from r2gen_export.bundle import ImageSpec, Manifest, ReferenceLogits, open_bundle
from r2gen_export.exporting.export import export_bundle
from r2gen_export.exporting.settings import ExportSettings
from r2gen_export.exporting.source_model import load_sources
from r2gen_export.runtime.backends.trial_pass import KEPT, reference_of, trial_pixels, trial_token
from tests.conftest import TinySources

SPEC = ImageSpec(224, 224, 3, 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_the_picture_is_the_same_everywhere() -> None:
    """Bundles keep what it gives: another picture would make every one of them fail its trial."""
    pixels = trial_pixels(SPEC)
    assert (pixels.shape, pixels.dtype, pixels.flags.c_contiguous) == ((1, 3, 224, 224), np.float32, True)
    assert (
        hashlib.sha256(pixels.tobytes()).hexdigest()
        == "53ea7bc38b0046bdd068b976b1332fdb9d378961da025959ea703827785f3f88"
    )
    assert np.ptp(pixels) > 2


def test_kept_logits_are_spread_over_the_vocabulary() -> None:
    logits = np.arange(2000, dtype=np.float32).reshape(2, 1000) / 7
    reference = reference_of(logits, 5)
    ids = np.array(reference.vocab_ids)
    assert (len(ids), ids[0], ids[-1]) == (KEPT, 0, 999)
    assert set(np.diff(ids)) == {3, 4}
    np.testing.assert_allclose(np.array(reference.logits), logits[:, ids], rtol=1e-5)
    assert reference.scale == pytest.approx((999 / 7, 1999 / 7))
    assert reference.token_id == 5


def export(sources: TinySources, out: Path, **settings: object) -> Manifest:
    paths = (sources.checkpoint, sources.vision, sources.llm)
    more = {"target": "cpu", "parity_max_new_tokens": 2, **settings}
    return export_bundle(ExportSettings(*paths, out, **more))  # type: ignore[arg-type]


def difference(left: ReferenceLogits, right: ReferenceLogits) -> float:
    assert (left.token_id, left.vocab_ids) == (right.token_id, right.vocab_ids)
    return float(np.abs(np.array(left.logits) - np.array(right.logits)).max())


@torch.no_grad()
def test_whole_and_layer_by_layer_give_the_logits_of_pytorch(
    tiny_bundle: Path, tiny_sources: TinySources, tmp_path: Path
) -> None:
    whole = open_bundle(tiny_bundle).reference
    layers = export(tiny_sources, tmp_path / "layers", gate="layers").reference
    assert whole is not None
    assert layers is not None
    model = load_sources(tiny_sources.checkpoint, tiny_sources.vision, tiny_sources.llm).model
    manifest = open_bundle(tiny_bundle)
    pixels = torch.from_numpy(trial_pixels(manifest.image))
    token_id = trial_token(manifest.prompt)
    prompt = model.wrap_prompt(model.encode_images(pixels))
    embeds = torch.cat([prompt, model.embed_tokens(torch.tensor([[token_id]]))], dim=1)
    logits = model.llama_model(inputs_embeds=embeds).logits[0, -2:].numpy()
    expected = reference_of(logits, token_id)
    assert np.ptp(expected.logits) > 1
    assert difference(whole, expected) < 1e-3
    assert difference(layers, expected) < 1e-3
    assert difference(whole, layers) < 1e-3


@pytest.mark.slow
def test_reduced_precisions_keep_their_own_logits(tiny_bundle: Path, tiny_sources: TinySources, tmp_path: Path) -> None:
    """The trial passes through the graph and the table as they are stored, not through PyTorch's."""
    settings = {"precision": "int4-f16", "vision_precision": "fp16", "embeddings": "int8"}
    whole = export(tiny_sources, tmp_path / "whole", **settings)
    layers = export(tiny_sources, tmp_path / "layers", gate="layers", **settings)
    assert whole.reference is not None
    assert layers.reference is not None
    exact = open_bundle(tiny_bundle).reference
    assert exact is not None
    near, far = difference(whole.reference, layers.reference), difference(whole.reference, exact)
    assert near < 1e-2 * max(exact.scale)
    assert far > 4 * near
