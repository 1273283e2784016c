"""Intervals by resampling studies: every metric is a function of sums over studies, so a resample is one matrix row.

The unit is the study, or the patient where ids tell whose a study is. Intervals are percentiles (2.5 and 97.5).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

REPLICATES: Final = 10_000
SEED: Final = 20_230_918
FEWEST: Final = 30
"""Studies (or patients) below which no interval is given."""

CELLS: Final = 2_000_000
"""Weights held at a time: 16 MB."""


def block_size(units: int) -> int:
    """Resamples that are computed together."""
    return max(1, min(500, CELLS // max(1, units)))


@dataclass(frozen=True)
class Statistic:
    """A metric as a function of sums over studies.

    Attributes:
        name: of the metric.
        columns: [N, K], what a study adds to the sums.
        value: from sums [..., K] to the metric [...].
        point: the metric of the whole set, by the arithmetic of its source.
    """

    name: str
    columns: NDArray[np.float64]
    value: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    point: float


def mean_statistic(name: str, scores: NDArray[np.float64]) -> Statistic:
    """The mean of a score per study [N]."""
    columns = np.stack([scores, np.ones_like(scores)], axis=1)
    return Statistic(name, columns, lambda sums: sums[..., 0] / sums[..., 1], float(np.mean(scores)))


@dataclass(frozen=True)
class Interval:
    """A 95 % interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Resampling:
    """How sets are resampled. `groups` [N]: the unit each study belongs to, numbered from 0."""

    groups: NDArray[np.int64]
    replicates: int = REPLICATES
    seed: int = SEED
    unit: str = "study"

    @property
    def units(self) -> int:
        """Number of studies or patients."""
        return int(self.groups.max()) + 1 if len(self.groups) else 0

    def subset(self, chosen: NDArray[np.bool_]) -> Resampling:
        """The resampling of a part of the studies."""
        _, groups = np.unique(self.groups[chosen], return_inverse=True)
        return Resampling(groups.astype(np.int64), self.replicates, self.seed, self.unit)

    def weights(self) -> Iterator[NDArray[np.float64]]:
        """Blocks [B, units] of how often each unit is drawn; the same ones at every call."""
        rng = np.random.default_rng(self.seed)
        chances = np.full(self.units, 1.0 / self.units)
        block = block_size(self.units)
        for start in range(0, self.replicates, block):
            size = min(block, self.replicates - start)
            yield rng.multinomial(self.units, chances, size=size).astype(np.float64)

    def grouped(self, columns: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums of columns [N, K] over each unit: [units, K]."""
        sums = np.zeros((self.units, columns.shape[1]))
        np.add.at(sums, self.groups, columns)
        return sums


def resampling(
    studies: int, patients: Sequence[str] | None, *, replicates: int = REPLICATES, seed: int = SEED
) -> Resampling:
    """Resample patients where they are known and some have several studies, studies otherwise."""
    if patients is None or len(set(patients)) == studies:
        return Resampling(np.arange(studies, dtype=np.int64), replicates, seed)
    _, groups = np.unique(np.array(patients), return_inverse=True)
    return Resampling(groups.astype(np.int64), replicates, seed, unit="patient")


def replicate_values(statistics: Sequence[Statistic], plan: Resampling) -> NDArray[np.float64]:
    """Values [replicates, statistics] of each metric on each resample; all of them on the same resamples."""
    stacked, places = stack_columns(statistics, plan)
    blocks = [values_of_sums(statistics, weights @ stacked, places) for weights in plan.weights()]
    return np.concatenate(blocks)


def stack_columns(statistics: Sequence[Statistic], plan: Resampling) -> tuple[NDArray[np.float64], list[slice]]:
    """Columns of all metrics beside each other [units, K], shared ones once, and the place of each metric's."""
    shared: dict[int, slice] = {}
    parts: list[NDArray[np.float64]] = []
    end = 0
    for statistic in statistics:
        if id(statistic.columns) not in shared:
            parts.append(plan.grouped(statistic.columns))
            shared[id(statistic.columns)] = slice(end, end := end + statistic.columns.shape[1])
    return np.concatenate(parts, axis=1), [shared[id(statistic.columns)] for statistic in statistics]


def values_of_sums(
    statistics: Sequence[Statistic], sums: NDArray[np.float64], places: Sequence[slice]
) -> NDArray[np.float64]:
    """Values [B, statistics] of each metric from sums [B, K] of the stacked columns."""
    pairs = zip(statistics, places, strict=True)
    return np.stack([statistic.value(sums[:, place]) for statistic, place in pairs], axis=1)


def intervals(statistics: Sequence[Statistic], plan: Resampling) -> list[Interval | None]:
    """The 95 % interval of each metric; None where there are fewer than 30 units."""
    if plan.units < FEWEST or not statistics:
        return [None] * len(statistics)
    low, high = np.percentile(replicate_values(statistics, plan), [2.5, 97.5], axis=0)
    return [Interval(float(a), float(b)) for a, b in zip(low, high, strict=True)]
