"""A running batch: studies enter at any step, are decoded together, and leave when they end (continuous batching).

Each study has its own settings, length and limit; what it gets does not depend on its neighbours. Greedy search and
sampling take one row of the decoder, beam search `num_beams`. Tokens equal those of `generate.py`, whose batches begin
and end together. (Yu et al., Orca, OSDI 2022: iteration-level scheduling.)
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from r2gen_export.decoding import Decoding, Semantics
from r2gen_export.errors import InternalError, R2GenError
from r2gen_export.interfaces import Embeddings, RowDecoder, RowState, finite_rows, require_finite
from r2gen_export.runtime.decoding.beam import BeamSearch, beams_of
from r2gen_export.runtime.decoding.generate import check_decoding, sampler
from r2gen_export.runtime.decoding.processors import log_softmax, make_processors
from r2gen_export.runtime.decoding.sequence import Sequence, TokenEvent
from r2gen_export.runtime.decoding.steps import others_of, steps_of_logits

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Request:
    """A study to be decoded: its prompt [1, S, d] float32, and how."""

    prompt: Floats
    decoding: Decoding
    semantics: Semantics = "hf-current"

    @property
    def rows(self) -> int:
        """Rows of the decoder it takes."""
        return self.decoding.num_beams

    @property
    def positions(self) -> int:
        """Positions a row of it may come to."""
        return int(self.prompt.shape[1]) + self.decoding.max_new_tokens


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
    ) -> None:
        self._decoder, self._embed_tokens = decoder, embed_tokens
        self._rows, self._positions = rows, positions
        self._bos, self._eos = bos_token_id, eos_token_id
        self._studies: dict[int, _Study] = {}
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
        kind = _Greedy if request.rows == 1 else _Beams
        study: _Study = kind(key, request, places, bos=self._bos, eos=self._eos)
        study.prefill_ms = (perf_counter() - started) * 1000
        self._studies[key] = study
        return self._choose([study], np.repeat(logits, request.rows, axis=0))

    def step(self) -> Progress:
        """Decode one position of every running study, and choose the token behind it.

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
        last = np.zeros((len(rows), 1), np.int64)
        for study in running:
            last[study.places] = study.tokens[:, -1:]
        logits = self._state.advance(self._embed_tokens.lookup(last))
        places = np.concatenate([study.places for study in running])
        in_order = np.array_equal(places, np.arange(len(places)))
        return self._choose(running, logits if in_order else logits[places], started)

    def remove(self, key: int) -> None:
        """Let a study go before its end, if it is still running."""
        self._studies.pop(key, None)

    def _choose(self, studies: list[_Study], logits: Floats, started: float | None = None) -> Progress:
        """Choose the next tokens from logits [rows of the studies, vocab]; `started`: when their pass began."""
        progress = Progress()
        finite = finite_rows(logits)
        going: list[tuple[_Study, slice]] = []
        first = 0
        for study in studies:
            rows = slice(first, first + len(study.places))
            first = rows.stop
            if finite[rows].all():
                going.append((study, rows))
            else:
                progress.ended.append(Ended(study.key, error=_nonfinite(logits[rows])))
        greedy = [(study, rows.start) for study, rows in going if isinstance(study, _Greedy)]
        if greedy:
            chosen = logits if len(greedy) == len(logits) else logits[[row for _, row in greedy]]
            progress.tokens += _choose_greedy([study for study, _ in greedy], chosen)
        for study, rows in going:
            if isinstance(study, _Beams):
                study.advance(log_softmax(logits[rows]))
        elapsed = 0.0 if started is None else (perf_counter() - started) * 1000
        for study, _ in going:
            if started is not None:
                study.passes.append(elapsed)
                study.together = max(study.together, len(studies))
            if study.done:
                progress.ended.append(Ended(study.key, study.sequence()))
        for ended in progress.ended:
            del self._studies[ended.key]
        return progress


class _Study(ABC):
    """What greedy and beam search have in common.

    Attributes:
        key: what the caller calls it.
        places: its rows of the decoder, [num_beams].
        sources: the rows it goes on from at the next pass, [num_beams]; they are some of `places`.
        passes: milliseconds of each pass it took part in.
        together: most studies in one of them.
    """

    def __init__(self, key: int, request: Request, places: Integers, *, bos: int, eos: int) -> None:
        self.key, self.places = key, places
        self.sources = np.repeat(places[:1], len(places))
        self.passes: list[float] = []
        self.prefill_ms = 0.0
        self.together = 1
        self._decoding, self._eos = request.decoding, eos
        self._dummy_bos = bos if request.semantics == "hf-4.30" else None
        self.process = make_processors(request.decoding, eos, self._dummy_bos)

    @property
    @abstractmethod
    def tokens(self) -> Integers:
        """[num_beams, n] int64 so far."""

    @property
    @abstractmethod
    def done(self) -> bool:
        """Whether nothing can change any more."""

    @abstractmethod
    def sequence(self) -> Sequence:
        """What was generated."""


class _Greedy(_Study):
    """Greedy search and sampling."""

    def __init__(self, key: int, request: Request, places: Integers, *, bos: int, eos: int) -> None:
        super().__init__(key, request, places, bos=bos, eos=eos)
        self._ids = np.zeros((1, request.decoding.max_new_tokens), np.int64)
        self._logprobs: list[float] = []
        self._others: list[tuple[int, float]] = []
        decoding = request.decoding
        self.processed = decoding.repetition_penalty != 1 or decoding.no_repeat_ngram_size > 0
        self.least = decoding.min_new_tokens
        self.draw = sampler(decoding, 1) if decoding.do_sample else None

    @property
    def tokens(self) -> Integers:
        return self._ids[:, : len(self._logprobs)]

    @property
    def done(self) -> bool:
        count = len(self._logprobs)
        return count == self._decoding.max_new_tokens or bool(self._ids[0, count - 1] == self._eos)

    def write(self, token_id: int, logprob: float, other: tuple[int, float]) -> TokenEvent:
        """Append a token; `other`: as in `Sequence.others`."""
        step = len(self._logprobs)
        self._ids[0, step] = token_id
        self._logprobs.append(logprob)
        self._others.append(other)
        return TokenEvent(self.key, token_id, logprob, step)

    def sequence(self) -> Sequence:
        ids: list[int] = self.tokens[0].tolist()
        return Sequence(
            token_ids=tuple(ids),
            logprobs=tuple(self._logprobs),
            score=None,
            finish_reason="eos" if ids[-1] == self._eos else "length",
            prefill_ms=self.prefill_ms,
            decode_ms=tuple(self.passes),
            together=self.together,
            others=tuple(self._others),
        )


class _Beams(_Study):
    """Beam search in either semantics."""

    def __init__(self, key: int, request: Request, places: Integers, *, bos: int, eos: int) -> None:
        super().__init__(key, request, places, bos=bos, eos=eos)
        self._search: BeamSearch = beams_of(request.decoding, eos, self._dummy_bos)

    @property
    def tokens(self) -> Integers:
        return self._search.tokens

    @property
    def done(self) -> bool:
        return self._search.done

    def advance(self, raw: Floats) -> None:
        """One step with the model's log probabilities [num_beams, vocab]."""
        first = self.tokens.shape[1] == 0
        self._search.advance(self.process(self.tokens, raw), raw)
        # All beams begin in the row of the one prompt.
        self.sources = np.repeat(self.places[:1], len(self.places)) if first else self.places[self._search.parents]

    def sequence(self) -> Sequence:
        best = self._search.best(self.prefill_ms, self.passes)
        return dataclasses.replace(best, together=self.together)


def _arrange(studies: Iterable[_Study]) -> Integers:
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


def _choose_greedy(studies: list[_Greedy], logits: Floats) -> list[TokenEvent]:
    """Choose a token for each study from logits [studies, vocab]."""
    scores = logits
    for row, study in enumerate(studies):
        if study.processed or study.tokens.shape[1] < study.least:
            scores = logits.copy() if scores is logits else scores
            scores[row] = study.process(study.tokens, logits[row : row + 1])[0]
    chosen: Integers = scores.argmax(axis=1)
    for row, study in enumerate(studies):
        if study.draw is not None:
            chosen[row] = study.draw([0], study.tokens, scores[row : row + 1])[0]
    steps = steps_of_logits(logits, chosen)
    columns = chosen.tolist(), steps["logprob"].tolist(), others_of(steps)
    return [
        study.write(token_id, logprob, other) for study, token_id, logprob, other in zip(studies, *columns, strict=True)
    ]


def _nonfinite(logits: Floats) -> R2GenError:
    try:
        require_finite(logits, "logits")
    except R2GenError as error:
        return error
    raise InternalError("these logits are finite")
