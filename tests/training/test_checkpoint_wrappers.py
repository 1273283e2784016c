"""Checkpoints saved from a wrapper, by other tools, or not there at all but for a pointer: the right cause is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from r2gen_export.errors import R2GenError
from r2gen_export.training.checkpoint import ADAPTER, CONFIG, load_checkpoint, read_config, save_checkpoint
from r2gen_export.training.model import ModelConfig, R2GenGPT
from r2gen_export.training.published import describe, find_file, read_file, understand
from tests.helpers.source_files import POINTER
from tests.helpers.tiny import make_tiny_llm, make_tiny_vision

NAMES = ("llama_proj.weight", "llama_proj.bias", "layer_norm.weight", "layer_norm.bias")
SETTINGS = {"global_only": False, "freeze_vm": True, "vis_use_lora": False}


def write(path: Path, *names: str, kind: str = "model", **more: Any) -> Path:
    settings = "config" if kind == "model" else "hyper_parameters"
    tensors = {name: torch.full((2,), float(number)) for number, name in enumerate(names)}
    torch.save({kind: tensors, settings: SETTINGS, **more}, path)
    return path


@pytest.mark.parametrize("kind", ["model", "state_dict"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_all_names_come_off_and_are_told(tmp_path: Path, prefix: str, kind: str) -> None:
    file = read_file(write(tmp_path / "x.pth", *(prefix + name for name in NAMES), kind=kind))
    assert {name: float(value[0]) for name, value in file.tensors.items()} == {
        name: float(number) for number, name in enumerate(NAMES)
    }
    assert "".join(file.prefixes) == prefix
    assert all(repr(part) in describe(understand(file, {})) for part in file.prefixes)
    plain = read_file(write(tmp_path / "plain.pth", *NAMES, kind=kind))
    assert (plain.prefixes, list(plain.tensors)) == ((), list(NAMES))
    assert "taken off" not in describe(understand(plain, {}))


def test_a_part_that_was_compiled_alone(tmp_path: Path) -> None:
    compiled = ("visual_encoder._orig_mod.a.weight", "visual_encoder._orig_mod.b.weight")
    file = read_file(write(tmp_path / "x.pth", *NAMES, *compiled))
    assert {"visual_encoder.a.weight", "visual_encoder.b.weight", *NAMES} == set(file.tensors)
    assert file.prefixes == ("visual_encoder._orig_mod.",)


def test_safetensors_have_prefixes_too(tmp_path: Path) -> None:
    save_file({f"module.{name}": torch.zeros(2) for name in NAMES}, tmp_path / "x.safetensors")
    assert set(read_file(tmp_path / "x.safetensors").tensors) == set(NAMES)


def test_a_prefix_of_some_names_is_named(tmp_path: Path) -> None:
    for names in (("module.llama_proj.weight", *NAMES[1:]), (*NAMES, "visual_encoder._orig_mod.a", "visual_encoder.b")):
        with pytest.raises(R2GenError, match=r"have the prefix '(module|_orig_mod)\.'") as caught:
            read_file(write(tmp_path / "x.pth", *names))
        assert caught.value.code == "R2G-CHECKPOINT-FORMAT"
        assert "rename" in caught.value.fix


def test_folders_of_deepspeed_and_torch_distributed(tmp_path: Path) -> None:
    deep = tmp_path / "epoch=0.ckpt"
    (deep / "checkpoint").mkdir(parents=True)
    (deep / "zero_to_fp32.py").write_text("")
    part = write(deep / "checkpoint" / "mp_rank_00_model_states.pt", *NAMES, kind="module", ds_version="0.15")
    spread = tmp_path / "spread"
    spread.mkdir()
    (spread / "__0_0.distcp").write_bytes(b"x")
    for run, named, fix in (
        (lambda: find_file(deep), "DeepSpeed", "zero_to_fp32.py"),
        (lambda: read_file(part), "DeepSpeed", "zero_to_fp32.py"),
        (lambda: find_file(spread), "torch.distributed.checkpoint", "dcp_to_torch"),
    ):
        with pytest.raises(R2GenError, match=named) as caught:
            run()
        assert caught.value.code == "R2G-CHECKPOINT-FORMAT"
        assert fix in caught.value.fix


def test_pointers_of_git_lfs(tmp_path: Path) -> None:
    for name in ("x.pth", "x.ckpt", "x.safetensors"):
        (tmp_path / name).write_text(POINTER)
        with pytest.raises(R2GenError, match="git-lfs pointer") as caught:
            read_file(tmp_path / name)
        assert caught.value.code == "R2G-CHECKPOINT-FORMAT"
        assert "git lfs pull" in caught.value.fix
    own = tmp_path / "own"
    own.mkdir()
    (own / CONFIG).write_text(POINTER)
    (own / ADAPTER).write_text(POINTER)
    with pytest.raises(R2GenError, match="git-lfs pointer"):
        read_config(own)


@pytest.mark.parametrize("kind", ["int8", "sparse", "rank"])
def test_tensors_that_would_be_cast_or_fill_the_memory(tmp_path: Path, kind: str) -> None:
    if kind == "sparse":
        with pytest.raises(R2GenError, match="are no tensors"):
            torch.save({"model": {"llama_proj.weight": torch.eye(3).to_sparse()}}, tmp_path / "x.pth")
            read_file(tmp_path / "x.pth")
        return
    sources = make_tiny_vision(tmp_path / "vision"), make_tiny_llm(tmp_path / "llm")
    model = R2GenGPT.from_sources(*sources, ModelConfig())
    save_checkpoint(model, tmp_path / "best")
    if kind == "rank":
        config = tmp_path / "best" / CONFIG
        config.write_text(config.read_text().replace('"vis_r": 16', '"vis_r": 1000000000'))
        with pytest.raises(R2GenError, match=r"model\.vis_r is 1000000000"):
            read_config(tmp_path / "best")
        return
    tensors = {name: value.clone() for name, value in load_file(tmp_path / "best" / ADAPTER).items()}
    save_file({**tensors, "layer_norm.bias": torch.zeros(32, dtype=torch.int8)}, tmp_path / "best" / ADAPTER)
    with pytest.raises(R2GenError, match=r"not of floating point: layer_norm\.bias \(torch\.int8\)"):
        load_checkpoint(model, tmp_path / "best")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"end_sym": "\ud800"}, "end_sym"),
        ({"beam_size": 0}, "num_beams"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty"),
        ({"min_new_tokens": 99}, "min_new_tokens"),
    ],
)
def test_settings_no_decoding_can_have(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    decoding = {
        "beam_size": 2, "min_new_tokens": 4, "max_new_tokens": 16, "repetition_penalty": 1.5, "length_penalty": 1.0
    }  # fmt: skip
    tensors = {name: torch.zeros(2) for name in NAMES}
    torch.save({"model": tensors, "config": {**SETTINGS, **decoding}}, tmp_path / "x.pth")
    understand(read_file(tmp_path / "x.pth"), {})
    torch.save({"model": tensors, "config": {**SETTINGS, **decoding, **change}}, tmp_path / "x.pth")
    with pytest.raises(R2GenError, match=named) as caught:
        understand(read_file(tmp_path / "x.pth"), {})
    assert caught.value.code == "R2G-CHECKPOINT-FORMAT"


@pytest.mark.parametrize(
    ("field", "value"), [("prompt", "\ud800"), ("lora_dropout", 10**400), ("alignment", "deepest")]
)
def test_settings_no_model_can_have(tmp_path: Path, field: str, value: Any) -> None:
    sources = make_tiny_vision(tmp_path / "vision"), make_tiny_llm(tmp_path / "llm")
    save_checkpoint(R2GenGPT.from_sources(*sources, ModelConfig()), tmp_path / "best")
    record = json.loads((tmp_path / "best" / CONFIG).read_text())
    record["model"][field] = value
    (tmp_path / "best" / CONFIG).write_text(json.dumps(record))
    with pytest.raises(R2GenError, match=field) as caught:
        read_config(tmp_path / "best")
    assert caught.value.code == "R2G-CHECKPOINT-FORMAT"
    assert caught.value.fix
