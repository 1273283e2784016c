"""N-grams of token ids: what followed the longest suffix of the tokens so far.

A sequence begins behind `START`, so that its first tokens have a suffix too.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

LONGEST: Final = 8
"""Tokens of the longest suffix looked up."""

START: Final = -1

SAMPLE: Final = 512
"""Occurrences of a suffix that are counted; of more, evenly spaced ones."""

FRESH_REPORTS: Final = 256
"""Reports learned in this process that are kept; they take about 1 MB."""

GROWTH: Final = 1.05
"""How much more a newer report counts than the one before it."""


class Ngrams(Protocol):
    """A source of continuations."""

    def longest(self, context: Sequence[int]) -> tuple[int, int] | None:
        """Length of the longest suffix of `context` that is known, and the token that follows it most often."""


class SortedNgrams:
    """A corpus whose positions are sorted by what precedes them, nearest token first: a suffix is a range.

    Args:
        tokens: int32 [P], each sequence behind a `START`.
        order: int32 [Q], the positions of tokens that are no `START`, sorted.
    """

    def __init__(self, tokens: NDArray[np.int32], order: NDArray[np.int32]) -> None:
        self._tokens, self._order = tokens, order

    @classmethod
    def build(cls, sequences: Iterable[Sequence[int]]) -> SortedNgrams:
        """Sort a corpus; later sequences count more."""
        parts = [np.array([START, *sequence], np.int32) for sequence in sequences]
        tokens = np.concatenate(parts) if parts else np.zeros(0, np.int32)
        places = np.flatnonzero(tokens != START)
        before = np.arange(1, LONGEST + 1)
        reached = places - before[:, None]  # [LONGEST, Q]
        keys = np.where(reached >= 0, tokens[np.maximum(reached, 0)], START - 1)
        return cls(tokens, places[np.lexsort(keys[::-1])].astype(np.int32))

    @property
    def arrays(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The corpus and its order, as the constructor takes them."""
        return self._tokens, self._order

    def longest(self, context: Sequence[int]) -> tuple[int, int] | None:
        tokens, order = self._tokens, self._order
        low, high, length = 0, len(order), 0
        for depth, token in enumerate(reversed(context[-LONGEST:]), start=1):

            def key(place: int, depth: int = depth) -> int:
                return int(tokens[order[place] - depth])

            first = bisect_left(range(high), token, low, high, key=key)
            last = bisect_right(range(high), token, first, high, key=key)
            if first == last:
                break
            low, high, length = first, last, depth
        if not length:
            return None
        places = order[low:high]
        if len(places) > SAMPLE:
            places = places[np.linspace(0, len(places) - 1, SAMPLE).astype(np.int64)]
        found, inverse = np.unique(tokens[places], return_inverse=True)
        votes = np.bincount(inverse, weights=1 + places / len(tokens))
        return length, int(found[votes.argmax()])


class FreshNgrams:
    """Sequences learned one by one, the newest `FRESH_REPORTS` of them."""

    def __init__(self) -> None:
        self._kept: deque[tuple[int, ...]] = deque()
        self._votes: dict[tuple[int, ...], dict[int, float]] = {}
        self._weight = 1.0

    def learn(self, sequence: Sequence[int]) -> None:
        """Add one sequence."""
        self._kept.append(tuple(sequence))
        if len(self._kept) > FRESH_REPORTS:
            # Rarely: half is forgotten at once, and the weights start anew.
            kept = list(self._kept)[FRESH_REPORTS // 2 :]
            self._kept.clear()
            self._votes.clear()
            self._weight = 1.0
            for one in kept:
                self.learn(one)
            return
        self._weight *= GROWTH
        whole = (START, *sequence)
        for end in range(1, len(whole)):
            for size in range(1, min(LONGEST, end) + 1):
                votes = self._votes.setdefault(whole[end - size : end], {})
                votes[whole[end]] = votes.get(whole[end], 0.0) + self._weight

    def longest(self, context: Sequence[int]) -> tuple[int, int] | None:
        suffix = tuple(context[-LONGEST:])
        for start in range(len(suffix)):
            if votes := self._votes.get(suffix[start:]):
                return len(suffix) - start, max(votes, key=lambda token: (votes[token], -token))
        return None
