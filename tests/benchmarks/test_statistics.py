"""Percentiles that are known, intervals that cover, tests that are wrong as often as they say."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.latency.metrics import clusters
from benchmarks.latency.statistics import (
    TOO_SMALL,
    compare,
    holm,
    least_p,
    outliers,
    permutation_p,
    summarise,
    trend,
)
from tests.benchmarks.synthetic import noisy, starts


def test_a_synthetic_clock_gives_exact_percentiles():
    """101 reports of 1, 2, ... 101 ms in shuffled order, over four processes."""
    times = np.random.default_rng(0).permutation(np.arange(1.0, 102.0))
    found = clusters(starts([times[place::4].tolist() for place in range(4)]))
    total = summarise(found["total"])
    assert total is not None
    assert total.n == 101
    assert [total.p50, total.p90, total.p95, total.p99] == pytest.approx([51.0, 91.0, 96.0, 100.0], abs=1e-6)
    assert (total.least, total.most, total.mean) == pytest.approx((1.0, 101.0, 51.0), abs=1e-6)
    ttft, tpot = summarise(found["ttft"]), summarise(found["tpot"])
    assert ttft is not None
    assert tpot is not None
    assert (ttft.p50, ttft.p90) == pytest.approx((15.3, 27.3), abs=1e-6)
    assert tpot.p50 == pytest.approx(51 * 0.7 / 10, abs=1e-6)


def test_percentiles_between_samples_are_interpolated():
    found = summarise([[10.0 * number for number in range(1, 11)], [10.0 * number for number in range(11, 21)]])
    assert found is not None
    assert (found.p50, found.p90, found.p95) == pytest.approx((105.0, 181.0, 190.5))


@pytest.mark.parametrize(
    ("n", "percentiles", "intervals"),
    [(1, "p50", ""), (2, "p50", ""), (5, "p50", ""), (6, "p50", "p50"), (9, "p50", "p50"), (10, "p50 p90", "p50"),
     (20, "p50 p90 p95", "p50"), (29, "p50 p90 p95", "p50 p90"), (99, "p50 p90 p95", "p50 p90 p95"),
     (100, "p50 p90 p95 p99", "p50 p90 p95"), (299, "p50 p90 p95 p99", "p50 p90 p95 p99")],
)  # fmt: skip
def test_what_few_samples_do_not_show_is_not_shown(n, percentiles, intervals):
    found = summarise([np.arange(n, dtype=float).tolist()])
    assert found is not None
    shown = found.to_dict()
    assert [name for name in ("p50", "p90", "p95", "p99") if shown[name] != TOO_SMALL] == percentiles.split()
    assert list(found.ci) == list(shown["ci95"]) == intervals.split()


def test_no_samples_no_summary():
    assert summarise([[], []]) is None
    single = summarise([[5.0]])
    assert single is not None
    assert single.ci == {}


def test_intervals_cover_the_true_median():
    """Of 100 runs of 8 processes, at least 85: a bootstrap over few clusters is a little narrow, and no more."""
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(100):
        runs = noisy(rng, processes=8, rounds=5)
        found = summarise(runs, seed)
        assert found is not None
        low, high = found.ci["p50"]
        covered += low <= 100.0 * 1.0 <= high
    assert covered >= 85


def test_the_permutation_test_is_exact():
    """Two runs of five processes, wholly apart: 2 of the 252 ways to deal them out are as extreme."""
    apart = permutation_p(*([np.array([base + one]) for one in range(5)] for base in (100.0, 200.0)))
    assert apart == pytest.approx(2 / 252)
    assert least_p(5, 5) == pytest.approx(2 / 252)
    same = [np.array([100.0])] * 5
    assert permutation_p(same, same) == 1.0


def test_three_processes_cannot_be_significant():
    assert permutation_p(*([np.array([base + one]) for one in range(3)] for base in (100.0, 200.0))) is None


def test_the_permutation_test_is_wrong_once_in_twenty():
    """Processes that differ among each other by more than their reports do: the case a test over reports gets wrong."""
    rng = np.random.default_rng(2)
    tries = 300
    wrong = sum(
        compare(noisy(rng, between=0.05, within=0.01), noisy(rng, between=0.05, within=0.01), seed=seed).p <= 0.05  # type: ignore[operator]
        for seed in range(tries)
    )
    assert wrong <= tries * 0.05 + 3 * (tries * 0.05 * 0.95) ** 0.5


def test_an_effect_is_estimated():
    rng = np.random.default_rng(3)
    a, b = noisy(rng, processes=20, rounds=20), noisy(rng, processes=20, rounds=20, factor=1.1)
    found = compare(a, b)
    assert found.ratio == pytest.approx(1.1, rel=0.02)
    assert found.low < 1.1 < found.high
    assert found.low > 1.03


def test_holm():
    assert holm([0.04, 0.001, 0.03]) == [False, True, False]
    assert holm([0.01, 0.02, 0.03]) == [True, True, True]
    assert holm([]) == []


def test_trend():
    rng = np.random.default_rng(4)
    steady = 100 + rng.normal(0, 1, 40)
    assert abs(trend(steady.tolist())[1]) < 2.6
    change, z = trend((steady + np.linspace(0, 20, 40)).tolist())
    assert change == pytest.approx(0.18, abs=0.03)
    assert z > 2.6
    assert trend([1.0, 2.0]) == (0.0, 0.0)


def test_outliers():
    values = [100.0 + number % 3 for number in range(30)]
    assert outliers(values) == 0
    assert outliers([*values, 180.0, 200.0]) == 2
    assert outliers([100.0] * 10 + [104.0]) == 0, "a few percent is no outlier, however quiet the rest"
