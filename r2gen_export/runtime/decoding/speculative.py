"""Greedy search and sampling of one study with drafts: one pass of the decoder verifies several tokens.

A position's token is chosen exactly as without drafts, from the same logits, by the same processors on the same tokens
before it, with the same random numbers; a draft holds when it is that token. The first that does not hold takes the
rest with it, and the KV cache is rolled back by length. (Leviathan et al., arXiv 2211.17192, with a draft that puts all
its probability on one token; Saxena, prompt lookup decoding.)
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from r2gen_export.decoding import Decoding
from r2gen_export.interfaces import Decoder, DecoderState, Embeddings
from r2gen_export.runtime.decoding.processors import Processor
from r2gen_export.runtime.decoding.sequence import Sequence, TokenEvent
from r2gen_export.runtime.decoding.steps import others_of, steps_of_logits
from r2gen_export.runtime.drafting.drafter import Drafter

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

Choose = Callable[[list[int], Integers, Floats], Integers]


class _Writer:
    """The tokens so far, and the next one from logits."""

    def __init__(self, decoding: Decoding, process: Processor, choose: Choose, eos_token_id: int) -> None:
        self._decoding, self._process, self._choose, self._eos = decoding, process, choose, eos_token_id
        self._ids = np.zeros((1, decoding.max_new_tokens), np.int64)
        self.count = 0
        self.logprobs: list[float] = []
        self.others: list[tuple[int, float]] = []

    def write(self, logits: Floats) -> TokenEvent:
        """Choose one token from logits [1, vocab]."""
        tokens = self._ids[:, : self.count]
        chosen = self._choose([0], tokens, self._process(tokens, logits))
        token = int(chosen[0])
        steps = steps_of_logits(logits, chosen)
        logprob = float(steps["logprob"][0])
        self._ids[0, self.count] = token
        self.count += 1
        self.logprobs.append(logprob)
        self.others += others_of(steps)
        return TokenEvent(0, token, logprob, self.count - 1)

    @property
    def ids(self) -> list[int]:
        """The tokens."""
        written: list[int] = self._ids[0, : self.count].tolist()
        return written

    @property
    def ended(self) -> bool:
        """Whether the report is whole."""
        full = self.count == self._decoding.max_new_tokens
        return full or (self.count > 0 and bool(self._ids[0, self.count - 1] == self._eos))


def drafted_steps(
    decoder: Decoder,
    embed_tokens: Embeddings,
    prompt_embeds: Floats,
    decoding: Decoding,
    *,
    process: Processor,
    choose: Choose,
    eos_token_id: int,
    drafter: Drafter,
) -> Generator[TokenEvent, None, Sequence]:
    """The sequence of one prompt [1, S, d]: the tokens `generate.generate_steps` gives without drafts.

    Equal to the last bit where a pass over several positions gives each the logits of a pass of its own; engines round
    their sums in another order there, which can part two tokens whose logits are equal to about six digits.
    """
    started = perf_counter()
    state = decoder.prefill(prompt_embeds, decoding.max_new_tokens)
    prefill_ms = (perf_counter() - started) * 1000
    writer = _Writer(decoding, process, choose, eos_token_id)
    yield writer.write(state.logits)
    drafted = accepted = 0
    decode_ms: list[float] = []
    while not writer.ended:
        started = perf_counter()
        ids = writer.ids
        # The token chosen last has no place in the cache yet, and the pass itself gives one token more than it drafts.
        draft = drafter.propose(ids, decoding.max_new_tokens - writer.count - 1)
        held, events = _verify(state, embed_tokens, writer, [ids[-1], *draft.tokens])
        for length, good in zip(draft.lengths, [True] * held + [False], strict=False):
            drafter.pace.tried(length, good)
        drafted += len(draft.tokens)
        accepted += held
        decode_ms.append((perf_counter() - started) * 1000)
        drafter.pace.time(1 + len(draft.tokens), decode_ms[-1])
        yield from events
    ids = writer.ids
    return Sequence(
        token_ids=tuple(ids),
        logprobs=tuple(writer.logprobs),
        score=None,
        finish_reason="eos" if ids[-1] == eos_token_id else "length",
        prefill_ms=prefill_ms,
        decode_ms=tuple(decode_ms),
        drafted=drafted,
        accepted=accepted,
        others=tuple(writer.others),
    )


def _verify(
    state: DecoderState, embed_tokens: Embeddings, writer: _Writer, tokens: list[int]
) -> tuple[int, list[TokenEvent]]:
    """One pass over the last token and its drafts; how many of the drafts held, and the tokens that are certain now."""
    logits = state.extend(embed_tokens.lookup(np.array([tokens])))[0]  # [1 + drafts, vocab]
    drafts = tokens[1:]
    events: list[TokenEvent] = []
    for place in range(len(tokens)):
        events.append(writer.write(logits[place : place + 1]))
        chosen = events[-1].token_id
        if writer.ended or place == len(drafts) or chosen != drafts[place]:
            state.rollback(len(drafts) - place)
            return place + (place < len(drafts) and chosen == drafts[place]), events
    raise AssertionError("the last place returns")
