"""The metrics of one system under one protocol: values, intervals, and what each study adds to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from r2gen_export.evaluation.bootstrap import Interval, Resampling, Statistic, intervals, mean_statistic
from r2gen_export.evaluation.metrics.bleu import bleu, bleu_counts, bleu_of_sums
from r2gen_export.evaluation.metrics.cider import ReferenceFrequencies
from r2gen_export.evaluation.metrics.rouge import rouge_l_scores

NLG: Final = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr")
"""The metrics of this package, in the order of tables; METEOR-1.5 stands before CIDEr where it is computed."""


@dataclass(frozen=True)
class TextScores:
    """What each study adds to the metrics of words: BLEU's counts [N, 10], ROUGE-L [N], CIDEr [N]."""

    bleu: NDArray[np.int64]
    rouge_l: NDArray[np.float64]
    cider: NDArray[np.float64]

    def statistics(self) -> list[Statistic]:
        """BLEU-1 to 4, ROUGE-L and CIDEr of the set."""
        counts = self.bleu.astype(np.float64)
        points = bleu(self.bleu.sum(axis=0).tolist())
        scores = [
            Statistic(f"BLEU-{size + 1}", counts, partial(_bleu, size=size), points[size])
            for size in range(len(points))
        ]
        return [*scores, mean_statistic("ROUGE-L", self.rouge_l), mean_statistic("CIDEr", self.cider)]

    def subset(self, chosen: NDArray[np.bool_]) -> TextScores:
        """Those of some studies; CIDEr keeps the frequencies of the whole set."""
        return TextScores(self.bleu[chosen], self.rouge_l[chosen], self.cider[chosen])


def _bleu(sums: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    return np.asarray(bleu_of_sums(sums)[..., size])


def score_texts(texts: Sequence[str], references: Sequence[str], frequencies: ReferenceFrequencies) -> TextScores:
    """Score prepared texts against prepared references; `frequencies` are those of the references."""
    return TextScores(bleu_counts(texts, references), rouge_l_scores(texts, references), frequencies.scores(texts))


def rows(
    statistics: Sequence[Statistic], plan: Resampling, about: dict[str, Any], *, resample: bool = True
) -> list[dict[str, Any]]:
    """A row of results a metric: `about`, then `metric, value, low, high, studies`; low and high None below 30."""
    bounds: Sequence[Interval | None]
    bounds = intervals(statistics, plan) if resample else [None] * len(statistics)
    studies = len(plan.groups)
    return [
        {
            **about,
            "metric": statistic.name,
            "value": statistic.point,
            "low": interval.low if interval else None,
            "high": interval.high if interval else None,
            "studies": studies,
        }
        for statistic, interval in zip(statistics, bounds, strict=True)
    ]
