"""The vision side at the paper's size: Swin-base at 224, random weights, in front of a small LLaMA."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import SwinConfig, SwinModel

from r2gen_export.training.checkpoint import save_checkpoint
from r2gen_export.training.model import ModelConfig, R2GenGPT
from tests.command import run_here
from tests.helpers.tiny import make_tiny_llm, make_tiny_vision


@pytest.mark.slow
def test_parity_of_swin_base(tmp_path: Path) -> None:
    """microsoft/swin-base-patch4-window7-224's shape: 86.7 M parameters, 49 image tokens of width 1024."""
    vision = make_tiny_vision(tmp_path / "vision", image_size=224)
    torch.manual_seed(0)
    shape = {"image_size": 224, "embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]}
    SwinModel(SwinConfig(**shape, window_size=7)).eval().save_pretrained(vision)
    llm = make_tiny_llm(tmp_path / "llm")
    model = R2GenGPT.from_sources(vision, llm, ModelConfig())
    save_checkpoint(model, tmp_path / "checkpoint", {"dataset": "iu_xray"})
    sources = ("--checkpoint", tmp_path / "checkpoint", "--vision", vision, "--llm", llm)
    bundle = tmp_path / "bundle"
    done = run_here("export", *sources, "--out", bundle, "--parity-tokens", 12, "--for", "cpu")
    assert done.returncode == 0, done.stderr
    assert "image_embeds, 3 views" in done.stderr
    images = Path(__file__).parents[1] / "data"
    shown = run_here("verify", bundle, *sources, "--images", images, "--parity-tokens", 12, "--format", "json")
    assert shown.returncode == 0, shown.stderr
    checks = {check["name"]: check for check in json.loads(shown.stdout)}
    assert checks["image_embeds, 1 view"]["observed"] < 1e-4
    assert checks["image_embeds, 1 view"]["metrics"]["cosine"] > 0.999999
    assert all(check["passed"] for check in checks.values())
    assert model.image_features == 1024
    assert sum(value.numel() for value in model.visual_encoder.parameters()) == pytest.approx(86.7e6, rel=0.01)
