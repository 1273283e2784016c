"""BLEU-1 to BLEU-4 from counts per study, so that any weighting of the studies is a sum.

Source: coco-caption's `bleu_scorer.py` with option `closest` and one reference a study: corpus BLEU, clipped counts,
brevity penalty, and the two small constants below.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

ORDER: Final = 4
SMALL: Final = 1e-9
TINY: Final = 1e-15
COLUMNS: Final = 2 * ORDER + 2
"""A study's counts: correct n-grams of length 1 to 4, n-grams of length 1 to 4, words, words of the reference."""


def ngram_counts(words: Sequence[str]) -> Counter[tuple[str, ...]]:
    """How often each n-gram of up to 4 words stands in a text, in the order of their first places by length."""
    return Counter(tuple(words[at : at + size]) for size in range(1, ORDER + 1) for at in range(len(words) - size + 1))


def bleu_counts(texts: Sequence[str], references: Sequence[str]) -> NDArray[np.int64]:
    """Counts [N, 10] of each pair, see `COLUMNS`."""
    rows = [_row(text.split(), reference.split()) for text, reference in zip(texts, references, strict=True)]
    return np.array(rows, dtype=np.int64).reshape(len(rows), COLUMNS)


def _row(words: list[str], reference: list[str]) -> list[int]:
    correct = [0] * ORDER
    available = ngram_counts(reference)
    for ngram, count in ngram_counts(words).items():
        correct[len(ngram) - 1] += min(available[ngram], count)
    guesses = [max(0, len(words) - size + 1) for size in range(1, ORDER + 1)]
    return [*correct, *guesses, len(words), len(reference)]


def bleu(counts: Sequence[float]) -> tuple[float, ...]:
    """BLEU-1 to BLEU-4 of summed counts [10]: the arithmetic of the original, operation by operation."""
    correct, guesses, (length, expected) = counts[:ORDER], counts[ORDER : 2 * ORDER], counts[2 * ORDER :]
    scores = []
    product = 1.0
    for size in range(ORDER):
        product *= (float(correct[size]) + TINY) / (float(guesses[size]) + SMALL)
        scores.append(product ** (1.0 / (size + 1)))
    ratio = (float(length) + TINY) / (float(expected) + SMALL)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    return tuple(score * penalty for score in scores)


def bleu_of_sums(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """BLEU-1 to BLEU-4 [..., 4] of many summed counts [..., 10], for resampling: equal to `bleu` but for rounding."""
    precisions = (sums[..., :ORDER] + TINY) / (sums[..., ORDER : 2 * ORDER] + SMALL)
    scores = np.cumprod(precisions, axis=-1) ** (1.0 / np.arange(1, ORDER + 1))
    ratio = (sums[..., 2 * ORDER] + TINY) / (sums[..., 2 * ORDER + 1] + SMALL)
    penalty = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    return np.asarray(scores * penalty[..., None])
