"""Percentiles, their confidence intervals, and whether two runs differ by more than chance.

Samples come in clusters: the runs of one process resemble each other (memory layout, what else the machine did then).
So a resampling draws processes first, and a test permutes whole processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb, exp, log
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Clusters = Sequence[Sequence[float]]
"""Samples of each process, in the order they were taken."""

METHOD: Final = (
    "linear interpolation between the two nearest order statistics (numpy's default, Hyndman and Fan type 7)"
)
INTERVAL: Final = 0.95
RESAMPLES: Final = 1000
MOST_SAMPLES: Final = 2_000_000
"""Drawn in all for one interval; a metric with many samples is resampled less often."""

PERCENTILES: Final = {"p50": (50.0, 1, 6), "p90": (90.0, 10, 29), "p95": (95.0, 20, 59), "p99": (99.0, 100, 299)}
"""Percent; samples it takes for one beyond it; and for an interval of 95 % (of the median: between least and most)."""

TOO_SMALL: Final = "n too small"

PERMUTATIONS: Final = 20_000
"""All of them up to here, else so many drawn at random."""


@dataclass(frozen=True)
class Summary:
    """One metric of one configuration. Percentiles are None where there are too few samples.

    `ci`: bounds of the 95 % bootstrap interval of each percentile that has enough samples for one.
    """

    n: int
    mean: float
    least: float
    most: float
    p50: float
    p90: float | None
    p95: float | None
    p99: float | None
    ci: dict[str, tuple[float, float]]

    def to_dict(self) -> dict[str, Any]:
        """JSON form; percentiles are a text where there are too few samples."""
        return {
            "n": self.n,
            "mean": self.mean,
            "min": self.least,
            "p50": self.p50,
            "p90": TOO_SMALL if self.p90 is None else self.p90,
            "p95": TOO_SMALL if self.p95 is None else self.p95,
            "p99": TOO_SMALL if self.p99 is None else self.p99,
            "max": self.most,
            "ci95": {name: list(bounds) for name, bounds in self.ci.items()},
        }


def summarise(clusters: Clusters, seed: int = 0) -> Summary | None:
    """Percentiles of all samples by `METHOD`, with intervals; None when there is no sample."""
    groups = [np.asarray(cluster, np.float64) for cluster in clusters if len(cluster)]
    if not groups:
        return None
    values = np.concatenate(groups)
    n = len(values)
    shares = {name: percent for name, (percent, least, _) in PERCENTILES.items() if n >= least}
    found = dict(zip(shares, np.percentile(values, list(shares.values())).tolist(), strict=True))
    bounded = {name: percent for name, percent in shares.items() if n >= PERCENTILES[name][2]}
    return Summary(
        n=n,
        mean=float(values.mean()),
        least=float(values.min()),
        most=float(values.max()),
        p50=found["p50"],
        p90=found.get("p90"),
        p95=found.get("p95"),
        p99=found.get("p99"),
        ci=_intervals(groups, bounded, seed) if bounded else {},
    )


def _intervals(groups: Sequence[Floats], percents: dict[str, float], seed: int) -> dict[str, tuple[float, float]]:
    count = max(100, min(RESAMPLES, MOST_SAMPLES // sum(map(len, groups))))
    drawn = [np.percentile(one, list(percents.values()), axis=-1) for one in resamples(groups, seed, count)]
    spread = np.concatenate([one.reshape(len(percents), -1) for one in drawn], axis=1)
    tails = [(1 - INTERVAL) / 2 * 100, (1 + INTERVAL) / 2 * 100]
    bounds = np.percentile(spread, tails, axis=1).T.tolist()
    return {name: (low, high) for name, (low, high) in zip(percents, bounds, strict=True)}


def resamples(groups: Sequence[Floats], seed: int, count: int) -> Iterator[Floats]:
    """`count` bootstrap samples: as many processes, drawn with replacement, and of each as many samples again.

    Yields:
        All of them as [count, n] where processes have equally many samples, else one by one as [n].
    """
    rng = np.random.default_rng(seed)
    sizes = {len(group) for group in groups}
    if len(sizes) == 1:
        size = sizes.pop()
        chosen = rng.integers(0, len(groups), (count, len(groups), 1))
        yield np.stack(groups)[chosen, rng.integers(0, size, (count, len(groups), size))].reshape(count, -1)
        return
    for _ in range(count):
        drawn = [groups[one] for one in rng.integers(0, len(groups), len(groups))]
        yield np.concatenate([group[rng.integers(0, len(group), len(group))] for group in drawn])


@dataclass(frozen=True)
class Difference:
    """Two runs' samples of one metric.

    `ratio`: median of B divided by median of A. `low`, `high`: its 95 % bootstrap interval. `noise`: differences below
    it are within what the processes of one run differ among each other. `p`: of the permutation test; None: too few
    processes for any difference to be significant. `least_p`: the smallest that so many processes can give.
    """

    ratio: float
    low: float
    high: float
    noise: float
    p: float | None
    least_p: float


def compare(a: Clusters, b: Clusters, *, test: bool = True, seed: int = 0) -> Difference:
    """How B differs from A: effect, interval, noise and an exact permutation test over processes.

    Args:
        a: positive samples of each process of A. The two runs' samples must be comparable one by one: divided by the
            typical value of their study where studies take different times.
        b: the same of B.
        test: whether to compute `p`.
        seed: of the bootstrap.
    """
    left, right = ([np.asarray(one, np.float64) for one in side if len(one)] for side in (a, b))
    count = max(100, min(RESAMPLES, MOST_SAMPLES // sum(map(len, [*left, *right]))))
    medians = [
        np.concatenate([np.atleast_1d(np.median(one, axis=-1)) for one in resamples(side, seed + place, count)])
        for place, side in enumerate((left, right))
    ]
    low, high = np.percentile(medians[1] / medians[0], [2.5, 97.5]).tolist()
    p = permutation_p(left, right) if test else None
    return Difference(_ratio(left, right), low, high, noise(left, right), p, least_p(len(left), len(right)))


def compare_in_turn(a: Clusters, b: Clusters, *, test: bool = True, seed: int = 0) -> Difference:
    """The same of samples taken in turn, the n-th of A's clusters beside the n-th of B's: what hit both cancels.

    All is said of the logarithms of the ratios of their medians: the median is the effect, two standard errors are the
    noise, and the test gives each either sign (Fisher's randomisation test of pairs).
    """
    parted = np.array(
        [log(_median(np.asarray(y)) / _median(np.asarray(x))) for x, y in zip(a, b, strict=True) if len(x) and len(y)]
    )
    n = len(parted)
    rng = np.random.default_rng(seed)
    drawn = np.median(parted[rng.integers(0, n, (RESAMPLES, n))], axis=1)
    low, high = np.exp(np.percentile(drawn, [2.5, 97.5])).tolist()
    error = float(parted.std(ddof=1)) / n**0.5 if n > 1 else 0.0
    least = 2.0 ** (1 - n)
    p = None
    if test and least <= 0.05:
        every = 2**n <= PERMUTATIONS
        bits = np.arange(2**n)[:, None] >> np.arange(n) & 1 if every else rng.integers(0, 2, (PERMUTATIONS, n))
        signs = 1 - 2 * bits
        signs[0] = 1  # with the one seen among them the test stays valid
        p = float((np.abs(signs @ parted) >= abs(parted.sum()) - 1e-12).mean())
    return Difference(exp(float(np.median(parted))), low, high, exp(2 * error) - 1, p, least)


def noise(a: Sequence[Floats], b: Sequence[Floats]) -> float:
    """Two standard errors of the difference between the runs, from how their processes' medians scatter, as a share."""
    variance = 0.0
    for side in (a, b):
        medians = [log(_median(one)) for one in side]
        if len(medians) > 1:
            variance += float(np.var(medians, ddof=1)) / len(medians)
    return exp(2 * variance**0.5) - 1


def median_error(values: Sequence[float]) -> float:
    """Standard error of the median as a share of it: 1.253 standard deviations by the root of n, the deviation being
    1.4826 times the median distance from the median, which a few odd values do not move.
    """
    array = np.asarray(values, np.float64)
    middle = _median(array)
    deviation = 1.4826 * _median(np.abs(array - middle))
    return float(1.2533 * deviation / abs(middle) / len(values) ** 0.5)


def permutation_p(a: Sequence[Floats], b: Sequence[Floats], seed: int = 0) -> float | None:
    """Share of the ways to deal the processes out to two runs that part them at least as far as A and B are.

    Exact under the hypothesis that it made no difference which run a process belonged to. What is parted are the means
    of the logarithms of the processes' medians: a median of medians would hardly change when two processes swap.
    """
    if least_p(len(a), len(b)) > 0.05:
        return None
    middles = np.log([_median(one) for one in [*a, *b]])
    ways = _dealings(len(middles), len(a), seed)
    parted = np.abs(ways @ middles / len(a) - ~ways @ middles / len(b))
    seen = abs(middles[: len(a)].mean() - middles[len(a) :].mean())
    return float((parted >= seen - 1e-12).mean())


def least_p(a: int, b: int) -> float:
    """The smallest p that so many processes can give: the two extreme dealings, where the numbers are equal."""
    return (2 if a == b else 1) / comb(a + b, a)


def holm(ps: Sequence[float], alpha: float = 0.05) -> list[bool]:
    """Which hypotheses fall when all of `ps` are judged together (Holm 1979): any falls wrongly with chance `alpha`."""
    order = sorted(range(len(ps)), key=lambda place: ps[place])
    falls = [False] * len(ps)
    for rank, place in enumerate(order):
        if ps[place] > alpha / (len(ps) - rank):
            break
        falls[place] = True
    return falls


def trend(values: Sequence[float]) -> tuple[float, float]:
    """(change over the whole run as a share, z) of values in the order they were taken.

    The change is Theil and Sen's slope times the length; z is Kendall's statistic over its standard deviation, within
    3 or so when there is no trend.
    """
    n = len(values)
    if n < 4:
        return 0.0, 0.0
    # Thousands of pairs say as much as millions.
    array = np.asarray(values, np.float64)[np.linspace(0, n - 1, min(n, 400)).round().astype(int)]
    n = len(array)
    early, late = np.triu_indices(n, 1)
    rises = array[late] - array[early]
    slope = float(np.median(rises / (late - early)))
    score = float(np.sign(rises).sum())
    z = score / (n * (n - 1) * (2 * n + 5) / 18) ** 0.5
    return slope * (n - 1) / float(np.median(array)), z


def outliers(values: Sequence[float]) -> int:
    """How many values lie more than 5 robust standard deviations, and a tenth, above the median."""
    array = np.asarray(values, np.float64)
    if len(array) < 4:
        return 0
    middle = float(np.median(array))
    scatter = 1.4826 * float(np.median(np.abs(array - middle)))
    return int((array > middle + max(5 * scatter, 0.1 * abs(middle))).sum())


def _dealings(total: int, first: int, seed: int) -> NDArray[np.bool_]:
    """Ways to deal `total` processes out, [ways, total]: true for those that go to the first run."""
    if comb(total, first) <= PERMUTATIONS:
        chosen = list(combinations(range(total), first))
    else:
        rng = np.random.default_rng(seed)
        # With the one seen among them the test stays valid.
        drawn = (tuple(rng.permutation(total)[:first].tolist()) for _ in range(PERMUTATIONS - 1))
        chosen = [tuple(range(first)), *drawn]
    ways = np.zeros((len(chosen), total), bool)
    ways[np.arange(len(chosen))[:, None], np.array(chosen)] = True
    return ways


def _median(values: Floats) -> float:
    return float(np.median(values))


def _ratio(a: Sequence[Floats], b: Sequence[Floats]) -> float:
    return _median(np.concatenate(b)) / _median(np.concatenate(a))
