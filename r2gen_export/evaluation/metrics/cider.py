"""CIDEr as coco-caption has it, which is CIDEr-D: clipped counts and a Gaussian penalty on the length.

Source: `cider_scorer.py` of pycocoevalcap 1.2 (n = 4, sigma 6, one reference a study). The inverse document frequencies
come from the references of the evaluated set, so the scores of a subset are not comparable with those of the whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from r2gen_export.evaluation.metrics.bleu import ORDER, ngram_counts

SIGMA: Final = 6.0

Ngrams = Counter[tuple[str, ...]]


def cider_scores(texts: Sequence[str], references: Sequence[str]) -> NDArray[np.float64]:
    """CIDEr [N] of each pair, 0 to 10; the corpus's score is their mean.

    A single study scores 0: its every n-gram stands in all references. (The published code sets log N to 1 there.)
    """
    return ReferenceFrequencies(references).scores(texts)


@dataclass(frozen=True)
class _Vector:
    """tf-idf weights of a text by the length of n-grams, their norms, and its number of bigrams."""

    weights: tuple[dict[tuple[str, ...], float], ...]
    norms: tuple[float, ...]
    length: int


class ReferenceFrequencies:
    """The references of a set, in how many of them each n-gram stands, and their vectors.

    Several systems are scored against one of these.
    """

    def __init__(self, references: Sequence[str]) -> None:
        counts = [ngram_counts(reference.split()) for reference in references]
        self._documents: Counter[tuple[str, ...]] = Counter()
        for ngrams in counts:
            self._documents.update(ngrams.keys())
        self._log_n = float(np.log(float(len(counts)))) if counts else 0.0
        # numpy's logarithm, not math's: the two may differ in the last bit.
        self._logs = [float(np.log(float(max(1, number)))) for number in range(len(counts) + 1)]
        self._vectors = [self._vector(ngrams) for ngrams in counts]

    def scores(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """CIDEr [N] of one text for each reference, in their order."""
        scored = []
        for text, reference in zip(texts, self._vectors, strict=True):
            similarity = np.array(_similarity(self._vector(ngram_counts(text.split())), reference))
            scored.append(float(np.mean(similarity)) * 10.0)
        return np.array(scored, dtype=np.float64)

    def _vector(self, counts: Ngrams) -> _Vector:
        weights: tuple[dict[tuple[str, ...], float], ...] = tuple({} for _ in range(ORDER))
        squares = [0.0] * ORDER
        length = 0
        for ngram, count in counts.items():
            size = len(ngram) - 1
            weight = float(count) * (self._log_n - self._logs[self._documents[ngram]])
            weights[size][ngram] = weight
            squares[size] += weight**2
            if size == 1:
                length += count
        return _Vector(weights, tuple(float(np.sqrt(square)) for square in squares), length)


def _similarity(text: _Vector, reference: _Vector) -> list[float]:
    """Clipped cosine similarity for each length of n-grams."""
    delta = float(text.length - reference.length)
    penalty = np.e ** (-(delta**2) / (2 * SIGMA**2))
    values = []
    for size in range(ORDER):
        expected = reference.weights[size]
        value = 0.0
        for ngram, weight in text.weights[size].items():
            other = expected.get(ngram, 0.0)
            value += min(weight, other) * other
        if text.norms[size] != 0 and reference.norms[size] != 0:
            value /= text.norms[size] * reference.norms[size]
        values.append(value * penalty)
    return values
