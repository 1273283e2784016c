"""Two systems on the same studies, judged pairwise: differences with intervals, p values, flips of findings, a gate.

An export is to be judged paired only: with 10 % of the reports changed, the interval of the difference is a tenth as
wide as that of either score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from r2gen_export.bundle import NOTICE
from r2gen_export.errors import R2GenError
from r2gen_export.evaluation.bootstrap import (
    FEWEST,
    REPLICATES,
    SEED,
    Resampling,
    Statistic,
    block_size,
    stack_columns,
    values_of_sums,
)
from r2gen_export.evaluation.gates import GATES, difference_bound, flip_bound, judge
from r2gen_export.evaluation.label_scores import LabelSet, flipped, label_statistics, label_texts, labels_of_letters
from r2gen_export.evaluation.metrics.cider import ReferenceFrequencies
from r2gen_export.evaluation.pairs import Pairs
from r2gen_export.evaluation.protocols import Context, prepare
from r2gen_export.evaluation.scoring import TextScores, score_texts
from r2gen_export.evaluation.texts import first_difference, text_hash
from r2gen_export.system.versions import VERSION

COMPARISON_SCHEMA: Final = "r2gen-comparison/1"

METRICS: Final = (
    *("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"),
    *("F1-micro-14-u1", "F1-macro-14-u1", "F1-micro-5-u1", "F1-example-14-u1"),
)

Words = Sequence[str] | Sequence[int]


@dataclass(frozen=True)
class Side:
    """One system's reports on the set.

    Attributes:
        studies_sha256: of ids and references; both sides must have the same.
        protocol: of `scores`.
        scores, labels, references: what each study adds to the metrics.
        hashes: of each report's text.
        units: what is resampled, numbered from 0 [N].
        words: of each report, or its token ids; None where only results are there.
        tokens: whether `words` are token ids.
    """

    studies_sha256: str
    protocol: str
    scores: TextScores
    labels: LabelSet
    references: LabelSet
    hashes: Sequence[str]
    units: NDArray[np.int64]
    words: Sequence[Words] | None = None
    tokens: bool = False

    def statistics(self) -> dict[str, Statistic]:
        """The metrics that are compared, by name."""
        every = [*self.scores.statistics(), *label_statistics(self.labels, self.references)]
        return {statistic.name: statistic for statistic in every if statistic.name in METRICS}


def side_of_results(results: Mapping[str, Any]) -> Side:
    """A side from the results that `r2gen evaluate` wrote.

    Raises:
        R2GenError: `R2G-EVAL-FORMAT` when studies lack a field.
    """
    try:
        studies, findings = results["studies"], results["findings"]
        scores = TextScores(
            np.array([study["bleu"] for study in studies], dtype=np.int64),
            np.array([study["rouge_l"] for study in studies], dtype=np.float64),
            np.array([study["cider"] for study in studies], dtype=np.float64),
        )
        return Side(
            results["data"]["studies_sha256"],
            results["protocol"],
            scores,
            labels_of_letters([study["labels"] for study in studies], findings),
            labels_of_letters([study["reference_labels"] for study in studies], findings),
            [study["text_sha256"] for study in studies],
            np.array([study["unit"] for study in studies], dtype=np.int64),
        )
    except (KeyError, TypeError, ValueError) as error:
        message = "the results of a side lack a field, or it is of another type"
        raise R2GenError("R2G-EVAL-FORMAT", message, "write them again with r2gen evaluate") from error


def side_of_pairs(pairs: Pairs, context: Context, protocol: str) -> Side:
    """A side from reports and references.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE` when the protocol lacks what it needs.
    """
    prepared = prepare(protocol, pairs.references, context)
    frequencies = ReferenceFrequencies(prepared.references)
    texts = [prepared.hypothesis(text) for text in pairs.hypotheses]
    units = np.arange(len(texts), dtype=np.int64)
    if pairs.patients is not None:
        units = np.unique(np.array(pairs.patients), return_inverse=True)[1].astype(np.int64)
    ids = [tokens for tokens in pairs.token_ids if tokens is not None]
    whole = len(ids) == len(texts)
    return Side(
        pairs.sha256(),
        protocol,
        score_texts(texts, prepared.references, frequencies),
        label_texts(pairs.hypotheses),
        label_texts(pairs.references),
        [text_hash(text) for text in pairs.hypotheses],
        units,
        ids if whole else [text.split() for text in pairs.hypotheses],
        tokens=whole,
    )


def compare(
    first: Side, second: Side, margins: Mapping[str, float], *, replicates: int = REPLICATES, seed: int = SEED
) -> dict[str, Any]:
    """Compare the second system with the first, which is the reference.

    Args:
        first, second: on the same studies, under the same protocol.
        margins: by how much the second may be worse, by metric or `labels`; see `parse_margins`.
        replicates, seed: of the bootstrap and of the randomisation.

    Returns:
        `metrics`, rows with `first, second, difference, low, high, p, p_holm`; `identical` reports; `divergence`;
        `flips` by finding; `gates`, whether each margin was shown to be held; described in EVALUATE.md.

    Raises:
        R2GenError: `R2G-EVAL-STUDIES` when the sides are not of the same studies, `R2G-CONFIG-VALUE` when not of the
            same protocol.
    """
    if first.studies_sha256 != second.studies_sha256:
        message = "the two sides are not of the same studies and references"
        raise R2GenError("R2G-EVAL-STUDIES", message, "evaluate both on the same annotation, split and section")
    if first.protocol != second.protocol:
        message = f"the sides were scored by protocols {first.protocol} and {second.protocol}"
        raise R2GenError("R2G-CONFIG-VALUE", message, "evaluate both with the same --protocol")
    plan = Resampling(
        first.units, replicates, seed, "patient" if len(set(first.units.tolist())) < len(first.units) else "study"
    )
    pair = _Paired(first.statistics(), second.statistics(), plan)
    flips = _flips(first.labels, second.labels)
    enough = plan.units >= FEWEST
    differences = pair.bootstrap() if enough else None
    return {
        "schema": COMPARISON_SCHEMA,
        "r2gen_version": VERSION,
        "notice": NOTICE,
        "protocol": first.protocol,
        "studies": len(first.hashes),
        "bootstrap": {"replicates": replicates, "seed": seed, "unit": plan.unit, "units": plan.units},
        "metrics": pair.rows(differences),
        "identical": sum(a == b for a, b in zip(first.hashes, second.hashes, strict=True)),
        "divergence": _divergence(first, second),
        "flips": flips,
        "flipped_share": flipped(first.labels, second.labels).mean() if len(first.hashes) else 0.0,
        "gates": [
            judge(name, margin, _bound(GATES[name], pair, differences, flipped(first.labels, second.labels), plan))
            for name, margin in margins.items()
        ],
    }


class _Paired:
    """The metrics of both sides over the same resamples."""

    def __init__(self, first: dict[str, Statistic], second: dict[str, Statistic], plan: Resampling) -> None:
        self.names: list[str] = [name for name in METRICS if name in first and name in second]
        self._first = [first[name] for name in self.names]
        self._second = [second[name] for name in self.names]
        self._plan = plan
        self.points = np.array([b.point - a.point for a, b in zip(self._first, self._second, strict=True)])
        self._sums_first, self._places = stack_columns(self._first, plan)
        self._sums_second, _ = stack_columns(self._second, plan)

    def bootstrap(self) -> NDArray[np.float64]:
        """Differences, second minus first, on each resample [replicates, metrics]."""
        blocks = [self._difference(w @ self._sums_first, w @ self._sums_second) for w in self._plan.weights()]
        return np.concatenate(blocks)

    def _difference(self, first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
        values = values_of_sums(self._second, second, self._places) - values_of_sums(self._first, first, self._places)
        return np.asarray(values)

    def randomisation(self) -> NDArray[np.float64]:
        """p values [metrics]: how often a difference as large comes from swapping the systems in random studies."""
        rng = np.random.default_rng([self._plan.seed, 2])
        change = self._sums_second - self._sums_first
        first, second = self._sums_first.sum(axis=0), self._sums_second.sum(axis=0)
        larger = np.zeros(len(self.names))
        block = block_size(self._plan.units)
        for start in range(0, self._plan.replicates, block):
            size = min(block, self._plan.replicates - start)
            moved = rng.integers(0, 2, size=(size, self._plan.units)).astype(np.float64) @ change
            swapped = self._difference(first + moved, second - moved)
            larger += (np.abs(swapped) >= np.abs(self.points) - 1e-12).sum(axis=0)
        return np.asarray((larger + 1) / (self._plan.replicates + 1))

    def rows(self, differences: NDArray[np.float64] | None) -> list[dict[str, Any]]:
        """A row a metric; interval and p values None where there are too few studies."""
        few = differences is None
        p = self.randomisation() if not few else np.full(len(self.names), np.nan)
        adjusted = holm(p.tolist())
        bounds = np.percentile(differences, [2.5, 97.5], axis=0) if differences is not None else None
        return [
            {
                "metric": name,
                "first": self._first[at].point,
                "second": self._second[at].point,
                "difference": float(self.points[at]),
                "low": None if bounds is None else float(bounds[0, at]),
                "high": None if bounds is None else float(bounds[1, at]),
                "p": None if few else float(p[at]),
                "p_holm": None if few else adjusted[at],
            }
            for at, name in enumerate(self.names)
        ]


def _bound(
    metric: str,
    pair: _Paired,
    differences: NDArray[np.float64] | None,
    flips: NDArray[np.bool_],
    plan: Resampling,
) -> float | None:
    """By how much the second system may be worse in a metric, with 95 % confidence; None with too few studies."""
    if differences is None:
        return None
    return flip_bound(flips, plan) if metric == "labels" else difference_bound(differences[:, pair.names.index(metric)])


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted by Holm's step-down method, in the order given."""
    order = sorted(range(len(p_values)), key=lambda at: p_values[at])
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, at in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = highest
    return adjusted


def _flips(first: LabelSet, second: LabelSet) -> list[dict[str, Any]]:
    before, after = first.present("u1"), second.present("u1")
    return [
        {
            "finding": name,
            "first": int(before[:, at].sum()),
            "second": int(after[:, at].sum()),
            "appeared": int((after & ~before)[:, at].sum()),
            "vanished": int((before & ~after)[:, at].sum()),
        }
        for at, name in enumerate(first.findings)
    ]


def _divergence(first: Side, second: Side) -> dict[str, Any] | None:
    """Where reports begin to differ; None where the words are not there."""
    if first.words is None or second.words is None:
        return None
    tokens = first.tokens and second.tokens
    if first.tokens != second.tokens:
        return None
    pairs = zip(first.words, second.words, strict=True)
    places = [place for a, b in pairs if (place := first_difference(a, b)) is not None]
    return {
        "unit": "token" if tokens else "word",
        "reports": len(places),
        "first": min(places) + 1 if places else None,
        "median": float(np.median(places)) + 1 if places else None,
    }
