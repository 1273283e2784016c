"""Scores of generated validation reports: words, as the published validation computes them, and findings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from r2gen_export.evaluation.label_scores import label_statistics, label_texts
from r2gen_export.evaluation.metrics.cider import ReferenceFrequencies
from r2gen_export.evaluation.scoring import TextScores, score_texts

NAMES: Final = {
    "val_bleu1": "BLEU-1",
    "val_bleu4": "BLEU-4",
    "val_rouge_l": "ROUGE-L",
    "val_cider": "CIDEr",
    "val_label_f1": "F1-micro-14-u1",
}
"""Columns of the logs, and the metrics of `r2gen evaluate` that they hold."""


def _words(texts: Sequence[str], references: Sequence[str]) -> TextScores:
    """As they are, split at white space: the published code scores its decoded texts so."""
    return score_texts(texts, references, ReferenceFrequencies(references))


def report_scores(texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """The metrics of `NAMES`, by column.

    Args:
        texts: generated reports.
        references: cleaned reports, cut at the training's `max_length` tokens and decoded again.
    """
    statistics = _words(texts, references).statistics() + label_statistics(label_texts(texts), label_texts(references))
    values = {statistic.name: statistic.point for statistic in statistics}
    return {column: float(values[name]) for column, name in NAMES.items()}


def bleu4_cider(texts: Sequence[str], references: Sequence[str]) -> float:
    """0.5 BLEU-4 + 0.5 CIDEr, by which the published code chooses its checkpoint (`on_validation_epoch_end`)."""
    values = {statistic.name: statistic.point for statistic in _words(texts, references).statistics()}
    return 0.5 * values["BLEU-4"] + 0.5 * values["CIDEr"]
