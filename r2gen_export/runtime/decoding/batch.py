"""A running batch: studies enter at any step, are decoded together, and leave when they end (continuous batching).

Each study has its own settings, length and limit; what it gets does not depend on its neighbours. Greedy search and
sampling take one row of the decoder, beam search `num_beams`. Tokens equal those of `generate.py`, whose batches begin
and end together. (Yu et al., Orca, OSDI 2022: iteration-level scheduling.) With a drafter one pass verifies several
tokens of a study, as in `speculative.py`, whose word on rounding holds here for all rows of the pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from r2gen_export.errors import InternalError, R2GenError
from r2gen_export.interfaces import Embeddings, RowDecoder, RowState, require_finite
from r2gen_export.runtime.decoding.batch_studies import BatchStudy, BeamStudy, GreedyStudy, Request, choose_greedy
from r2gen_export.runtime.decoding.generate import check_decoding
from r2gen_export.runtime.decoding.processors import log_softmax
from r2gen_export.runtime.decoding.sequence import Sequence, TokenEvent
from r2gen_export.runtime.drafting.drafter import Draft, Drafter

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Ended:
    """A study that has left: exactly one of `sequence` and `error` is set. `key`: as it was added."""

    key: int
    sequence: Sequence | None = None
    error: R2GenError | None = None


@dataclass
class Progress:
    """What a call brought: tokens, of which `row` is the study's key, and studies that ended.

    Beam search gives no tokens before its end.
    """

    tokens: list[TokenEvent] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)


class RunningBatch:
    """Studies decoded together.

    After an error of `add` or `step` other than those `Progress` carries, the batch is of no use any more.

    Args:
        decoder: with `row_lengths`.
        embed_tokens: embeddings of generated ids.
        rows: rows of the decoder there is room for.
        positions: positions each of them has room for, prompt included.
        bos_token_id: what transformers 4.30 starts from beside the prompt.
        eos_token_id: ends a sequence.
        drafter: drafts for greedy search and sampling (see `speculative.py`). Where the decoder has no `wide_rows`,
            for a study that runs by itself.
    """

    def __init__(
        self,
        decoder: RowDecoder,
        embed_tokens: Embeddings,
        *,
        rows: int,
        positions: int,
        bos_token_id: int,
        eos_token_id: int,
        drafter: Drafter | None = None,
    ) -> None:
        self._decoder, self._embed_tokens, self._drafter = decoder, embed_tokens, drafter
        self._rows, self._positions = rows, positions
        self._bos, self._eos = bos_token_id, eos_token_id
        self._studies: dict[int, BatchStudy] = {}
        self._state: RowState | None = None
        self._state_rows = 0

    def __len__(self) -> int:
        """Studies that are running."""
        return len(self._studies)

    def fits(self, request: Request) -> bool:
        """Whether rows are free for it now."""
        return request.rows <= self._rows - sum(len(study.places) for study in self._studies.values())

    def add(self, key: int, request: Request) -> Progress:
        """Read a prompt into free rows and choose its first token. The other studies wait meanwhile.

        A prompt whose logits are not finite ends the study with `R2G-GENERATE-NONFINITE`.

        Args:
            key: what `Progress` calls the study.
            request: what fits (see `fits`).

        Raises:
            R2GenError: `R2G-CONFIG-VALUE` for settings out of range; `R2G-RESOURCE-MEMORY`.
            InternalError: when it does not fit, or the key is in use.
        """
        check_decoding(request.decoding)
        if key in self._studies or not self.fits(request) or request.positions > self._positions:
            raise InternalError(f"{request.rows} rows of {request.positions} positions do not fit the running batch")
        started = perf_counter()
        if self._state is None:
            self._state = self._decoder.open_rows(self._rows, self._positions)
        taken = {place for study in self._studies.values() for place in study.places.tolist()}
        places = np.array([place for place in range(self._rows) if place not in taken][: request.rows])
        logits = self._state.join(request.prompt, int(places[0]))
        self._state_rows = max(self._state_rows, int(places[0]) + 1)
        kind = GreedyStudy if request.rows == 1 else BeamStudy
        study: BatchStudy = kind(key, request, places, bos=self._bos, eos=self._eos)
        study.prefill_ms = (perf_counter() - started) * 1000
        self._studies[key] = study
        going, progress = _finite([study], np.repeat(logits[:, None], request.rows, axis=0))
        progress.tokens += _choose(going, np.repeat(logits, request.rows, axis=0))
        return self._let_go(going, progress)

    def step(self) -> Progress:
        """One pass over every running study: the token behind its last one, and those that drafts bring besides.

        A study whose logits are not finite ends with `R2G-GENERATE-NONFINITE`; the others go on.
        """
        running = list(self._studies.values())
        if not running:
            return Progress()
        assert self._state is not None
        started = perf_counter()
        rows = _arrange(running)
        if len(rows) != self._state_rows or not np.array_equal(rows, np.arange(len(rows))):
            self._state.reorder(rows)
            self._state_rows = len(rows)
        drafts = self._draft(running, len(rows))
        width = 1 + max((len(draft.tokens) for draft in drafts.values()), default=0)
        ids = np.zeros((len(rows), width), np.int64)
        for study in running:
            ids[study.places] = study.tokens[:, -1:]  # also where others have drafts and this one none
            if study.key in drafts:
                ids[study.places, 1 : 1 + len(drafts[study.key].tokens)] = drafts[study.key].tokens
        logits = self._state.advance(self._embed_tokens.lookup(ids))  # [rows, width, vocab]
        going, progress = _finite(running, _rows_of(running, logits))
        progress.tokens += _choose(going, _rows_of(going, logits[:, 0]))
        if width > 1:
            progress.tokens += self._verify(going, drafts, logits)
        elapsed = (perf_counter() - started) * 1000
        for study in going:
            study.passes.append(elapsed)
            study.together = max(study.together, len(running))
        if self._drafter is not None:
            self._drafter.pace.time(ids.size, elapsed)
        return self._let_go(going, progress)

    def remove(self, key: int) -> None:
        """Let a study go before its end, if it is still running."""
        self._studies.pop(key, None)

    def _draft(self, running: list[BatchStudy], rows: int) -> dict[int, Draft]:
        """Drafts by the key of their study: as many as pay in a pass over so many rows, and none without any."""
        if self._drafter is None or (rows > 1 and not self._decoder.wide_rows):
            return {}
        # Every row becomes as long as the widest draft makes it, whether it has one or not.
        room = self._positions - max(study.length for study in running) - 1
        proposals = {
            study.key: self._drafter.draft(study.ids, min(study.left - 1, room))
            for study in running
            if isinstance(study, GreedyStudy)
        }
        count = self._drafter.pace.best([draft.lengths for draft in proposals.values()], rows)
        return {key: draft.first(count) for key, draft in proposals.items() if count and draft.tokens}

    def _verify(self, going: list[BatchStudy], drafts: Mapping[int, Draft], logits: Floats) -> list[TokenEvent]:
        """Choose tokens behind drafts that are what their study chose, and take all other positions back.

        Args:
            going: studies whose first token of this pass is chosen.
            drafts: by study.
            logits: [rows, 1 + most drafts, vocab].
        """
        assert self._state is not None and self._drafter is not None
        events: list[TokenEvent] = []
        back = np.full(len(logits), logits.shape[1] - 1)
        trying = [study for study in going if study.key in drafts]
        for study in trying:
            study.drafted += len(drafts[study.key].tokens)
        for place in range(1, logits.shape[1]):
            right: list[BatchStudy] = []
            for study in trying:
                draft = drafts[study.key]
                if len(draft.tokens) < place:
                    continue
                holds = int(study.tokens[0, -1]) == draft.tokens[place - 1]
                self._drafter.pace.tried(draft.lengths[place - 1], holds)
                study.accepted += holds
                if holds and not study.done:
                    back[study.places] -= 1
                    right.append(study)
            if not right:
                break
            events += _choose(right, _rows_of(right, logits[:, place]))
            trying = right
        self._state.take_back(back)
        return events

    def _let_go(self, going: Iterable[BatchStudy], progress: Progress) -> Progress:
        """Studies that failed or are done leave."""
        progress.ended += [Ended(study.key, study.sequence()) for study in going if study.done]
        for ended in progress.ended:
            del self._studies[ended.key]
        return progress


def _arrange(studies: Iterable[BatchStudy]) -> Integers:
    """Rows of the next pass without holes: which row each goes on from, [R]. Rows beyond R move into the holes."""
    running = list(studies)
    places = np.concatenate([study.places for study in running])
    count = len(places)
    rows = np.zeros(count, np.int64)
    if places.max() >= count:
        holes = iter(np.setdiff1d(np.arange(count), places).tolist())
        for study in running:
            study.places = np.array([place if place < count else next(holes) for place in study.places.tolist()])
    for study in running:
        rows[study.places] = study.sources
        study.sources = study.places
    return rows


def _rows_of(studies: list[BatchStudy], values: Floats) -> Floats:
    """The rows of values [rows, ...] that are these studies', in their order: a view where all of them are in order."""
    places = np.concatenate([study.places for study in studies]) if studies else np.zeros(0, np.int64)
    return values if np.array_equal(places, np.arange(len(values))) else values[places]


def _finite(studies: list[BatchStudy], logits: Floats) -> tuple[list[BatchStudy], Progress]:
    """Studies whose logits [rows of the studies, n, vocab] are finite, drafts included, and the ends of the others."""
    going, progress, first = [], Progress(), 0
    for study in studies:
        own = logits[first : first + len(study.places)]
        first += len(own)
        try:
            require_finite(own, "logits")
        except R2GenError as error:
            progress.ended.append(Ended(study.key, error=error))
        else:
            going.append(study)
    return going, progress


def _choose(studies: list[BatchStudy], logits: Floats) -> list[TokenEvent]:
    """Choose the next token of each study from logits [rows of the studies, vocab]."""
    rows, first = [], 0
    for study in studies:
        rows.append(slice(first, first + len(study.places)))
        first = rows[-1].stop
    events = []
    greedy = [(study, row.start) for study, row in zip(studies, rows, strict=True) if isinstance(study, GreedyStudy)]
    if greedy:
        chosen = logits if len(greedy) == len(logits) else logits[[row for _, row in greedy]]
        events = choose_greedy([study for study, _ in greedy], chosen)
    for study, row in zip(studies, rows, strict=True):
        if isinstance(study, BeamStudy):
            study.advance(log_softmax(logits[row]))
    return events
