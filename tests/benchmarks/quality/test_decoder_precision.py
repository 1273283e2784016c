"""The demo's LLaMA read back from its graph, and written again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.quality.decoder_precision import VARIANTS, next_logits, read_llama, write_bundle
from r2gen_export.bundle import demo_bundle, load_manifest
from r2gen_export.exporting.decoder.export import check_variant
from r2gen_export.exporting.parity.metrics import distribution_metrics
from r2gen_export.precision import PRECISIONS
from tests.helpers.torch_decoder import make_prompts


def test_the_llama_of_the_demo_gives_its_logits_in_every_precision(tmp_path: Path) -> None:
    model = read_llama(demo_bundle())
    prompts = list(make_prompts(np.random.default_rng(0), 3, 20, load_manifest(demo_bundle()).dims.d_llm)[:, None])
    reports = [[5, 9, 100], [7, 7], [40]]
    wanted = next_logits(demo_bundle(), prompts, reports)
    with torch.no_grad():
        ids = torch.tensor([reports[0][:-1]])
        whole = torch.cat([torch.from_numpy(prompts[0]), model.get_input_embeddings()(ids)], dim=1)
        np.testing.assert_allclose(wanted[:3], model(inputs_embeds=whole).logits[0, 19:].numpy(), atol=1e-3)
    far = {}
    for variant in ("fp32", "int8", "int8-f16", "int4-128"):
        write_bundle(model, variant, tmp_path / variant)
        far[variant] = distribution_metrics(next_logits(tmp_path / variant, prompts, reports), wanted)["kl_mean"]
    assert far["fp32"] < 1e-8 < far["int8"] < far["int4-128"]
    assert far["int8-f16"] == pytest.approx(far["int8"], rel=0.5)


def test_the_variants_can_be_written_and_are_of_every_precision() -> None:
    assert {precision for precision, _, _ in VARIANTS.values()} == set(PRECISIONS)
    for precision, head, _ in VARIANTS.values():
        check_variant("trt", precision, head)
