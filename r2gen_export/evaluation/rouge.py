"""Scores of generated reports that need no further package, to choose a checkpoint by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

BETA: Final = 1.2
"""Weight of recall in ROUGE-L, as in coco-caption and the published `evalcap`."""


def rouge_l(texts: Sequence[str], references: Sequence[str]) -> float:
    """Mean ROUGE-L F over pairs of generated text and reference, words split at white space; 0 to 1."""
    scores = [_rouge_l(text.split(), reference.split()) for text, reference in zip(texts, references, strict=True)]
    return sum(scores) / len(scores)


def _rouge_l(words: list[str], reference: list[str]) -> float:
    common = _common_subsequence(words, reference)
    if not common:
        return 0.0
    precision, recall = common / len(words), common / len(reference)
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _common_subsequence(first: list[str], second: list[str]) -> int:
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for column, other in enumerate(second, start=1):
            above = row[column]
            row[column] = diagonal + 1 if word == other else max(above, row[column - 1])
            diagonal = above
    return row[-1]
