"""Greedy search and sampling of one study with drafts: one pass of the decoder verifies several tokens.

A position's token is chosen exactly as without drafts, from the same logits, by the same processors on the same tokens
before it, with the same random numbers; a draft holds when it is that token. The first that does not hold takes the
rest with it, and the KV cache is rolled back by length. (Leviathan et al., arXiv 2211.17192, with a draft that puts all
its probability on one token; Saxena, prompt lookup decoding.)
"""

from __future__ import annotations

from collections.abc import Generator
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from r2gen_export.interfaces import Decoder, DecoderState, Embeddings
from r2gen_export.runtime.decoding.batch_studies import GreedyStudy, choose_greedy
from r2gen_export.runtime.decoding.sequence import Sequence, TokenEvent
from r2gen_export.runtime.drafting.drafter import Drafter

Floats = NDArray[np.float32]


def drafted_steps(
    decoder: Decoder, embed_tokens: Embeddings, prompt_embeds: Floats, study: GreedyStudy, drafter: Drafter
) -> Generator[TokenEvent, None, Sequence]:
    """The sequence of one prompt [1, S, d]: the tokens `generate.generate_steps` gives without drafts.

    Where a pass over several positions gives each the logits of a pass of its own. In float32 they differ by some
    millionths, which parts only tokens as close as that; kernels that round activations to 8 bits part others too, so
    `Pipeline` uses drafts there only when told.
    """
    started = perf_counter()
    state = decoder.prefill(prompt_embeds, study.left)
    study.prefill_ms = (perf_counter() - started) * 1000
    yield from choose_greedy([study], state.logits)
    while not study.done:
        started = perf_counter()
        ids = study.ids
        # The token chosen last has no place in the cache yet, and the pass itself gives one token more than it drafts.
        draft = drafter.propose(ids, study.left - 1)
        held, events = _verify(state, embed_tokens, study, [ids[-1], *draft.tokens])
        for length, good in zip(draft.lengths, [True] * held + [False], strict=False):
            drafter.pace.tried(length, good)
        study.drafted += len(draft.tokens)
        study.accepted += held
        study.passes.append((perf_counter() - started) * 1000)
        drafter.pace.time(1 + len(draft.tokens), study.passes[-1])
        yield from events
    return study.sequence()


def _verify(
    state: DecoderState, embed_tokens: Embeddings, study: GreedyStudy, tokens: list[int]
) -> tuple[int, list[TokenEvent]]:
    """One pass over the last token and its drafts; how many of the drafts held, and the tokens that are certain now."""
    logits = state.extend(embed_tokens.lookup(np.array([tokens])))[0]  # [1 + drafts, vocab]
    drafts = tokens[1:]
    events: list[TokenEvent] = []
    for place in range(len(tokens)):
        events += choose_greedy([study], logits[place : place + 1])
        chosen = events[-1].token_id
        if study.done or place == len(drafts) or chosen != drafts[place]:
            state.rollback(len(drafts) - place)
            return place + (place < len(drafts) and chosen == drafts[place]), events
    raise AssertionError("the last place returns")
