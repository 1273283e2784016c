"""Checkpoints of the published code and of Lightning: read as they are, nothing in them runs."""

from __future__ import annotations

import builtins
import os
import pickle
import re
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from r2gen_export.decoding import Decoding
from r2gen_export.errors import R2GenError
from r2gen_export.training.checkpoint import load_published
from r2gen_export.training.model import PROMPT, R2GenGPT
from r2gen_export.training.published import Trained, describe, find_file, read_file, understand
from tests.command import run_here
from tests.helpers.published import KINDS, phantom_batches, published_args, train_published
from tests.helpers.tiny import make_tiny_llm, make_tiny_vision

Made = dict[str, tuple[Path, Path]]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("published")
    return make_tiny_vision(folder / "vision"), make_tiny_llm(folder / "llm")


@pytest.fixture(scope="module")
def made(sources: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Kind -> (`.pth`, `.ckpt`), each trained for a few steps on phantoms."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("made")
    batches = phantom_batches(folder / "phantoms", *sources)
    return {
        kind: train_published(published_args(*sources, **changes), batches, folder / kind)
        for kind, changes in KINDS.items()
    }


def loaded(path: Path, sources: tuple[Path, Path], **overrides: Any) -> tuple[R2GenGPT, Trained]:
    trained = understand(read_file(path), overrides)
    model = R2GenGPT.from_sources(*sources, trained.config)
    load_published(model, trained)
    return model, trained


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", [0, 1], ids=["pth", "ckpt"])
def test_what_was_trained_is_read(made: Made, sources: tuple[Path, Path], kind: str, form: int) -> None:
    model, trained = loaded(made[kind][form], sources)
    config = trained.config
    assert config.alignment == (kind if kind in ("delta", "deep") else "shallow")
    assert config.llm_lora == (kind == "llm-lora")
    assert config.global_only == (kind == "global")
    if kind == "delta":
        assert (config.vis_r, config.vis_alpha) == (4, 12)
    if kind == "llm-lora":
        assert (config.llm_r, config.llm_alpha) == (2, 10)
    assert (config.prompt, config.vision, config.llm, config.max_length) == (PROMPT, "vision", "llm", 60)
    assert trained.decoding == Decoding(
        num_beams=3, min_new_tokens=5, max_new_tokens=30, repetition_penalty=2.0, length_penalty=2.0
    )
    assert trained.dataset == "iu_xray"
    fresh = R2GenGPT.from_sources(*sources, config)
    before = dict(fresh.trainable())
    changed = [name for name, value in model.trainable() if not torch.equal(value, before[name])]
    assert len(changed) >= len(before) - 2, "training moved them, and they were loaded"
    assert config.alignment in describe(trained)


@pytest.mark.parametrize("kind", KINDS)
def test_both_files_of_a_training_hold_the_same_model(made: Made, sources: tuple[Path, Path], kind: str) -> None:
    (one, _), (two, _) = (loaded(path, sources) for path in made[kind])
    for (name, left), (_, right) in zip(one.trainable(), two.trainable(), strict=True):
        assert torch.equal(left, right), name


def test_folders(made: Made, tmp_path: Path) -> None:
    pth, _ = made["shallow"]
    assert find_file(pth) == pth
    with pytest.raises(R2GenError, match=r"epoch=0\.ckpt") as caught:
        find_file(pth.parent)
    assert caught.value.code == "R2G-CHECKPOINT-FORMAT"
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "a.pth").write_bytes(pth.read_bytes())
    assert find_file(tmp_path).name == "a.pth"
    for absent in (tmp_path / "none", tmp_path / "checkpoints" / "none.pth"):
        with pytest.raises(R2GenError) as caught:
            find_file(absent)
        assert caught.value.code == "R2G-CHECKPOINT-MISSING"


def test_overrides_hold_and_contradictions_are_refused(made: Made) -> None:
    file = read_file(made["delta"][0])
    assert understand(file, {"vis_alpha": 32, "prompt": "Describe."}).config.vis_alpha == 32
    with pytest.raises(R2GenError, match="delta alignment, but --alignment says deep") as caught:
        understand(file, {"alignment": "deep"})
    assert caught.value.code == "R2G-CHECKPOINT-FORMAT"


def test_what_changes_the_words_is_never_guessed(made: Made, tmp_path: Path) -> None:
    bare = read_file(made["delta"][0]).tensors
    torch.save({"model": dict(bare)}, tmp_path / "bare.pth")
    save_file(dict(bare), tmp_path / "bare.safetensors")
    for name in ("bare.pth", "bare.safetensors"):
        file = read_file(tmp_path / name)
        with pytest.raises(R2GenError, match=r"global_only, vis_alpha") as caught:
            understand(file, {})
        assert caught.value.code == "R2G-CONFIG-VALUE"
        assert "--delta-alpha" in caught.value.fix
        trained = understand(file, {"vis_alpha": 12, "global_only": False})
        assert (trained.config.alignment, trained.config.vis_r) == ("delta", 4)
        assert trained.decoding is None
    lightning = torch.load(made["shallow"][1], weights_only=False)
    del lightning["hyper_parameters"]
    torch.save(lightning, tmp_path / "bare.ckpt")
    with pytest.raises(R2GenError, match="whether its encoder was trained"):
        understand(read_file(tmp_path / "bare.ckpt"), {"global_only": False})


def test_every_wrong_key_is_listed(made: Made, sources: tuple[Path, Path], tmp_path: Path) -> None:
    content = torch.load(made["deep"][0], weights_only=False)
    tensors = content["model"]
    gone = [name for name in tensors if "layernorm" in name][:2]
    for name in gone:
        del tensors[name]
    tensors["visual_encoder.classifier.weight"] = torch.zeros(3)
    tensors["optimizer_junk"] = torch.zeros(1)
    tensors["layer_norm.bias"] = torch.zeros(5)
    torch.save(content, tmp_path / "bad.pth")
    trained = understand(read_file(tmp_path / "bad.pth"), {})
    model = R2GenGPT.from_sources(*sources, trained.config)
    before = model.layer_norm.weight.clone()
    with pytest.raises(R2GenError) as caught:
        load_published(model, trained)
    assert caught.value.code == "R2G-CHECKPOINT-KEYS"
    for name in (*gone, "visual_encoder.classifier.weight", "optimizer_junk", "layer_norm.bias (5,)"):
        assert name in caught.value.message
    assert torch.equal(model.layer_norm.weight, before)
    content = torch.load(made["deep"][0], weights_only=False)
    content["model"]["visual_encoder.classifier.weight"] = torch.zeros(3)
    torch.save(content, tmp_path / "more.pth")
    trained = understand(read_file(tmp_path / "more.pth"), {})
    load_published(model, trained, ["visual_encoder.classifier.*"])


def test_frozen_copies_must_be_the_sources(made: Made, sources: tuple[Path, Path], tmp_path: Path) -> None:
    other = make_tiny_llm(tmp_path / "llm", seed=9)
    trained = understand(read_file(made["shallow"][1]), {})
    assert any(name.startswith("llama_model.") for name in trained.frozen)
    model = R2GenGPT.from_sources(sources[0], other, trained.config)
    with pytest.raises(R2GenError, match="other source weights") as caught:
        load_published(model, trained)
    assert caught.value.code == "R2G-CHECKPOINT-FORMAT"
    content = torch.load(made["delta"][1], weights_only=False)
    state = content["state_dict"]
    # As transformers 4.30 and peft 0.3 wrote it: float16 LLM, one more buffer, no `base_layer`.
    old = {name.replace(".base_layer.", "."): value for name, value in state.items()}
    old |= {name: value.half() for name, value in old.items() if name.startswith(("llama_model.", "embed_tokens."))}
    old["llama_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    torch.save({**content, "state_dict": old}, tmp_path / "old.ckpt")
    loaded(tmp_path / "old.ckpt", sources)


class Call:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


MALICE = {
    "os.system": lambda trace: Call(os.system, f"touch {trace}"),
    "builtins.eval": lambda trace: Call(builtins.eval, f"open({str(trace)!r}, 'w')"),
    "builtins.exec": lambda trace: Call(builtins.exec, f"open({str(trace)!r}, 'w')"),
    "subprocess.Popen": lambda trace: Call(subprocess.Popen, ["touch", str(trace)]),
    "builtins.getattr": lambda trace: Call(getattr, Path(trace), "touch"),
    "pathlib.Path.touch": lambda trace: Call(Path.touch, Path(trace)),
    "torch.load": lambda trace: Call(torch.load, str(trace)),
}


@pytest.mark.parametrize("place", ["whole", "config", "setting", "tensor", "hyper_parameters", "name"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("malice", MALICE)
def test_nothing_in_a_checkpoint_runs(tmp_path: Path, place: str, zipped: bool, malice: str) -> None:
    trace = tmp_path / "executed"
    evil = MALICE[malice](trace)
    tensors: dict[Any, Any] = {"llama_proj.weight": torch.zeros(2, 2)}
    content: Any = {"model": tensors, "config": {"vis_r": 16}, "epoch": 1, "step": 2}
    if place == "whole":
        content = evil
    elif place == "config":
        content["config"] = evil
    elif place == "setting":
        content["config"] = Namespace(vis_r=[{"deep": evil}])
    elif place == "tensor":
        tensors["layer_norm.weight"] = evil
    elif place == "hyper_parameters":
        content = {"state_dict": tensors, "hyper_parameters": {"args": evil}}
    else:
        tensors[evil] = torch.zeros(1)
    path = tmp_path / "model.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(R2GenError) as caught:
        read_file(path)
    assert caught.value.code == "R2G-CHECKPOINT-UNSAFE"
    assert re.search(r"asks for '[\w.]+'", caught.value.message)
    assert not trace.exists()


def test_the_malice_is_real(tmp_path: Path) -> None:
    """The same files loaded the usual way do run: the tests above can fail."""
    for name in ("os.system", "builtins.eval"):
        trace = tmp_path / name
        torch.save({"config": MALICE[name](trace)}, tmp_path / "model.pth")
        torch.load(tmp_path / "model.pth", weights_only=False)
        assert trace.exists()


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    for data in (b"", b"text", b"PK\x03\x04rest", pickle.dumps(5), pickle.dumps({"model": {"a": 1}})):
        path.write_bytes(data)
        with pytest.raises(R2GenError) as caught:
            read_file(path)
        assert caught.value.code == "R2G-CHECKPOINT-FORMAT", data
    for content in (5, [1], {}, {"model": {}}, {"model": {"a": 3}}, {"state_dict": {1: torch.zeros(1)}}):
        torch.save(content, path)
        with pytest.raises(R2GenError) as caught:
            read_file(path)
        assert caught.value.code == "R2G-CHECKPOINT-FORMAT", content
    torch.save({"model": {"llama_proj.weight": torch.zeros(9, 9)}}, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(R2GenError) as caught:
        read_file(path)
    assert caught.value.code == "R2G-CHECKPOINT-FORMAT"


def test_settings_of_the_wrong_kind(made: Made, tmp_path: Path) -> None:
    content = torch.load(made["shallow"][0], weights_only=False)
    for name, value in (("global_only", "yes"), ("max_length", 1.5), ("beam_size", None), ("freeze_vm", 1)):
        torch.save({**content, "config": {**content["config"], name: value}}, tmp_path / "model.pth")
        with pytest.raises(R2GenError, match=name) as caught:
            understand(read_file(tmp_path / "model.pth"), {})
        assert caught.value.code == "R2G-CHECKPOINT-FORMAT"


def test_inspect_shows_all_without_the_models(made: Made, tmp_path: Path) -> None:
    done = run_here("inspect", made["delta"][0])
    assert done.returncode == 0, done.stderr
    for part in ("published checkpoint", "alignment = 'delta'", "vis_alpha = 12", "beam_size = 3", "num_beams = 3"):
        assert part in done.stdout
    assert re.search(r"query\.lora_A\.default\.weight +float32 \[4, 8\]", done.stdout)
    torch.save({"config": Call(os.system, "true")}, tmp_path / "evil.pth")
    done = run_here("inspect", tmp_path / "evil.pth")
    assert done.returncode == 2
    assert done.stderr.startswith("R2G-CHECKPOINT-UNSAFE")
    assert len(done.stderr.splitlines()) == 2


def test_reading_needs_no_lightning(made: Made) -> None:
    """A workstation that exports has no lightning; its AttributeDict is read as a dictionary."""
    code = (
        "import sys; sys.modules['lightning'] = None\n"
        "from r2gen_export.training.published import read_file\nfrom pathlib import Path\n"
        f"assert read_file(Path({str(made['shallow'][0])!r})).settings['beam_size'] == 3\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
