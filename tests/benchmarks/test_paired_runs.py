"""Runs in turn, read as one report: drift of the machine hits both sides, the test is one of pairs of runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.latency.compare import compare_reports
from benchmarks.latency.paired_runs import load_runs, merge
from r2gen_export.errors import R2GenError
from tests.benchmarks.synthetic import noisy, report
from tests.command import run_here


def in_turn(rng: np.random.Generator, factor: float, runs: int = 8, drift: float = 0.08) -> tuple[list, list]:
    """A and B measured in turn on a virtual machine that drifts: a neighbour slows both while it is there."""
    sides: tuple[list, list] = ([], [])
    for turn in range(runs):
        now = float(np.exp(rng.normal(0, drift)))
        for side, own in zip(sides, (1.0, factor), strict=True):
            times = noisy(rng, processes=1, rounds=9, between=0.01, within=0.02, factor=now * own, studies=3)
            one = report(times, studies=3)
            one["environment"]["virtual_machine"] = True
            one["created"] = f"2026-01-01T{turn // 60:02d}:{turn % 60:02d}:00"
            side.append(one)
    return sides


def verdict(a: list, b: list, name: str = "total") -> str:
    (found,) = compare_reports(merge(a), merge(b))["configurations"]
    return next(one["verdict"] for one in found["metrics"] if one["name"] == name)


def test_a_machine_that_drifts_makes_no_difference():
    rng = np.random.default_rng(20)
    assert sum(verdict(*in_turn(rng, 1.0)) in ("worse", "better") for _ in range(20)) <= 1


def test_a_slow_down_of_a_tenth_is_found_on_a_machine_that_drifts():
    rng = np.random.default_rng(21)
    assert sum(verdict(*in_turn(rng, 1.1)) == "worse" for _ in range(10)) >= 9


def test_every_run_is_one_cluster():
    rng = np.random.default_rng(22)
    a, _ = in_turn(rng, 1.0, runs=3)
    found = merge(a)["configurations"][0]
    assert len(found["samples"]["total"]) == 3
    assert found["metrics"]["total"]["n"] == 27
    assert [len(one) for one in found["sample_studies"]] == [9, 9, 9]
    assert len(merge(a)["machine"]["moments"]) == sum(len(one["machine"]["moments"]) for one in a)


def test_runs_that_were_not_made_in_turn_are_refused():
    """Eight of A and then eight of B, or one lost: no pair would cancel what the machine did."""
    a, b = in_turn(np.random.default_rng(27), 1.0)
    for number, one in enumerate([*a, *b]):
        one["created"] = f"2026-01-01T01:{number:02d}:00"
    for left, right in ((a, b), (a, b[1:]), (a, b[:1])):
        with pytest.raises(R2GenError, match="R2G-BENCH-CONDITIONS") as caught:
            compare_reports(merge(left), merge(right))
        assert "not made in turn" in caught.value.message


def test_runs_are_paired_in_the_order_they_were_made():
    a, b = in_turn(np.random.default_rng(28), 1.1, drift=0.5)
    assert verdict(a[::-1], b[3:] + b[:3]) == "worse"


def test_many_runs():
    assert verdict(*in_turn(np.random.default_rng(29), 1.2, runs=70)) == "worse"


def test_reports_of_before_are_read():
    a, b = in_turn(np.random.default_rng(30), 1.0)
    for one in (*a, *b):
        del one["configurations"][0]["steadiness"]["gemm_spread"]
    assert verdict(a, b) == "no significant difference"
    assert compare_reports(a[0], b[0])["configurations"]


def test_few_runs_give_no_verdict():
    rng = np.random.default_rng(23)
    assert verdict(*in_turn(rng, 2.0, runs=3)) == "too few processes"


def test_a_folder_of_reports_is_compared_by_the_command(tmp_path: Path):
    rng = np.random.default_rng(24)
    for side, reports in zip("ab", in_turn(rng, 1.3), strict=True):
        for number, one in enumerate(reports):
            (tmp_path / side / f"run-{number}").mkdir(parents=True)
            (tmp_path / side / f"run-{number}" / "report.json").write_text(json.dumps(one), encoding="utf-8")
    done = run_here("bench", "compare", tmp_path / "a", tmp_path / "b", "--fail-above", "5%")
    assert done.returncode == 3, done.stderr
    assert "and 7 more runs" in done.stdout
    assert load_runs(tmp_path / "a")["runs"] == 8
    assert load_runs(tmp_path / "a/run-0").get("runs", 1) == 1


def test_runs_of_different_things_are_refused():
    rng = np.random.default_rng(25)
    a, _ = in_turn(rng, 1.0, runs=3)
    a[1]["bundle"]["id"] = "c"
    with pytest.raises(R2GenError, match="R2G-BENCH-CONDITIONS") as caught:
        merge(a)
    assert "bundle (b against c)" in caught.value.message
    a[1]["bundle"]["id"] = "b"
    a[2]["configurations"][0]["name"] = "cuda, fast"
    with pytest.raises(R2GenError, match="R2G-BENCH-CONDITIONS"):
        merge(a)


def test_runs_of_two_versions_are_not_of_one_thing_and_of_two_commits_it_is_said():
    a, b = in_turn(np.random.default_rng(31), 1.0)
    a[2]["environment"]["git"] = "f00"
    notes = compare_reports(merge(a), merge(b))["notes"]
    assert notes == ["the runs of A were made at several commits: None, f00"]
    a[3]["environment"]["packages"] = {"onnxruntime": "two"}
    with pytest.raises(R2GenError, match="onnxruntime: None against two"):
        merge(a)


def test_words_that_changed_from_run_to_run_are_not_those_of_runs_that_always_wrote_one():
    a, b = in_turn(np.random.default_rng(32), 1.0)
    a[0]["configurations"][0]["words"] = {"0": "another"}
    (found,) = compare_reports(merge(a), merge(b))["configurations"]
    assert found["words"] == {"studies": 1, "same": 0}


def test_a_metric_that_no_pair_of_runs_has_is_left_out_unless_it_is_judged():
    """The first half of A's runs has no sample of it, and the second half of B's."""
    a, b = in_turn(np.random.default_rng(33), 1.0)
    for one in (*a[:4], *b[4:]):
        one["configurations"][0]["samples"]["itl"] = [[]]
    (found,) = compare_reports(merge(a), merge(b))["configurations"]
    names = {one["name"] for one in found["metrics"]}
    assert "itl" not in names
    assert "total" in names
    for one in (*a[:4], *b[4:]):
        one["configurations"][0]["samples"]["tpot"] = [[]]
    with pytest.raises(R2GenError, match="no two runs made in turn") as caught:
        compare_reports(merge(a), merge(b))
    assert caught.value.code == "R2G-BENCH-CONDITIONS"


def test_a_report_that_lacks_something_is_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(26)
    a, _ = in_turn(rng, 1.0, runs=2)
    del a[1]["machine"]["moments"]
    with pytest.raises(R2GenError, match="R2G-BENCH-FORMAT"):
        merge(a)


def test_an_empty_folder_is_no_report(tmp_path: Path):
    with pytest.raises(R2GenError, match="R2G-BENCH-FORMAT"):
        load_runs(tmp_path)
