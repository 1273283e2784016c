"""The beams of one study as transformers 4.30.2 keeps them (`generation/beam_search.py`, semantics `hf-4.30`).

Four things differ from today's, and each can change the words (docs in `SEMANTICS.md` of this folder):
a dummy BOS stands first and counts as a token; EOS does not count; a hypothesis' score is computed in double
precision; and a study stops when the best candidate of this step, EOS included, cannot beat the worst hypothesis kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from r2gen_export.decoding import Decoding
from r2gen_export.runtime.decoding.sequence import Sequence
from r2gen_export.runtime.decoding.steps import STEP, Steps, others_of, steps_of_beams
from r2gen_export.runtime.decoding.topk import topk

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

VERY_LOW: Final = np.float32(-1.0e9)
"""Score of all beams but the first before the first step: equal beams would choose the same tokens."""

DUMMY_BOS: Final = 1
"""Tokens transformers 4.30 starts from when it is given `inputs_embeds`."""


@dataclass(frozen=True)
class _Hypothesis:
    score: float
    tokens: Integers
    steps: Steps


class Beams430:
    """Running beams and hypotheses of one study, `BeamSearchScorer` with its `BeamHypotheses`.

    Attributes:
        tokens: running beams [num_beams, n] int64, best first, without the dummy BOS.
        parents: which beam of the step before each running beam continues, [num_beams].
        done: nothing can change any more.
    """

    def __init__(self, decoding: Decoding, eos_token_id: int) -> None:
        count = decoding.num_beams
        self._decoding = decoding
        self._eos = eos_token_id
        self.tokens = np.zeros((count, 0), np.int64)
        self.parents = np.arange(count)
        self.done = False
        self._length = 0
        self._steps = np.zeros((count, 0), STEP)
        self._scores = np.full(count, VERY_LOW)
        self._scores[0] = 0
        self._kept: list[_Hypothesis] = []
        self._worst = 1e9

    def advance(self, scores: Floats, raw: Floats) -> None:
        """One step (`BeamSearchScorer.process`, and `finalize` after the last one).

        Args:
            scores: processed log probabilities [num_beams, vocab] of the next token.
            raw: the model's own log probabilities [num_beams, vocab].
        """
        count, vocab = scores.shape
        totals = (scores + self._scores[:, None]).reshape(-1)
        flat = topk(totals, 2 * count)
        parents, chosen = flat // vocab, flat % vocab
        candidates = steps_of_beams(raw, parents, chosen)
        ended = np.flatnonzero(chosen[:count] == self._eos)
        going = np.flatnonzero(chosen != self._eos)[:count]
        # The original looks at candidates in order and stops when the next step's beams are full.
        for rank in ended[ended < going[-1]]:
            parent = parents[rank]
            steps = np.append(self._steps[parent], candidates[rank])
            self._keep(self.tokens[parent], self._eos, steps, totals[flat[rank]])
        length = self.tokens.shape[1] + 1
        self.parents = parents[going]
        self.tokens = np.concatenate([self.tokens[self.parents], chosen[going, None]], axis=1)
        self._steps = np.concatenate([self._steps[self.parents], candidates[going, None]], axis=1)
        self._scores = totals[flat[going]]
        self._length = length
        self.done = self._is_done(float(totals[flat[0]]), length)
        if not self.done and length == self._decoding.max_new_tokens:
            for tokens, steps, score in zip(self.tokens, self._steps, self._scores, strict=True):
                self._keep(tokens, None, steps, score)
            self.done = True

    def _keep(self, tokens: Integers, eos: int | None, steps: Steps, total: np.float32) -> None:
        """`BeamHypotheses.add`: the length counts the dummy BOS and not EOS."""
        count = self._decoding.num_beams
        score = float(total) / (len(tokens) + DUMMY_BOS) ** self._decoding.length_penalty
        if len(self._kept) >= count and not score > self._worst:
            return
        ids = tokens if eos is None else np.append(tokens, eos)
        self._kept.append(_Hypothesis(score, ids, steps))
        if len(self._kept) <= count:
            self._worst = min(score, self._worst)
            return
        ordered = sorted((one.score, index) for index, one in enumerate(self._kept))
        del self._kept[ordered[0][1]]
        self._worst = ordered[1][0]

    def _is_done(self, best_total: float, length: int) -> bool:
        """`BeamHypotheses.is_done`: `length` tokens have been chosen in each running beam."""
        one = self._decoding
        if len(self._kept) < one.num_beams:
            return False
        if one.early_stopping is True:
            return True
        hopeful = one.early_stopping == "never" and one.length_penalty > 0
        longest = one.max_new_tokens if hopeful else length
        attainable: float = best_total / (longest + DUMMY_BOS) ** one.length_penalty
        return self._worst >= attainable

    def best(self, prefill_ms: float, decode_ms: list[float]) -> Sequence:
        """The best hypothesis; of equal ones the last that came."""
        top = max(enumerate(self._kept), key=lambda item: (item[1].score, item[0]))[1]
        ids = tuple(top.tokens.tolist())
        return Sequence(
            token_ids=ids,
            logprobs=tuple(top.steps["logprob"].tolist()),
            score=top.score if math.isfinite(top.score) else float(VERY_LOW),
            finish_reason="eos" if ids and ids[-1] == self._eos else "length",
            prefill_ms=prefill_ms,
            decode_ms=tuple(decode_ms[: self._length - 1]),
            others=tuple(others_of(top.steps)),
        )
