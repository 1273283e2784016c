"""The performance suite runs, on a model small enough for a test; no time is asserted."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.machine_rates import Machine, Rates
from benchmarks.suite.__main__ import LEAST, model_steps, results, time_step, width_steps
from benchmarks.suite.models import SuiteModel, open_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SuiteModel:
    return open_model(tmp_path_factory.mktemp("suite") / "64", 64, 200, 1)


def test_every_step_of_a_model_runs_and_is_written(model):
    timings = [time_step(step, seconds=0.0) for step in [*model_steps(model), *width_steps([model])]]
    assert all(one.n >= LEAST and 0 < one.p10 <= one.p50 <= one.p90 for one in timings)
    text = results(
        timings, Machine(1, (Rates(50.0, 100.0, 800.0, 30.0), Rates(50.0, 100.0, 800.0, 20.0))), seconds=0.25
    )
    assert "| 512 positions |" in text
    assert "| batch 8, position 128 |" in text
    assert "up to 1.50 times its shortest time" in text
    assert "`python -m benchmarks.suite --seconds 0.25 --out benchmarks/suite/RESULTS.md`" in text
    assert f"| time on each line | 0.25 s and {LEAST} calls, at least |" in text
    assert str(Path.home()) not in text


def test_a_step_is_called_until_its_time_is_over():
    calls: list[int] = []
    found = time_step(("group", "name", lambda: calls.append(1)), seconds=0.0)
    assert len(calls) == found.n + 2 == LEAST + 2, "two to warm up"
