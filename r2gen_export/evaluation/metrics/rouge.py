"""ROUGE-L as coco-caption has it: the F score of the longest common subsequence, recall weighted by beta 1.2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

BETA: Final = 1.2
"""Weight of recall in ROUGE-L, as in coco-caption and the published `evalcap`."""


def rouge_l(texts: Sequence[str], references: Sequence[str]) -> float:
    """Mean ROUGE-L F over pairs of generated text and reference, words split at white space; 0 to 1.

    To choose a checkpoint by; `rouge_l_scores` splits as the published scorers do.
    """
    plain = [[" ".join(text.split()) for text in side] for side in (texts, references)]
    return float(np.mean(rouge_l_scores(*plain)))


def rouge_l_scores(texts: Sequence[str], references: Sequence[str]) -> NDArray[np.float64]:
    """ROUGE-L F [N] of each pair. Split at every single blank, so two blanks hold an empty word between them."""
    pairs = zip(texts, references, strict=True)
    return np.array([_rouge_l(text.split(" "), reference.split(" ")) for text, reference in pairs], dtype=np.float64)


def _rouge_l(words: list[str], reference: list[str]) -> float:
    common = common_subsequence(words, reference)
    if not common:
        return 0.0
    precision, recall = common / float(len(words)), common / float(len(reference))
    return ((1 + BETA**2) * precision * recall) / float(recall + BETA**2 * precision)


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence of words.

    One bit per word of `first` (Hyyrö 2004): a row of the usual table is one integer, updated by an addition.
    """
    places: dict[str, int] = {}
    for at, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << at
    every = (1 << len(first)) - 1
    row = every  # a zero bit is a word by which the subsequence grows
    for word in second:
        matches = row & places.get(word, 0)
        row = ((row + matches) | (row - matches)) & every
    return len(first) - row.bit_count()
