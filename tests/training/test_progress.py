"""What a training says in a log, what its metrics are called, and how a run is made longer."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from r2gen_export.errors import R2GenError
from r2gen_export.training.checkpoint import ADAPTER, train_facts
from r2gen_export.training.fit import TrainSettings, train
from r2gen_export.training.module import ETA_MIN
from r2gen_export.training.progress import METRICS, counted

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def settings(ten_studies: TrainSettings) -> TrainSettings:
    return dataclasses.replace(ten_studies, log_seconds=0.0)


def logged(out: Path, column: str, version: int = 0) -> dict[int, float]:
    """A column of metrics.csv by its step."""
    with (out / f"logs/csv/version_{version}/metrics.csv").open() as file:
        return {int(row["step"]): float(row[column]) for row in csv.DictReader(file) if row[column]}


def cosine(step: int, steps: int, rate: float) -> float:
    return ETA_MIN + (rate - ETA_MIN) * (1 + math.cos(math.pi * step / steps)) / 2


def test_a_log_has_a_line_for_the_first_step_and_each_interval(
    settings: TrainSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    train(settings)
    said = capsys.readouterr().err
    steps = re.findall(r"^epoch (\d) of 2, step (\d) of 8: loss ([\d.]+) nats per token", said, re.MULTILINE)
    assert [(epoch, step) for epoch, step, _ in steps] == [("1" if at < 4 else "2", str(at + 1)) for at in range(8)]
    losses = logged(settings.out, "loss")
    assert [float(loss) for *_, loss in steps] == pytest.approx([losses[at] for at in range(8)], rel=1e-3)
    assert len(re.findall(r"^epoch \d of 2 done: validation loss [\d.]+ nats per token$", said, re.MULTILINE)) == 2
    assert "logs/csv/version_N/metrics.csv" in said
    with (settings.out / "logs/csv/version_0/metrics.csv").open() as file:
        columns = next(csv.reader(file))
    assert set(columns) <= set(METRICS)
    for column in columns:
        assert f"  {column}: {METRICS[column]}" in said
    assert str(settings.out) not in said


def test_between_two_lines_losses_are_averaged(
    settings: TrainSettings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1000))  # a second from each batch to the next
    monkeypatch.setattr("r2gen_export.training.progress.monotonic", lambda: float(next(clock)))
    train(replace(settings, log_seconds=3.0, use_cache=False))
    lines = re.findall(r"step (\d) of 8: loss ([\d.]+) .*\((?:mean of )?(\d) batch", capsys.readouterr().err)
    assert [(step, count) for step, _, count in lines] == [("1", "1"), ("4", "3"), ("7", "3")]
    losses = logged(settings.out, "loss")
    means = [losses[0], sum(losses[at] for at in (1, 2, 3)) / 3, sum(losses[at] for at in (4, 5, 6)) / 3]
    assert [float(loss) for _, loss, _ in lines] == pytest.approx(means, rel=1e-3)


def test_a_run_that_has_ended_is_lengthened(settings: TrainSettings, capsys: pytest.CaptureFixture[str]) -> None:
    """Its learning rate is from there on that of the new length; its steps, epochs and best score go on."""
    rate, quiet = settings.learning_rate, replace(settings, progress=False)
    train(quiet)
    first = logged(settings.out, "lr-AdamW")
    assert [first[at] for at in range(8)] == pytest.approx([cosine(at, 8, rate) for at in range(8)])
    train(replace(quiet, resume=True))
    assert "has finished its 2 epochs; a larger --epochs lengthens it" in capsys.readouterr().err
    longer = replace(quiet, resume=True, max_epochs=4)
    train(longer)
    said = capsys.readouterr().err
    assert "lengthened from 2 to 4 epochs" in said
    second = logged(settings.out, "lr-AdamW", 2)
    assert [second[at] for at in range(8, 16)] == pytest.approx([cosine(at, 16, rate) for at in range(8, 16)])
    assert train_facts(settings.out / "last")["step"] == 16
    assert train_facts(settings.out / "last")["epoch"] == 4
    losses = [logged(settings.out, "val_loss", version) for version in (0, 2)]
    every = [*losses[0].values(), *losses[1].values()]
    assert train_facts(settings.out / "best")["epoch"] == 1 + every.index(min(every))
    assert f"best: epoch {1 + every.index(min(every))} of 4, validation loss" in said
    assert json.loads((settings.out / "run.json").read_text())["lengthened"] == [[2, 4]]
    with pytest.raises(R2GenError, match="max_epochs 4 became 3, and only more can be added"):
        train(replace(quiet, resume=True, max_epochs=3))
    weights = load_file(settings.out / "last" / ADAPTER)
    train(longer)
    assert all(torch.equal(value, weights[name]) for name, value in load_file(settings.out / "last" / ADAPTER).items())


def test_counting_writes_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with counted(seconds=0.0) as tell:
        tell("images encoded", 32, 1000)
    with counted(shown=False, seconds=0.0) as tell:
        tell("images encoded", 64, 1000)
    with counted(seconds=1e9) as tell:
        tell("images encoded", 96, 1000)
    assert capsys.readouterr().err == "images encoded: 32 of 1,000\n"
