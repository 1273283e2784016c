"""Beam search, a port of transformers 4.57 `GenerationMixin._beam_search` with each study's beams on their own.

The loop serves `hf-4.30` too, whose beams are in `beam_430.py`.

With one EOS id transformers' batch rows share nothing but the loop, so each study here is a `_Beams` that stops by
itself and leaves the decoder's batch. Arithmetic is float32 in the order of the original, down to its -1e9.
"""

from __future__ import annotations

from time import perf_counter
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from r2gen_export.decoding import Decoding
from r2gen_export.interfaces import Decoder, Embeddings
from r2gen_export.runtime.decoding.beam_430 import Beams430
from r2gen_export.runtime.decoding.processors import log_softmax, make_processors
from r2gen_export.runtime.decoding.sequence import Sequence
from r2gen_export.runtime.decoding.steps import STEP, Steps, others_of, steps_of_beams
from r2gen_export.runtime.decoding.topk import topk

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

VERY_LOW: Final = np.float32(-1.0e9)
"""What transformers adds to the score of a candidate that must not be chosen."""


def beam_search(
    decoder: Decoder,
    embed_tokens: Embeddings,
    prompt_embeds: Floats,
    decoding: Decoding,
    *,
    eos_token_id: int,
    dummy_bos: int | None,
) -> list[Sequence]:
    """The best sequence of each study; arguments as in `generation.generate`, with `num_beams` above 1.

    `dummy_bos`: the id transformers 4.30 starts from; None for today's beams.
    """
    process = make_processors(decoding, eos_token_id, dummy_bos)
    count = decoding.num_beams
    studies = [beams_of(decoding, eos_token_id, dummy_bos) for _ in prompt_embeds]
    running = studies
    started = perf_counter()
    state = decoder.prefill(prompt_embeds, decoding.max_new_tokens)
    prefill_ms = (perf_counter() - started) * 1000
    decode_ms: list[float] = []
    # All beams of a study begin with its one prompt: they part when the first tokens have been chosen.
    raw = np.repeat(log_softmax(state.logits), count, axis=0)  # [R * count, vocab]
    places = np.repeat(np.arange(len(running)), count).reshape(-1, count)  # row of the decoder each beam stands in
    while True:
        started = perf_counter()
        scores = process(np.concatenate([one.tokens for one in running]), raw)
        for index, one in enumerate(running):
            beams = slice(index * count, (index + 1) * count)
            one.advance(scores[beams], raw[beams])
        kept = [index for index, one in enumerate(running) if not one.done]
        if not kept:
            break
        rows = np.concatenate([places[index][running[index].parents] for index in kept])
        if not np.array_equal(rows, np.arange(len(state.logits))):
            state.reorder(rows)
        running = [running[index] for index in kept]
        last = np.concatenate([one.tokens[:, -1:] for one in running])
        state.decode(embed_tokens.lookup(last))
        raw = log_softmax(state.logits)
        places = np.arange(len(rows)).reshape(-1, count)
        decode_ms.append((perf_counter() - started) * 1000)
    return [one.best(prefill_ms, decode_ms) for one in studies]


class BeamSearch(Protocol):
    """The beams of one study, in either semantics.

    Attributes:
        tokens: running beams [num_beams, n] int64, best first.
        parents: which beam of the step before each running beam continues, [num_beams].
        done: nothing can change any more.
    """

    tokens: Integers
    parents: Integers
    done: bool

    def advance(self, scores: Floats, raw: Floats) -> None:
        """One step, with processed and with the model's own log probabilities [num_beams, vocab]."""

    def best(self, prefill_ms: float, decode_ms: list[float]) -> Sequence:
        """The best sequence, with the times of its prompt and passes."""


def beams_of(decoding: Decoding, eos_token_id: int, dummy_bos: int | None) -> BeamSearch:
    """The beams of a study that begins; `dummy_bos` as in `beam_search`."""
    return _Beams(decoding, eos_token_id) if dummy_bos is None else Beams430(decoding, eos_token_id)


class _Beams:
    """The running and the finished beams of one study.

    Attributes:
        tokens: running beams [num_beams, n] int64, best first.
        parents: which beam of the step before each running beam continues, [num_beams].
        done: nothing can change any more.
    """

    def __init__(self, decoding: Decoding, eos_token_id: int) -> None:
        count = decoding.num_beams
        self._decoding = decoding
        self._eos = eos_token_id
        self._early = decoding.early_stopping
        self.tokens = np.zeros((count, 0), np.int64)
        self.parents = np.arange(count)
        self.done = False
        self._steps = np.zeros((count, 0), STEP)
        # Beams are equal at first; without this every one of them would choose the same tokens.
        self._scores = np.full(count, VERY_LOW)
        self._scores[0] = 0
        self._finished_tokens = [np.zeros(0, np.int64)] * count
        self._finished_steps = [np.zeros(0, STEP)] * count
        self._finished_scores = np.full(count, VERY_LOW)
        self._finished = np.zeros(count, bool)

    def advance(self, scores: Floats, raw: Floats) -> None:
        """One step.

        Args:
            scores: processed log probabilities [num_beams, vocab] of the next token.
            raw: the model's own log probabilities [num_beams, vocab].
        """
        count, vocab = scores.shape
        totals = (scores + self._scores[:, None]).reshape(-1)
        # Twice as many candidates as beams, so that enough go on when every beam can end.
        flat = topk(totals, 2 * count)
        candidates = totals[flat]
        parents, chosen = np.divmod(flat, vocab)
        tokens = np.concatenate([self.tokens[parents], chosen[:, None]], axis=1)
        steps = np.concatenate([self._steps[parents], steps_of_beams(raw, parents, chosen)[:, None]], axis=1)
        length = tokens.shape[1]
        ends = (chosen == self._eos) | (length >= self._decoding.max_new_tokens)

        going = candidates + ends * VERY_LOW
        best = topk(going, count)
        self.tokens, self._steps, self._scores = tokens[best], steps[best], going[best]
        self.parents = parents[best]

        self._keep_finished(candidates, ends, tokens, steps)
        full = self._early is True and bool(self._finished.all())
        self.done = full or not self._may_improve(length) or bool(ends.all())

    def _keep_finished(self, totals: Floats, ends: NDArray[np.bool_], tokens: Integers, steps: Steps) -> None:
        """Let candidates that end (of the best `num_beams`) take the place of worse finished sequences."""
        count = len(self._finished)
        ending = ends & (np.arange(2 * count) < count)
        scores = totals / np.float32(tokens.shape[1] ** self._decoding.length_penalty)
        merged = np.concatenate([self._finished_scores, scores + ~ending * VERY_LOW])
        best = topk(merged, count)
        self._finished_scores = merged[best]
        self._finished = np.concatenate([self._finished, ending])[best]
        all_tokens, all_steps = [*self._finished_tokens, *tokens], [*self._finished_steps, *steps]
        self._finished_tokens = [all_tokens[index] for index in best]
        self._finished_steps = [all_steps[index] for index in best]

    def _may_improve(self, length: int) -> bool:
        """Whether a running beam may still beat the worst finished one (`_check_early_stop_heuristic`)."""
        penalty = self._decoding.length_penalty
        hopeful = self._early == "never" and penalty > 0
        longest = self._decoding.max_new_tokens if hopeful else length
        best_running = self._scores[0] / np.float32(longest**penalty)
        worst = np.where(self._finished, self._finished_scores.min(), VERY_LOW)
        return bool((best_running > worst).any())

    def best(self, prefill_ms: float, decode_ms: list[float]) -> Sequence:
        """The best sequence. Where bans left no candidate, a beam may have gone on behind EOS: it is cut there."""
        ids: list[int] = self._finished_tokens[0].tolist()
        end = ids.index(self._eos) + 1 if self._eos in ids else len(ids)
        steps = self._finished_steps[0][:end]
        return Sequence(
            token_ids=tuple(ids[:end]),
            logprobs=tuple(steps["logprob"].tolist()),
            score=float(self._finished_scores[0]),
            finish_reason="eos" if self._eos in ids else "length",
            prefill_ms=prefill_ms,
            decode_ms=tuple(decode_ms[: self.tokens.shape[1] - 1]),
            others=tuple(others_of(steps)),
        )
