"""Precision, recall and F1 of the findings that reports name, with the convention in every metric's name.

`u1`: an uncertain finding counts as positive (as f1chexbert does); `u0`: as not (as R2Gen does). A finding that is not
mentioned counts as negative. Macro averages count a finding that neither side ever names as 0, as scikit-learn does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from r2gen_export.evaluation.bootstrap import Statistic, mean_statistic

CONVENTIONS: Final = ("u1", "u0")

FIVE: Final = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
"""The five findings that CheXpert's paper evaluates."""

NO_FINDING: Final = "No Finding"

VALUES: Final = ("blank", "negative", "uncertain", "positive")


@dataclass(frozen=True)
class LabelSet:
    """Labels of a set of reports: `values` [N, 14] are places in `VALUES`; `findings` names the columns."""

    values: NDArray[np.int8]
    findings: tuple[str, ...]

    def present(self, convention: str) -> NDArray[np.bool_]:
        """Whether each report says that each finding is there [N, 14]."""
        return np.asarray(self.values >= (2 if convention == "u1" else 3))

    def abnormal(self) -> NDArray[np.bool_]:
        """Whether each report names a finding as positive, `No Finding` not counted [N]."""
        columns = [at for at, name in enumerate(self.findings) if name != NO_FINDING]
        return np.asarray(np.any(self.values[:, columns] == 3, axis=1))

    def letters(self) -> list[str]:
        """Each report's labels as 14 letters of `bnup`, for results."""
        return ["".join("bnup"[value] for value in row) for row in self.values.tolist()]


def label_texts(texts: Sequence[str]) -> LabelSet:
    """Labels of each text by `r2gen-rules`; equal texts are read once."""
    from r2gen_export.evaluation.labels import FINDINGS, label_report

    findings = tuple(FINDINGS)
    known: dict[str, list[int]] = {}
    rows = []
    for text in texts:
        if text not in known:
            labels = label_report(text)
            known[text] = [VALUES.index(labels[name]) for name in findings]
        rows.append(known[text])
    return LabelSet(np.array(rows, dtype=np.int8).reshape(len(rows), len(findings)), findings)


def labels_of_letters(letters: Sequence[str], findings: Sequence[str]) -> LabelSet:
    """The inverse of `LabelSet.letters`."""
    rows = [["bnup".index(letter) for letter in row] for row in letters]
    return LabelSet(np.array(rows, dtype=np.int8).reshape(len(rows), len(findings)), tuple(findings))


def _ratio(over: NDArray[np.float64], under: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(over, under, out=np.zeros_like(over), where=under > 0)


def _scores(sums: NDArray[np.float64], part: int) -> NDArray[np.float64]:
    """Precision (0), recall (1) or F1 (2) from sums [..., 3] of true positives, positives said, positives there."""
    true, said, there = sums[..., 0], sums[..., 1], sums[..., 2]
    if part == 0:
        return _ratio(true, said)
    return _ratio(true, there) if part == 1 else _ratio(2 * true, said + there)


def _micro(sums: NDArray[np.float64], part: int) -> NDArray[np.float64]:
    return _scores(sums.reshape(*sums.shape[:-1], -1, 3).sum(axis=-2), part)


def _macro(sums: NDArray[np.float64], part: int) -> NDArray[np.float64]:
    return np.asarray(_scores(sums.reshape(*sums.shape[:-1], -1, 3), part).mean(axis=-1))


def _columns(said: NDArray[np.bool_], there: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[N, 14, 3] of true positives, positives said, positives there."""
    return np.stack([said & there, said, there], axis=2).astype(np.float64)


PARTS: Final = ("P", "R", "F1")


def label_statistics(hypotheses: LabelSet, references: LabelSet) -> list[Statistic]:
    """Micro and macro scores over 14 and 5 findings, and example-based ones, under both conventions."""
    statistics = []
    five = [at for at, name in enumerate(references.findings) if name in FIVE]
    for convention in CONVENTIONS:
        counts = _columns(hypotheses.present(convention), references.present(convention))
        for label, chosen in ((str(counts.shape[1]), counts), (str(len(five)), counts[:, five])):
            flat = chosen.reshape(len(chosen), -1)
            for kind, function in (("micro", _micro), ("macro", _macro)):
                for part, name in enumerate(PARTS):
                    value = partial(function, part=part)
                    point = float(value(flat.sum(axis=0)))
                    statistics.append(Statistic(f"{name}-{kind}-{label}-{convention}", flat, value, point))
        statistics += _example_based(counts, convention)
    return statistics


def _example_based(counts: NDArray[np.float64], convention: str) -> list[Statistic]:
    """Means over studies of each study's own precision, recall and F1; 1 where neither report names anything."""
    sums = counts.sum(axis=1)  # [N, 3]
    nothing = (sums[:, 1] == 0) & (sums[:, 2] == 0)
    statistics = []
    for part, name in enumerate(PARTS):
        scores = np.where(nothing, 1.0, _scores(sums, part))
        statistics.append(mean_statistic(f"{name}-example-{counts.shape[1]}-{convention}", scores))
    return statistics


def per_label(hypotheses: LabelSet, references: LabelSet, convention: str = "u1") -> list[dict[str, Any]]:
    """A row a finding: `finding, convention, support, said, precision, recall, f1`; None where it is not defined."""
    sums = _columns(hypotheses.present(convention), references.present(convention)).sum(axis=0)
    rows = []
    for name, (true, said, there) in zip(references.findings, sums.tolist(), strict=True):
        rows.append(
            {
                "finding": name,
                "convention": convention,
                "support": int(there),
                "said": int(said),
                "precision": true / said if said else None,
                "recall": true / there if there else None,
                "f1": 2 * true / (said + there) if said + there else None,
            }
        )
    return rows


def disagreements(hypotheses: LabelSet, references: LabelSet) -> NDArray[np.int64]:
    """In how many findings each study's reports differ [N], as `flipped` counts them."""
    return np.asarray(flipped(hypotheses, references).sum(axis=1), dtype=np.int64)


def flipped(first: LabelSet, second: LabelSet) -> NDArray[np.bool_]:
    """Whether a finding is there for one side only [N, 13], uncertain counted as positive, `No Finding` left out."""
    columns = [at for at, name in enumerate(first.findings) if name != NO_FINDING]
    return np.asarray((first.present("u1") != second.present("u1"))[:, columns])
