"""Resampling: intervals against the normal approximation, patients as units, and what is too few."""

from __future__ import annotations

import numpy as np
import pytest

from r2gen_export.evaluation.bootstrap import Statistic, intervals, mean_statistic, replicate_values, resampling


def scores(studies: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.5, 0.1, studies)


def test_the_interval_of_a_mean() -> None:
    values = scores(400)
    (interval,) = intervals([mean_statistic("x", values)], resampling(400, None, replicates=4000))
    half = 1.96 * values.std() / 20
    assert interval is not None
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_the_same_seed_gives_the_same_resamples_to_every_metric() -> None:
    values = scores(50)
    plan = resampling(50, None, replicates=600)
    twice = replicate_values([mean_statistic("x", values), mean_statistic("minus x", -values)], plan)
    np.testing.assert_allclose(twice[:, 0], -twice[:, 1])
    np.testing.assert_array_equal(
        twice, replicate_values([mean_statistic("x", values), mean_statistic("y", -values)], plan)
    )
    other = replicate_values([mean_statistic("x", values)], resampling(50, None, replicates=600, seed=1))
    assert not np.allclose(other[:, 0], twice[:, 0])


def test_patients_are_the_unit_where_they_have_several_studies() -> None:
    """Four equal studies of each patient hold no more than one: the interval is twice as wide."""
    values = np.repeat(scores(100), 4)
    patients = [f"p{at // 4}" for at in range(400)]
    plan = resampling(400, patients, replicates=4000)
    assert (plan.unit, plan.units) == ("patient", 100)
    (clustered,) = intervals([mean_statistic("x", values)], plan)
    (single,) = intervals([mean_statistic("x", values)], resampling(400, None, replicates=4000))
    assert clustered is not None and single is not None
    assert (clustered.high - clustered.low) / (single.high - single.low) == pytest.approx(2, rel=0.1)
    assert resampling(3, ["a", "b", "c"]).unit == "study"
    assert resampling(3, ["b", "a", "b"]).grouped(np.array([[1.0], [2.0], [4.0]])).tolist() == [[2.0], [5.0]]


def test_a_ratio_of_sums_is_resampled_as_one() -> None:
    columns = np.array([[1.0, 2.0], [3.0, 4.0]])
    ratio = Statistic("x", columns, lambda sums: sums[..., 0] / sums[..., 1], 4 / 6)
    values = set(np.round(replicate_values([ratio], resampling(2, None, replicates=200))[:, 0], 6))
    assert values == {0.5, 0.75, round(4 / 6, 6)}, "first twice, second twice, one of each"


def test_fewer_than_thirty_units_have_no_interval() -> None:
    assert intervals([mean_statistic("x", scores(29))], resampling(29, None)) == [None]
    patients = [f"p{at // 4}" for at in range(100)]
    assert intervals([mean_statistic("x", scores(100))], resampling(100, patients)) == [None]
    assert intervals([mean_statistic("x", scores(30))], resampling(30, None, replicates=100)) != [None]


def test_a_subset_is_resampled_by_its_own_units() -> None:
    plan = resampling(6, ["a", "a", "b", "b", "c", "c"])
    part = plan.subset(np.array([True, True, False, False, True, False]))
    assert part.groups.tolist() == [0, 0, 1]
