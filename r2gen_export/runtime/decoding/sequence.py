"""What the decode loop gives back: a token while it runs, a sequence at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

E = TypeVar("E")
T = TypeVar("T")


@dataclass(frozen=True)
class TokenEvent:
    """One generated token of one study: `row` in the batch, `step` counts from 0, `logprob` as in `Sequence`."""

    row: int
    token_id: int
    logprob: float
    step: int


@dataclass(frozen=True)
class Sequence:
    """What was generated for one study.

    `token_ids`: without padding, EOS included when it came. `logprobs`: the model's own log probability of each token,
    before penalties. `score`: beam search's sum of penalised log probabilities over length^length_penalty, None without
    beams. `decode_ms`: one time per pass of the decoder, choosing the token included; the first token comes out of
    prefill. Times are those of the whole batch: of every study in the pass. `together`: most studies in one pass with
    this one, itself included. `drafted` tokens were proposed, `accepted` of them the model chose too. `others`: for
    each token the likeliest token in its place but itself, and that one's own log probability.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    score: float | None
    finish_reason: Literal["eos", "length"]
    prefill_ms: float
    decode_ms: tuple[float, ...]
    drafted: int = 0
    accepted: int = 0
    together: int = 1
    others: tuple[tuple[int, float], ...] = ()


OnToken: TypeAlias = Callable[[TokenEvent], None]


def drain(steps: Generator[E, None, T], on_step: Callable[[E], None] | None) -> T:
    """Run a generator to its end; what it returns. What `on_step` raises closes it."""
    with contextlib.closing(steps):
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                result: T = end.value
                return result
            if on_step is not None:
                on_step(step)
