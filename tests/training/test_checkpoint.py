"""Checkpoints: whole or absent, and refused with every tensor named when they do not fit."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from r2gen_export.errors import R2GenError
from r2gen_export.training.checkpoint import (
    ADAPTER,
    CONFIG,
    load_checkpoint,
    read_config,
    save_checkpoint,
    train_facts,
)
from r2gen_export.training.model import ModelConfig, R2GenGPT
from tests.helpers.alignments import CONFIGS
from tests.helpers.tiny import make_tiny_llm, make_tiny_vision

Sources = tuple[Path, Path]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    folder = tmp_path_factory.mktemp("models")
    return make_tiny_vision(folder / "vision"), make_tiny_llm(folder / "llm")


def build(sources: Sources, seed: int = 3, **config: Any) -> R2GenGPT:
    model = R2GenGPT.from_sources(*sources, ModelConfig(**config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, value in model.trainable():
            value.copy_(torch.randn(value.shape, generator=generator))
    return model


@pytest.fixture
def saved(sources: Sources, tmp_path: Path) -> Path:
    save_checkpoint(build(sources), tmp_path / "best", {"dataset": "iu_xray", "epoch": 4})
    return tmp_path / "best"


@pytest.mark.parametrize("name", CONFIGS)
def test_round_trip(sources: Sources, tmp_path: Path, name: str) -> None:
    first = build(sources, seed=3, **CONFIGS[name])
    save_checkpoint(first, tmp_path / "best", {"epoch": 4})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best"]
    assert read_config(tmp_path / "best") == first.config
    assert train_facts(tmp_path / "best") == {"epoch": 4}
    tensors = load_file(tmp_path / "best" / ADAPTER)
    assert set(tensors) == {name for name, _ in first.trainable()}
    second = build(sources, seed=5, **CONFIGS[name])
    load_checkpoint(second, tmp_path / "best")
    for (key, left), (_, right) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(left, right), key


def test_names_are_the_published_ones(sources: Sources) -> None:
    names = {name for name, _ in build(sources, alignment="delta", llm_lora=True).trainable()}
    block = "attention.self.query.lora_A.default.weight"
    assert f"visual_encoder.base_model.model.encoder.layers.0.blocks.0.{block}" in names
    assert "llama_model.base_model.model.model.layers.0.self_attn.v_proj.lora_B.default.weight" in names
    assert {"llama_proj.weight", "llama_proj.bias", "layer_norm.weight", "layer_norm.bias"} < names


def test_every_tensor_that_does_not_fit_is_named(sources: Sources, saved: Path) -> None:
    tensors = load_file(saved / ADAPTER)
    del tensors["llama_proj.bias"], tensors["layer_norm.weight"]
    tensors["stranger"] = torch.zeros(2)
    tensors["layer_norm.bias"] = torch.zeros(7)
    save_file(tensors, saved / ADAPTER)
    model = build(sources, seed=5)
    before = {name: value.detach().clone() for name, value in model.trainable()}
    with pytest.raises(R2GenError) as caught:
        load_checkpoint(model, saved)
    assert caught.value.code == "R2G-CHECKPOINT-KEYS"
    message = caught.value.message
    assert "missing: layer_norm.weight, llama_proj.bias" in message
    assert "unexpected: stranger" in message
    assert "mis-shaped: layer_norm.bias (7,) instead of (32,)" in message
    assert all(torch.equal(before[name], value) for name, value in model.trainable())


def test_nan_is_neither_saved_nor_loaded(sources: Sources, saved: Path) -> None:
    tensors = load_file(saved / ADAPTER)
    tensors["llama_proj.weight"][1, 2] = torch.inf
    save_file(tensors, saved / ADAPTER)
    with pytest.raises(R2GenError, match=r"llama_proj\.weight") as caught:
        load_checkpoint(build(sources), saved)
    assert caught.value.code == "R2G-MODEL-NONFINITE"
    model = build(sources)
    model.layer_norm.bias.data[0] = torch.nan
    with pytest.raises(R2GenError, match=r"layer_norm\.bias") as caught:
        save_checkpoint(model, saved.parent / "other")
    assert caught.value.code == "R2G-MODEL-NONFINITE"
    assert sorted(path.name for path in saved.parent.iterdir()) == ["best"]


def test_other_sources_of_the_same_shape_are_refused(sources: Sources, saved: Path, tmp_path: Path) -> None:
    vision, llm = sources
    for what, other in (
        ("vision encoder", (make_tiny_vision(tmp_path / "v2", seed=9), llm)),
        ("LLM", (vision, make_tiny_llm(tmp_path / "l2", seed=9))),
    ):
        with pytest.raises(R2GenError, match=f"another {what}") as caught:
            load_checkpoint(build(other), saved)
        assert caught.value.code == "R2G-CHECKPOINT-FORMAT"


def spoil(saved: Path, kind: str) -> Path:
    config = json.loads((saved / CONFIG).read_text())
    match kind:
        case "no folder":
            return saved.parent / "elsewhere"
        case "a file":
            return saved / ADAPTER
        case "no tensors":
            (saved / ADAPTER).unlink()
        case "no config":
            (saved / CONFIG).unlink()
        case "truncated tensors":
            (saved / ADAPTER).write_bytes((saved / ADAPTER).read_bytes()[:-100])
        case "text as tensors":
            (saved / ADAPTER).write_text("not tensors")
        case "text as config":
            (saved / CONFIG).write_text("{")
        case "list as config":
            (saved / CONFIG).write_text("[]")
        case "version 2":
            (saved / CONFIG).write_text(json.dumps({**config, "format_version": 2}))
        case "unknown field":
            (saved / CONFIG).write_text(json.dumps({**config, "model": {**config["model"], "depth": 3}}))
        case "wrong type":
            (saved / CONFIG).write_text(json.dumps({**config, "model": {**config["model"], "vis_r": "16"}}))
    return saved


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("no folder", "R2G-CHECKPOINT-MISSING"),
        ("a file", "R2G-CHECKPOINT-FORMAT"),
        ("no tensors", "R2G-CHECKPOINT-MISSING"),
        ("no config", "R2G-CHECKPOINT-MISSING"),
        ("truncated tensors", "R2G-CHECKPOINT-FORMAT"),
        ("text as tensors", "R2G-CHECKPOINT-FORMAT"),
        ("text as config", "R2G-CHECKPOINT-FORMAT"),
        ("list as config", "R2G-CHECKPOINT-FORMAT"),
        ("version 2", "R2G-CHECKPOINT-FORMAT"),
        ("unknown field", "R2G-CHECKPOINT-FORMAT"),
        ("wrong type", "R2G-CHECKPOINT-FORMAT"),
    ],
)
def test_damaged_checkpoints(sources: Sources, saved: Path, kind: str, code: str) -> None:
    folder = spoil(saved, kind)
    with pytest.raises(R2GenError) as caught:
        read_config(folder)
        load_checkpoint(build(sources), folder)
    assert caught.value.code == code


SAVE_FOR_EVER = """
import sys, torch
from pathlib import Path
from r2gen_export.training.checkpoint import save_checkpoint
from r2gen_export.training.model import ModelConfig, R2GenGPT
model = R2GenGPT.from_sources(sys.argv[1], sys.argv[2], ModelConfig())
print("ready", flush=True)
while True:
    save_checkpoint(model, Path(sys.argv[3]), sources={})
"""


def test_a_kill_leaves_a_whole_checkpoint_or_none(sources: Sources, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SAVE_FOR_EVER, *map(str, sources), str(tmp_path / "best")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        while not (tmp_path / "best").exists():
            time.sleep(0.01)
        time.sleep(0.137)
    finally:
        process.kill()
        process.communicate()
    if (tmp_path / "best").exists():
        load_checkpoint(build(sources), tmp_path / "best")
