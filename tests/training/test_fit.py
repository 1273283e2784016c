"""`train` and `r2gen train`: what is learnt, chosen, resumed, refused, and left behind by an interruption."""

from __future__ import annotations

import csv
import dataclasses
import json
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, SwinModel

from r2gen_export.commands.train import GROUPS
from r2gen_export.errors import R2GenError
from r2gen_export.evaluation.metrics.rouge import rouge_l
from r2gen_export.system.interrupts import interrupt_later
from r2gen_export.training.checkpoint import ADAPTER, load_checkpoint, read_config, train_facts
from r2gen_export.training.fit import STOPPING, TrainSettings, train
from r2gen_export.training.model import R2GenGPT
from r2gen_export.training.module import Stopper
from tests.helpers.tiny import make_tiny_llm, make_tiny_vision

ROOT = Path(__file__).parents[2]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def settings(ten_studies: TrainSettings) -> TrainSettings:
    return dataclasses.replace(ten_studies, progress=False)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / ADAPTER)


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=1e-5, atol=1e-6, msg=name)


def logged(out: Path, column: str) -> list[float]:
    rows = csv.DictReader((out / "logs/csv/version_0/metrics.csv").open())
    return [float(row[column]) for row in rows if row[column]]


class Interrupting:
    """ROUGE-L, with Ctrl-C in the middle of one validation."""

    def __init__(self, at: int = 0) -> None:
        self.calls, self.at = 0, at

    def __call__(self, texts: Sequence[str], references: Sequence[str]) -> float:
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return rouge_l(texts, references)


def test_shallow_learns_and_leaves_what_it_should(settings: TrainSettings, capsys: pytest.CaptureFixture[str]) -> None:
    settings = replace(settings, max_epochs=8, learning_rate=3e-2)
    best = train(settings)
    assert best == settings.out / "best"
    names = {path.name for path in settings.out.iterdir()}
    assert names == {"best", "last", "last.ckpt", "run.json", "logs", "features", "curves.svg"}
    losses = logged(settings.out, "val_loss")
    assert len(losses) == 8
    assert losses[-1] < losses[0] - 0.1
    facts = train_facts(best)
    assert facts["dataset"] == "iu_xray"
    assert facts["val_loss"] == pytest.approx(min(losses), rel=1e-6)
    assert facts["epoch"] == 1 + losses.index(min(losses))
    assert train_facts(settings.out / "last")["epoch"] == 8
    assert list((settings.out / "logs/tensorboard").rglob("events.*"))
    # Linear(16 -> 32) and LayerNorm(32).
    assert f"{16 * 32 + 32 + 64} trained of" in capsys.readouterr().err
    assert read_config(best).vision == "vision"
    assert str(settings.base_dir) not in (best / "config.json").read_text() + (settings.out / "run.json").read_text()


def test_the_state_holds_trained_tensors_only(settings: TrainSettings) -> None:
    train(settings)
    state = torch.load(settings.out / "last.ckpt", weights_only=True)
    assert {name.removeprefix("model.") for name in state["state_dict"]} == tensors(settings.out / "last").keys()


@pytest.mark.parametrize(
    "options",
    [
        {"alignment": "delta"},
        {"alignment": "deep", "accumulate": 2},
        {"global_only": True, "llm_lora": True},
        {"alignment": "delta", "llm_lora": True, "precision": "bf16", "workers": 1},
        {"precision": "bf16"},
    ],
    ids=str,
)
def test_alignments_train_and_load_again(settings: TrainSettings, options: dict[str, Any]) -> None:
    settings = replace(settings, **options, max_epochs=1)
    best = train(settings)
    start = R2GenGPT.from_sources(settings.vision, settings.llm, read_config(best))
    model = R2GenGPT.from_sources(settings.vision, settings.llm, read_config(best))
    load_checkpoint(model, best)
    changed = {
        name.partition(".")[0]
        for (name, left), (_, right) in zip(start.trainable(), model.trainable(), strict=True)
        if not torch.equal(left, right)
    }
    wanted = {"llama_proj", "layer_norm"}
    if settings.alignment != "shallow":
        wanted.add("visual_encoder")
    if settings.llm_lora:
        wanted.add("llama_model")
    assert changed == wanted
    assert (settings.out / "features").exists() == (settings.alignment == "shallow")


def test_cached_features_train_the_same_weights(settings: TrainSettings, tmp_path: Path) -> None:
    first = train(settings)
    second = train(replace(settings, out=tmp_path / "second", use_cache=False))
    assert_same(tensors(first), tensors(second))


def test_a_shared_cache_is_not_filled_twice(
    settings: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(replace(settings, cache_dir=tmp_path / "cache"))

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the encoder ran")

    monkeypatch.setattr(SwinModel, "forward", refuse)
    second = train(replace(settings, cache_dir=tmp_path / "cache", out=tmp_path / "second"))
    assert_same(tensors(first), tensors(second))


@pytest.mark.parametrize(
    ("options", "step"),
    [
        ({}, 4),
        ({"alignment": "delta", "llm_lora": True}, 4),
        ({"state_every": 3}, 6),
        ({"state_every": 3, "alignment": "delta", "workers": 1}, 6),
        ({"state_every": 1, "accumulate": 2}, 3),
    ],
    ids=str,
)
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    settings: TrainSettings, tmp_path: Path, options: dict[str, Any], step: int
) -> None:
    """Stopped in the validation of epoch 2 of 3, resumed from `step`: the end of epoch 1, or the middle of epoch 2."""
    settings = replace(settings, max_epochs=3, **options)
    whole = replace(settings, out=tmp_path / "whole", score_fn=Interrupting())
    train(whole)
    with pytest.raises(KeyboardInterrupt):
        train(replace(settings, score_fn=Interrupting(at=2)))
    assert torch.load(settings.out / "last.ckpt", weights_only=True)["global_step"] == step
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    train(replace(settings, score_fn=Interrupting(), resume=True))
    for name in ("best", "last"):
        assert_same(tensors(whole.out / name), tensors(settings.out / name))
        left, right = train_facts(whole.out / name), train_facts(settings.out / name)
        assert (left["epoch"], left["step"]) == (right["epoch"], right["step"])
        assert left["val_loss"] == pytest.approx(right["val_loss"], rel=1e-5)


def test_seed_decides(settings: TrainSettings, tmp_path: Path) -> None:
    first, same, other = (
        tensors(train(replace(settings, out=tmp_path / name, seed=seed)))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert_same(first, same)
    assert not torch.allclose(first["llama_proj.weight"], other["llama_proj.weight"])


def test_best_follows_the_score_of_generated_text(settings: TrainSettings) -> None:
    given = iter([0.2, 0.7, 0.5])
    seen: list[tuple[int, int]] = []

    def score(texts: Sequence[str], references: Sequence[str]) -> float:
        seen.append((len(texts), len(references)))
        return next(given)

    settings = replace(settings, max_epochs=3, score_fn=score, generate_limit=2)
    best = train(settings)
    assert seen == [(2, 2)] * 3
    facts = train_facts(best)
    assert (facts["epoch"], facts["score"]) == (2, pytest.approx(0.7))
    assert not torch.equal(tensors(best)["llama_proj.weight"], tensors(settings.out / "last")["llama_proj.weight"])


def test_text_is_generated_when_asked_for(settings: TrainSettings) -> None:
    calls = Interrupting()
    train(replace(settings, max_epochs=5, score_fn=calls, generate_every=2))
    assert calls.calls == 3  # after epochs 2, 4 and the last


def test_rouge_l_as_coco_caption_computes_it() -> None:
    text, reference = "the cat sat on the mat today", "the cat on a mat"
    # The longest common subsequence is "the cat on mat".
    precision, recall = 4 / 7, 4 / 5
    expected = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    assert rouge_l([text], [reference]) == pytest.approx(expected)
    assert rouge_l(["a b", "", "c"], ["a b", "a", "d"]) == pytest.approx(1 / 3)


def test_a_run_is_not_overwritten_nor_resumed_as_another(settings: TrainSettings) -> None:
    train(settings)
    with pytest.raises(R2GenError, match="--resume") as caught:
        train(settings)
    assert caught.value.code == "R2G-OUTPUT-EXISTS"
    with pytest.raises(R2GenError, match=r"learning_rate 0\.01 became 0\.02") as caught:
        train(replace(settings, resume=True, learning_rate=2e-2))
    assert caught.value.code == "R2G-CONFIG-VALUE"
    make_tiny_vision(settings.out.parent / "other", seed=8)
    with pytest.raises(R2GenError, match="vision_sha256"):
        train(replace(settings, resume=True, vision=settings.out.parent / "other"))
    before = (settings.out / "best" / ADAPTER).read_bytes()
    assert train(replace(settings, resume=True)) == settings.out / "best"
    assert (settings.out / "best" / ADAPTER).read_bytes() == before
    (settings.out / "last.ckpt").write_bytes((settings.out / "last.ckpt").read_bytes()[:-500])
    with pytest.raises(R2GenError) as caught:
        train(replace(settings, resume=True))
    assert caught.value.code == "R2G-CHECKPOINT-FORMAT"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"annotation": Path("nowhere.json")}, "R2G-DATA-ANNOTATION"),
        ({"base_dir": Path("nowhere")}, "R2G-IMAGE-MISSING"),
        ({"vision": "./nowhere"}, "R2G-MODEL-MISSING"),
        ({"llm": "./nowhere"}, "R2G-MODEL-MISSING"),
        ({"accelerator": "abacus"}, "R2G-DEVICE-UNAVAILABLE"),
        ({"strategy": "magic"}, "R2G-DEVICE-UNAVAILABLE"),
    ],
    ids=str,
)
def test_what_is_missing_has_a_code(settings: TrainSettings, options: dict[str, Any], code: str) -> None:
    with pytest.raises(R2GenError) as caught:
        train(replace(settings, **options))
    assert caught.value.code == code
    assert not (settings.out / "best").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"dataset": "chexpert"},
        {"select": "bleu"},
        {"precision": "fp8"},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"limit": 0},
        {"seed": -1},
        {"strategy": "fsdp"},
        {"alignment": "wide"},
    ],
    ids=str,
)
def test_impossible_settings(settings: TrainSettings, options: dict[str, Any]) -> None:
    with pytest.raises(R2GenError) as caught:
        replace(settings, **options)
    assert caught.value.code == "R2G-CONFIG-VALUE"
    assert next(iter(options)) in caught.value.message


def test_nan_in_the_weights_or_in_the_loss(settings: TrainSettings, tmp_path: Path) -> None:
    broken = make_tiny_llm(tmp_path / "llm")
    llm = LlamaForCausalLM.from_pretrained(broken)
    llm.lm_head.weight.data[5, 5] = torch.nan
    llm.save_pretrained(broken)
    with pytest.raises(R2GenError, match=r"lm_head\.weight") as caught:
        train(replace(settings, llm=broken))
    assert caught.value.code == "R2G-MODEL-NONFINITE"
    with pytest.raises(R2GenError) as caught:
        train(replace(settings, learning_rate=1e20, alignment="deep", gradient_clip=0.0))
    assert caught.value.code == "R2G-MODEL-NONFINITE"
    assert not (settings.out / "best").exists()


def command(settings: TrainSettings, *more: str) -> list[str]:
    return [
        sys.executable, str(ROOT / "cli.py"), "train",
        *("--annotation", str(settings.annotation), "--base-dir", str(settings.base_dir)),
        *("--vision", str(settings.vision), "--llm", str(settings.llm), "--out", str(settings.out)),
        *("--dataset", "iu_xray", "--batch-size", "3", "--learning-rate", "0.01", "--accelerator", "cpu"),
        *("--workers", "0", "--epochs", str(settings.max_epochs), *more),
    ]  # fmt: skip


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_command_leaves_nothing_half_and_goes_on(settings: TrainSettings, how: signal.Signals) -> None:
    settings = replace(settings, max_epochs=40)
    process = subprocess.Popen(command(settings), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while not (settings.out / "last.ckpt").exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(how)
        stdout, stderr = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    expected = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGKILL: -9}
    assert process.returncode == expected[how], stderr
    assert stdout == ""
    assert "Traceback" not in stderr
    assert (STOPPING in stderr) == (how == signal.SIGINT)
    if how != signal.SIGKILL:  # which lets nobody clean up
        assert not list(settings.out.rglob(".*"))
    step = torch.load(settings.out / "last.ckpt", weights_only=True)["global_step"]
    assert 0 < step < 160
    model = R2GenGPT.from_sources(settings.vision, settings.llm, read_config(settings.out / "best"))
    load_checkpoint(model, settings.out / "best")
    train(replace(settings, resume=True))
    assert train_facts(settings.out / "last")["step"] == 160


def test_a_spawned_process_is_not_stopped_by_ctrl_c_between_batches() -> None:
    stopper = Stopper()
    with interrupt_later() as stopper.raise_held:
        spawned = pickle.loads(pickle.dumps(stopper))
    assert "raise_held" not in vars(spawned)
    spawned.on_train_batch_start()


def test_the_command_reports_errors_in_two_lines(settings: TrainSettings) -> None:
    settings = replace(settings, annotation=settings.out.parent / "nowhere.json")
    done = subprocess.run(command(settings), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("R2G-DATA-ANNOTATION")
    assert len(done.stderr.splitlines()) == 2
    assert not settings.out.exists()


def test_the_commands_defaults_are_those_of_the_library(settings: TrainSettings) -> None:
    fields = [field for group in GROUPS for field in dataclasses.fields(group)]
    assert len({field.name for field in fields}) == len(fields)
    for field in fields:
        ours = TrainSettings.__dataclass_fields__[field.name].default
        value = getattr(field.default, "value", field.default)
        assert value == (str(ours) if field.name == "devices" else ours), field.name
    assert json.loads(json.dumps(settings.identity())) == settings.identity()
