"""Files of source models: read as the user means them, or refused by name before any library sees them.

What only a vision encoder has is in `test_vision_files.py`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from r2gen_export.training.hub import load_llm, load_tokenizer, load_vision, source_config
from r2gen_export.training.source_files import place
from r2gen_export.training.source_files.fields import Fields
from r2gen_export.training.source_files.loaded import check_llama, check_swin
from r2gen_export.training.source_files.preprocessor import image_spec
from r2gen_export.training.source_files.rope import read_rope
from r2gen_export.training.source_files.swin import read_swin
from tests.helpers.source_files import POINTER, change, refusal
from tests.helpers.tiny import make_tiny_llm, make_tiny_vision

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"factor": 4.0, "original_max_position_embeddings": 64}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source_files")
    make_tiny_vision(folder / "vision")
    make_tiny_llm(folder / "llm")
    return folder


@pytest.fixture
def llm(models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models / "llm", tmp_path / "llm"))


@pytest.fixture
def vision(models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models / "vision", tmp_path / "vision"))


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = load_llm(folder, torch.float32)(input_ids=torch.tensor([[1, 9, 30, 7, 50, 9]])).logits
    return found


TWINS = {
    "theta": ({"rope_theta": 5e5, "rope_scaling": None}, {"rope_theta": 5e5, "rope_type": "default"}),
    "linear": ({"rope_scaling": {"type": "linear", "factor": 2.0}}, {"rope_type": "linear", "factor": 2}),
    "llama3": (
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
        {"rope_theta": 5e5, "rope_type": "llama3", **LLAMA3},
    ),
    "yarn": (
        {"rope_theta": 2e4, "rope_scaling": {"rope_type": "yarn", **YARN, "beta_fast": 16}},
        {"rope_theta": 2e4, "rope_type": "yarn", **YARN, "beta_fast": 16},
    ),
    "default": ({"rope_theta": 1e4}, {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 1.0}),
}
"""Fields as transformers 4 writes them, and `rope_parameters` of transformers 5."""


@pytest.mark.parametrize("name", TWINS)
def test_configurations_of_transformers_5_compute_what_their_twins_do(llm: Path, name: str) -> None:
    old, new = TWINS[name]
    plain = logits(llm)
    change(llm, **old)
    before = logits(llm)
    change(llm, drop=("rope_theta", "rope_scaling", "torch_dtype"), rope_parameters=new, dtype="float32")
    assert torch.equal(logits(llm), before)
    assert torch.equal(before, plain) == (name == "default"), "the rotary embedding counts"


@pytest.mark.parametrize("kind", ["default", "linear", "llama3", "yarn"])
@pytest.mark.parametrize("theta", [1e4, 5e5])
@pytest.mark.parametrize("head_dim", [16, 128])
def test_own_frequencies_are_those_of_transformers(kind: str, theta: float, head_dim: int) -> None:
    extra: dict[str, dict[str, Any]] = {
        "default": {},
        "linear": {"factor": 3.0},
        "llama3": {**LLAMA3, "original_max_position_embeddings": 8192},
        "yarn": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.9, "truncate": False, "beta_slow": 2.0},
    }
    scaling = None if kind == "default" else {"rope_type": kind, **extra[kind]}
    config = LlamaConfig(
        hidden_size=4 * head_dim, num_attention_heads=4, rope_theta=theta, rope_scaling=scaling,
        max_position_embeddings=256,
    )  # fmt: skip
    theirs = LlamaRotaryEmbedding(config)
    rope = read_rope(Fields({"rope_theta": theta, "rope_scaling": scaling}, "config.json", "the LLM"))
    frequencies, factor = rope.frequencies(head_dim, 256)
    np.testing.assert_allclose(theirs.inv_freq.numpy(), frequencies, rtol=2e-6)
    assert theirs.attention_scaling == pytest.approx(factor)


REFUSED: dict[str, dict[str, Any]] = {
    "rope_type": {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    '"longrope"': {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}},
    "factor is missing": {"rope_scaling": {"rope_type": "linear"}},
    "factor is NaN": {"rope_scaling": {"rope_type": "linear", "factor": float("nan")}},
    'factor is "2"': {"rope_parameters": {"rope_type": "linear", "factor": "2"}},
    "factor is 0.5": {"rope_parameters": {"rope_type": "linear", "factor": 0.5}},
    "beta_fast": {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "beta_fast": 1}},
    "low_freq_factor": {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
    "high_freq_factor is 1.0": {"rope_scaling": {"rope_type": "llama3", **LLAMA3, "high_freq_factor": 1.0}},
    "type is": {"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 2.0}},
    "rope_parameters is 5": {"rope_parameters": 5},
    "rope_theta is 500000": {"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 500000}},
    "but rope_parameters is": {
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "rope_parameters": {"rope_type": "linear", "factor": 4.0},
    },
    "rope_theta is -1": {"rope_theta": -1},
    "partial_rotary_factor is 0.5": {"partial_rotary_factor": 0.5},
    "quantization_config": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
    "compression_config": {"compression_config": {"format": "int-quantized"}},
    "auto_map": {"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}},
    "sliding_window is 32": {"sliding_window": 32},
    "final_logit_softcapping": {"final_logit_softcapping": 30.0},
    "residual_multiplier": {"residual_multiplier": 0.22},
    "layer_types": {"layer_types": ["full_attention", "sliding_attention"]},
    'dtype is "float8_e4m3fn"': {"dtype": "float8_e4m3fn"},
    'hidden_size is "32"': {"hidden_size": "32"},
    "hidden_size is true": {"hidden_size": True},
    "hidden_size is -32": {"hidden_size": -32},
    "hidden_size is 32.5": {"hidden_size": 32.5},
    "vocab_size is null": {"vocab_size": None},
    "rms_norm_eps is NaN": {"rms_norm_eps": float("nan")},
    "rms_norm_eps is 0": {"rms_norm_eps": 0},
    'rms_norm_eps is "1e-6"': {"rms_norm_eps": "1e-6"},
    "num_key_value_heads is 3": {"num_key_value_heads": 3},
    "num_attention_heads is 5": {"num_attention_heads": 5, "head_dim": None, "num_key_value_heads": 5},
    "head_dim is 7": {"head_dim": 7},
    'attention_bias is "no"': {"attention_bias": "no"},
    "hidden_act": {"hidden_act": "mish"},
    "eos_token_id is": {"eos_token_id": [2, "3"]},
    "num_hidden_layers is 1, its weights have 2": {"num_hidden_layers": 1},
    "num_hidden_layers is 3, its weights have 2": {"num_hidden_layers": 3},
    "vocab_size": {"vocab_size": 10**12},
    "lm_head.weight (120, 32), expected (121, 32)": {"vocab_size": 121},
    "tie_word_embeddings is true, but lm_head": {"tie_word_embeddings": True},
    "pad_token_id": {"pad_token_id": "0"},
}


@pytest.mark.parametrize("named", REFUSED)
def test_what_an_llm_would_silently_do_otherwise_is_refused_by_name(llm: Path, named: str) -> None:
    change(llm, **REFUSED[named])
    refusal(lambda: load_llm(llm, torch.float32), named)


@pytest.mark.parametrize("field", ["vocab_size", "hidden_size", "num_hidden_layers", "rms_norm_eps"])
def test_a_missing_size_is_not_made_up(llm: Path, field: str) -> None:
    refusal(lambda: source_config(change(llm, drop=(field,)), "LLM", "llama"), f"{field} is missing")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "5", '{"a": 1}x', "[" * 100_000, "\ufeff{}"])
def test_a_config_that_is_no_json_object(llm: Path, text: str) -> None:
    (llm / "config.json").write_text(text)
    refusal(lambda: load_llm(llm, torch.float32), "config.json", code="R2G-MODEL-MISSING")


def test_fields_of_llama_1_and_2_may_be_missing(llm: Path) -> None:
    change(llm, drop=("rope_theta", "rope_scaling", "attention_bias", "mlp_bias", "torch_dtype", "dtype"))
    change(llm, pad_token_id=-1)
    assert load_llm(llm, torch.float32).config.rope_theta == 10_000


def test_a_left_over_adapter_is_refused_and_its_base_not_read(llm: Path, models: Path) -> None:
    other = make_tiny_llm(models / "other", seed=7)
    adapter = {"peft_type": "LORA", "r": 4, "base_model_name_or_path": str(other)}
    (llm / "adapter_config.json").write_text(json.dumps(adapter))
    refusal(lambda: load_llm(llm, torch.float32), "adapter_config.json", "'llm'")
    (llm / "adapter_config.json").unlink()
    assert load_llm(llm, torch.float32) is not None


def test_a_local_folder_asks_no_hub(llm: Path, vision: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: Any, **__: Any) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("socket.socket.connect", asked)
    monkeypatch.setattr(place, "hf_hub_download", asked)
    (llm / "generation_config.json").unlink()
    load_llm(llm, torch.float32)
    load_tokenizer(llm)
    load_vision(vision)


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (place.LocalEntryNotFoundError("no connection"), "hub cannot be reached"),
        (ConnectionError("reset by peer"), "reset by peer"),
        (PermissionError("cache"), "cache"),
    ],
)
def test_an_unreachable_hub_is_named_with_the_way_round(
    error: Exception, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(place, "hf_hub_download", fail)
    monkeypatch.setattr(place, "_OFFLINE", set())
    text = refusal(lambda: load_llm("someone/model", torch.float32), part, code="R2G-MODEL-MISSING")
    assert "hf download someone/model --local-dir" in text or isinstance(error, PermissionError)


def test_the_hub_is_asked_once_when_it_does_not_answer(monkeypatch: pytest.MonkeyPatch, models: Path) -> None:
    asked = []

    def download(source: str, name: str, *, local_files_only: bool, **_: Any) -> str:
        asked.append((name, local_files_only))
        if name == "config.json":
            return str(models / "llm" / "config.json")
        raise place.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(place, "hf_hub_download", download)
    monkeypatch.setattr(place, "_OFFLINE", set())
    monkeypatch.setattr(place, "_REVISIONS", {"someone/model": "main"})
    source_config("someone/model", "LLM", "llama")
    assert [local for _, local in asked] == [False, False, True]


@pytest.mark.parametrize("part", ["rotary", "factor", "norm", "last norm", "scale", "swin norm", "swin head"])
def test_a_model_that_uses_other_values_than_its_config_is_refused(models: Path, part: str) -> None:
    from r2gen_export.training.source_files.llama import read_llama

    llama, swin = load_llm(models / "llm", torch.float32), load_vision(models / "vision")
    settings, sizes = read_llama(models / "llm"), read_swin(models / "vision")
    check_llama(llama, settings, "llm")
    check_swin(swin, sizes, "vision")
    block: Any = swin.encoder.layers[1].blocks[0]
    match part:
        case "rotary":
            llama.model.rotary_emb.inv_freq[3] *= 1.001
        case "factor":
            llama.model.rotary_emb.attention_scaling = 1.1
        case "norm":
            llama.model.layers[1].post_attention_layernorm.variance_epsilon = 1e-5
        case "last norm":
            llama.model.norm.variance_epsilon = 1e-5
        case "scale":
            llama.model.layers[0].self_attn.scaling *= 2
        case "swin norm":
            block.layernorm_after.eps = 1e-6
        case _:
            block.attention.self.attention_head_size = 16

    def check() -> None:
        check_llama(llama, settings, "llm")
        check_swin(swin, sizes, "vision")

    refusal(check, "by its config.json, but", "in the loaded model")


def test_git_lfs_pointers_are_named(llm: Path, vision: Path) -> None:
    readers: tuple[tuple[Path, Callable[[], Any]], ...] = (
        (llm / "model.safetensors", lambda: load_llm(llm, torch.float32)),
        (llm / "tokenizer.json", lambda: load_tokenizer(llm)),
        (llm / "tokenizer_config.json", lambda: load_tokenizer(llm)),
        (llm / "config.json", lambda: load_llm(llm, torch.float32)),
        (vision / "model.safetensors", lambda: load_vision(vision)),
        (vision / "preprocessor_config.json", lambda: image_spec(vision)),
    )
    for path, read in readers:
        whole = path.read_bytes()
        path.write_text(POINTER)
        text = refusal(read, path.name, "git-lfs pointer", code="R2G-MODEL-MISSING")
        assert "git lfs pull" in text
        path.write_bytes(whole)


def shards(llm: Path) -> dict[str, Any]:
    """The folder's weights in two shards; the content of their index."""
    tensors = {name: value.clone() for name, value in load_file(llm / "model.safetensors").items()}
    (llm / "model.safetensors").unlink()
    names = sorted(tensors)
    places = {name: f"model-0000{1 + (number >= 5)}-of-00002.safetensors" for number, name in enumerate(names)}
    for shard in set(places.values()):
        save_file({name: tensors[name] for name in names if places[name] == shard}, llm / shard)
    return {"metadata": {}, "weight_map": places}


def test_shards_are_read_and_stay_in_their_folder(llm: Path) -> None:
    whole = load_llm(llm, torch.float32).state_dict()
    index = shards(llm)
    path = llm / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    for name, value in load_llm(llm, torch.float32).state_dict().items():
        assert torch.equal(value, whole[name]), name
    outside = shutil.copy(llm / "model-00001-of-00002.safetensors", llm.parent / "outside.safetensors")
    for place_name, part in (("../outside.safetensors", "not a file of the folder"), (str(outside), "not a file")):
        named = {key: place_name if "00001" in value else value for key, value in index["weight_map"].items()}
        path.write_text(json.dumps({"weight_map": named}))
        refusal(lambda: load_llm(llm, torch.float32), part, code="R2G-MODEL-MISSING")
    for places, part in (
        ({}, "does not name a file"),
        ({**index["weight_map"], "x": 5}, "does not name a file"),
        ({**index["weight_map"], "x": "model-00003-of-00002.safetensors"}, "which is not there"),
        ({**index["weight_map"], "x": "model-00001-of-00002.safetensors"}, "lacks 1 tensors"),
    ):
        path.write_text(json.dumps({"weight_map": places}))
        refusal(lambda: load_llm(llm, torch.float32), part, code="R2G-MODEL-MISSING")


def test_damaged_left_over_and_quantised_weights(llm: Path) -> None:
    path = llm / "model.safetensors"
    # Copies: the file that the tensors are mapped from is written over.
    whole, tensors = path.read_bytes(), {name: value.clone() for name, value in load_file(path).items()}
    for data in (whole[:-50], whole[:4], b"", b"\xff" * 100):
        path.write_bytes(data)
        refusal(lambda: load_llm(llm, torch.float32), "model.safetensors is damaged", code="R2G-MODEL-MISSING")
    save_file({**tensors, "model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}, path)
    refusal(lambda: load_llm(llm, torch.float32), "no place: model.layers.0.self_attn.q_proj.bias")
    save_file({**tensors, "model.norm.weight": torch.ones(32, dtype=torch.int8)}, path)
    refusal(lambda: load_llm(llm, torch.float32), "model.norm.weight (torch.int8)")
    old = {**tensors, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    save_file(old, path)
    load_llm(llm, torch.float32)
    path.unlink()
    torch.save(tensors, llm / "pytorch_model.bin")
    load_llm(llm, torch.float32)
    torch.save({**tensors, "x": shutil.rmtree}, llm / "pytorch_model.bin")
    refusal(lambda: load_llm(llm, torch.float32), "shutil.rmtree", "could run code")
