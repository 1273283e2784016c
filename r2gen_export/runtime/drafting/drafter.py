"""Drafts of the next tokens, and how many of them are worth a wider pass of the decoder.

What is drafted changes the time a report takes and, in float32, none of its tokens: `decoding/speculative.py` and
`decoding/batch.py` verify every one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from r2gen_export.runtime.drafting.ngrams import LONGEST, START, FreshNgrams, Ngrams

MOST: Final = 8
"""Tokens drafted for one pass."""

DECAY: Final = 0.98
"""How fast older acceptances and times lose weight."""

WIDER: Final = 0.15
"""A further position's share of a pass of one, before any was timed (ONNX Runtime's 4-bit kernel: about 0.2)."""


@dataclass(frozen=True)
class Draft:
    """Tokens that may follow, and for each the length of the suffix behind which it stood in an earlier report."""

    tokens: tuple[int, ...]
    lengths: tuple[int, ...]

    def first(self, count: int) -> Draft:
        """The first `count` of them."""
        return Draft(self.tokens[:count], self.lengths[:count])


class Pace:
    """What a pass of each width costs on this machine, and how often a draft behind a suffix of each length holds."""

    def __init__(self) -> None:
        self._times: dict[int, tuple[float, float]] = {}
        # Before anything is known: 40 % behind one token to 90 % behind eight, each as if seen four times.
        self._held = {length: [4 * (0.33 + 0.07 * length), 4.0] for length in range(1, LONGEST + 1)}

    def time(self, width: int, milliseconds: float) -> None:
        """Record one pass."""
        total, count = self._times.get(width, (0.0, 0.0))
        # The first pass of a width binds its buffers: it counts little beside those that follow.
        weight = 0.1 if count == 0 else 1.0
        self._times[width] = (total * DECAY + milliseconds * weight, count * DECAY + weight)

    def tried(self, length: int, held: bool) -> None:
        """Record whether the draft behind a suffix of `length` was what the model chose."""
        seen = self._held[length]
        seen[0] = seen[0] * DECAY + held
        seen[1] = seen[1] * DECAY + 1

    def cost(self, width: int) -> float:
        """Milliseconds of a pass of `width` positions, of all its rows: measured, or on the line through its
        neighbours."""
        known = {one: total / count for one, (total, count) in self._times.items()}
        if width in known:
            return known[width]
        below = max((one for one in known if one < width), default=None)
        above = min((one for one in known if one > width), default=None)
        if below is None and above is None:
            return 1 + WIDER * (width - 1)
        if below is None or above is None:
            near = below if above is None else above
            assert near is not None
            return known[near] * (1 + WIDER * (width - 1)) / (1 + WIDER * (near - 1))
        return known[below] + (known[above] - known[below]) * (width - below) / (above - below)

    def best(self, studies: Sequence[Sequence[int]], rows: int = 1) -> int:
        """How many drafts of each study, at most, give most tokens for the time.

        Args:
            studies: the lengths of the suffixes behind which each study's drafts stand.
            rows: of the pass, those of studies without drafts included; all of them become as wide as the widest.
        """
        chosen, best, expected = 0, rows / self.cost(rows), float(rows)
        reach = [1.0] * len(studies)
        for count in range(1, 1 + max(map(len, studies), default=0)):
            for number, lengths in enumerate(studies):
                held, seen = self._held[lengths[count - 1]] if count <= len(lengths) else (0.0, 1.0)
                reach[number] *= held / seen
            expected += sum(reach)
            rate = expected / self.cost(rows * (count + 1))
            if rate > best:
                chosen, best = count, rate
        return chosen


class Drafter:
    """Drafts from several sources, the longest suffix first; of equal ones the source named first.

    Args:
        sources: what was learned before: own reports first, then other people's.
        vocab_size: ids at or above it, which a foreign store may hold, are never drafted.
        save: called with each report learned.
        most: tokens drafted at most for one pass.
    """

    def __init__(
        self,
        sources: Sequence[Ngrams] = (),
        *,
        vocab_size: int,
        save: Callable[[Sequence[int]], None] | None = None,
        most: int = MOST,
    ) -> None:
        self._fresh = FreshNgrams()
        self._sources: list[Ngrams] = [self._fresh, *sources]
        self._vocab_size = vocab_size
        self._save = save
        self._most = most
        self.pace = Pace()

    def propose(self, tokens: Sequence[int], limit: int) -> Draft:
        """Up to `limit` tokens that may follow `tokens`, as many as pay in a pass of one row."""
        draft = self.draft(tokens, limit)
        return draft.first(self.pace.best([draft.lengths]))

    def draft(self, tokens: Sequence[int], limit: int) -> Draft:
        """Up to `limit` tokens that may follow `tokens`."""
        context = [START, *tokens][-LONGEST:]
        drafts: list[int] = []
        lengths: list[int] = []
        while len(drafts) < min(limit, self._most):
            found = [one for one in (source.longest(context) for source in self._sources) if one is not None]
            if not found:
                break
            length, token = max(found, key=lambda one: one[0])
            if not 0 <= token < self._vocab_size:
                break
            drafts.append(token)
            lengths.append(length)
            context = [*context, token][-LONGEST:]
        return Draft(tuple(drafts), tuple(lengths))

    def learn(self, tokens: Sequence[int]) -> None:
        """Learn a finished report's tokens, EOS included."""
        self._fresh.learn(tokens)
        if self._save is not None:
            self._save(tokens)
