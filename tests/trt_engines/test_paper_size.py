"""Engines at the paper's sizes: Swin-base with its projector, and two layers of LLaMA-2-7B's width in four bits."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, SwinConfig, SwinModel

from r2gen_export.bundle import load_manifest, seal
from r2gen_export.exporting.decoder.write import write_streamed
from r2gen_export.exporting.vision import export_vision
from r2gen_export.training.model import ModelConfig, R2GenGPT
from tests.command import CLI, ROOT
from tests.helpers.tiny import make_tiny_llm, make_tiny_vision
from tests.trt_engines.graphs import CAPABILITY, needs_rtx, open_session
from trt_engines import prepare as networks
from trt_engines.identity import EngineIdentity, read_identity
from trt_engines.prepare import Limits
from trt_engines.store import list_engines

pytestmark = [needs_rtx, pytest.mark.slow]

MEBI = 2**20


Report = Callable[[EngineIdentity], None]


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str], record_property: Callable[[str, object], None]) -> Report:
    """Shows what a build cost beside the size of the parameters; nothing is asserted on it."""

    def shown(cost: EngineIdentity) -> None:
        for name in ("build_s", "plan_bytes", "peak_rss_bytes", "parameter_bytes"):
            record_property(name, getattr(cost, name))
        peak = f"{cost.peak_rss_bytes / MEBI:.0f} MiB, {cost.peak_rss_bytes / cost.parameter_bytes:.1f} x parameters"
        with capsys.disabled():
            sys.stderr.write(
                f"\n{cost.part} {cost.precision}: built in {cost.build_s:.0f} s, parameters "
                f"{cost.parameter_bytes / MEBI:.0f} MiB, plan {cost.plan_bytes / MEBI:.0f} MiB, peak memory {peak}\n"
            )

    return shown


def build(bundle: Path, part: str, precision: str) -> EngineIdentity:
    """In a process of its own: this one's memory is not the build's."""
    options = ("--backend", "tensorrt-rtx", "--parts", part, "--precision", precision, "--max-length", "512")
    command = [*CLI, "build", str(bundle), *options, "--compute-capability", CAPABILITY]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    (engine,) = list_engines(bundle)
    return read_identity(engine.folder)


def test_swin_base_in_half_precision(tiny_bundle: Path, tmp_path: Path, report: Report) -> None:
    vision = make_tiny_vision(tmp_path / "vision", image_size=224)
    torch.manual_seed(0)
    shape = {"image_size": 224, "embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]}
    SwinModel(SwinConfig(**shape, window_size=7)).eval().save_pretrained(vision)
    llm = make_tiny_llm(tmp_path / "llm", hidden_size=1024, layers=1)
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    export_vision(
        R2GenGPT.from_sources(vision, llm, ModelConfig()).eval(), bundle / "vision.onnx", height=224, width=224
    )
    seal(bundle, load_manifest(bundle))
    built = build(bundle, "vision", "fp16")
    report(built)
    assert built.parameter_bytes == pytest.approx(2 * 88e6, rel=0.08)

    views = torch.rand(1, 3, 224, 224).numpy()
    (tmp_path / "half").mkdir()
    half = networks.prepare(bundle, load_manifest(bundle), "vision", "fp16", Limits()).write(tmp_path / "half")
    wanted, found = (
        open_session(path).run(None, {"pixel_values": views})[0] for path in (bundle / "vision.onnx", half)
    )
    assert np.isfinite(found).all()
    assert (found * wanted).sum() / np.linalg.norm(found) / np.linalg.norm(wanted) > 0.9999


class RandomWeights:
    """The tensors of a LLaMA, made when they are read: seven billion would not have to fit, here two layers do not."""

    def __init__(self, config: LlamaConfig) -> None:
        with torch.device("meta"):
            self._shapes = {name: one.shape for name, one in LlamaForCausalLM(config).state_dict().items()}

    def read(self, name: str) -> torch.Tensor:
        shape = self._shapes[name]
        return torch.ones(shape) if len(shape) == 1 else torch.randn(shape, dtype=torch.float32) * 0.02


def test_two_layers_of_seven_billion_in_four_bits(tiny_bundle: Path, tmp_path: Path, report: Report) -> None:
    config = LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=2, num_attention_heads=32, vocab_size=32000,
        max_position_embeddings=4096,
    )  # fmt: skip
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    (bundle / "decoder/model.onnx").unlink()
    torch.manual_seed(0)
    write_streamed(config, RandomWeights(config), bundle / "decoder", dialect="trt", precision="int4")
    manifest = load_manifest(bundle)
    dims = replace(
        manifest.dims, d_llm=4096, vocab_size=32000, num_layers=2, num_kv_heads=32, head_dim=128, max_positions=4096
    )
    seal(bundle, replace(manifest, dims=dims, dialect="trt", precision={**manifest.precision, "decoder": "int4"}))
    built = build(bundle, "decoder", "int4")
    assert built.max_length == 512
    # 4 bits and a float16 scale for each 32 of 536 M weights
    assert built.parameter_bytes == pytest.approx(536e6 * 4.5 / 8, rel=0.02)
    assert built.plan_bytes < 1.5 * built.parameter_bytes, "the plan holds more than four bits a weight"
    report(built)
