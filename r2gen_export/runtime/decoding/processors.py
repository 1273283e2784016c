"""Logits processors and warpers: closures over their settings, composed in transformers' order.

Source: transformers 4.57, `generation/logits_process.py` and `GenerationMixin._get_logits_processor`; 4.30.2 has the
same. With `inputs_embeds` the prompt has no ids: `tokens` holds the generated ones, in 4.30.2 behind one dummy BOS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from r2gen_export.decoding import Decoding

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

Processor: TypeAlias = Callable[[Integers, Floats], Floats]
"""From tokens [B, n] int64 generated so far and scores [B, vocab] float32 to new scores; changes neither in place."""

Edit: TypeAlias = Callable[[Integers, Floats], None]
"""One part of a processor: changes scores [B, vocab] in place. `chain` makes a processor of some, with one copy."""


def log_softmax(scores: Floats) -> Floats:
    """Log probabilities [..., vocab] float32, rounded as torch rounds them but for the order of the sum."""
    shifted: Floats = scores - scores.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def softmax(scores: Floats) -> Floats:
    """Probabilities [..., vocab] float32."""
    powers: Floats = scores - scores.max(axis=-1, keepdims=True)
    np.exp(powers, out=powers)
    powers /= powers.sum(axis=-1, keepdims=True)
    return powers


def make_processors(decoding: Decoding, eos_token_id: int, dummy_bos: int | None = None) -> Processor:
    """The processors of these settings: of raw logits in greedy search and sampling, of log probabilities in beams.

    `dummy_bos`: an id put before the generated ones (semantics `hf-4.30`): repetition penalty and n-grams see it,
    `min_new_tokens` does not count it.
    """
    edits: list[Edit] = []
    if decoding.repetition_penalty != 1.0:
        edits.append(repetition_penalty(decoding.repetition_penalty))
    if decoding.no_repeat_ngram_size > 0:
        edits.append(no_repeat_ngram(decoding.no_repeat_ngram_size))
    if decoding.min_new_tokens > 0:
        least = decoding.min_new_tokens + (0 if dummy_bos is None else 1)
        edits.append(min_new_tokens(least, eos_token_id))
    process = chain(edits)
    return process if dummy_bos is None else behind(dummy_bos, process)


def behind(token_id: int, process: Processor) -> Processor:
    """`process` as if `token_id` stood before every row."""

    def prefixed(tokens: Integers, scores: Floats) -> Floats:
        return process(np.insert(tokens, 0, token_id, axis=1), scores)

    return prefixed


def make_warpers(decoding: Decoding) -> Processor:
    """The warpers of these settings, which only sampling applies, after the processors."""
    edits: list[Edit] = []
    if decoding.temperature != 1.0:
        edits.append(temperature(decoding.temperature))
    if decoding.top_k > 0:
        edits.append(top_k(decoding.top_k))
    if decoding.top_p < 1.0:
        edits.append(top_p(decoding.top_p))
    return chain(edits)


def chain(edits: Sequence[Edit]) -> Processor:
    """One processor that applies `edits` in order; without any it returns the scores themselves."""

    def process(tokens: Integers, scores: Floats) -> Floats:
        if not edits:
            return scores
        out = scores.copy()
        for edit in edits:
            edit(tokens, out)
        return out

    return process


def repetition_penalty(penalty: float) -> Edit:
    """Divide positive and multiply negative scores of tokens seen before (`RepetitionPenaltyLogitsProcessor`)."""

    def penalise(tokens: Integers, scores: Floats) -> None:
        places = np.arange(len(tokens))[:, None], tokens
        seen = scores[places]
        scores[places] = np.where(seen < 0, seen * penalty, seen / penalty)

    return penalise


def no_repeat_ngram(size: int) -> Edit:
    """Ban tokens that would complete an n-gram that is there already (`NoRepeatNGramLogitsProcessor`)."""

    def ban(tokens: Integers, scores: Floats) -> None:
        length = tokens.shape[1]
        if length < size:
            return
        grams = np.lib.stride_tricks.sliding_window_view(tokens, size, axis=1)  # [B, length - size + 1, size]
        begun = tokens[:, None, length - size + 1 :]  # [B, 1, size - 1]
        repeats = (grams[:, :, :-1] == begun).all(axis=2)
        for row, repeat in enumerate(repeats):
            scores[row, grams[row, repeat, -1]] = -np.inf

    return ban


def min_new_tokens(least: int, eos_token_id: int) -> Edit:
    """Ban EOS among the first `least` tokens (`MinNewTokensLengthLogitsProcessor`)."""

    def ban(tokens: Integers, scores: Floats) -> None:
        if tokens.shape[1] < least:
            scores[:, eos_token_id] = -np.inf

    return ban


def temperature(value: float) -> Edit:
    """Divide the scores (`TemperatureLogitsWarper`)."""

    def divide(tokens: Integers, scores: Floats) -> None:
        scores /= np.float32(value)

    return divide


def top_k(count: int) -> Edit:
    """Ban tokens below the `count`-th best score; ties with it stay (`TopKLogitsWarper`)."""

    def ban(tokens: Integers, scores: Floats) -> None:
        kept = min(count, scores.shape[1])
        limit = np.partition(scores, -kept, axis=1)[:, -kept, None]
        scores[scores < limit] = -np.inf

    return ban


def top_p(mass: float) -> Edit:
    """Ban the least likely tokens that together have probability `1 - mass` or less (`TopPLogitsWarper`).

    The best token always stays. Of equally likely tokens at the limit the later ids stay; transformers leaves that to
    torch's sort, which differs between machines.
    """

    def ban(tokens: Integers, scores: Floats) -> None:
        order = np.argsort(scores, axis=1, kind="stable")
        probabilities = softmax(np.take_along_axis(scores, order, axis=1))
        # torch sums in double precision and rounds each partial sum.
        cumulative = probabilities.cumsum(axis=1, dtype=np.float64).astype(np.float32)
        banned_sorted = cumulative <= np.float32(1 - mass)
        banned_sorted[:, -1] = False
        banned = np.empty_like(banned_sorted)
        np.put_along_axis(banned, order, banned_sorted, axis=1)
        scores[banned] = -np.inf

    return ban
