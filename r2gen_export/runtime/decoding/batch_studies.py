"""Studies that are being decoded, by themselves or together: what each has written, and how it chooses a token."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from r2gen_export.decoding import Decoding, Semantics
from r2gen_export.runtime.decoding.beam import BeamSearch, beams_of
from r2gen_export.runtime.decoding.processors import make_processors
from r2gen_export.runtime.decoding.sampling import sampler
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


class BatchStudy(ABC):
    """What greedy and beam search have in common.

    Attributes:
        key: what the caller calls it.
        places: its rows of the decoder, [num_beams].
        sources: the rows it goes on from at the next pass, [num_beams]; they are some of `places`.
        passes: milliseconds of each pass it took part in.
        together: most studies in one of them.
        drafted, accepted: as in `Sequence`.
    """

    def __init__(self, key: int, request: Request, places: Integers, *, bos: int, eos: int) -> None:
        self.key, self.places = key, places
        self.sources = np.repeat(places[:1], len(places))
        self.passes: list[float] = []
        self.prefill_ms = 0.0
        self.together = 1
        self.drafted = self.accepted = 0
        self._prompt = int(request.prompt.shape[1])
        self._decoding, self._eos = request.decoding, eos
        self._dummy_bos = bos if request.semantics == "hf-4.30" else None
        self.process = make_processors(request.decoding, eos, self._dummy_bos)

    @property
    @abstractmethod
    def tokens(self) -> Integers:
        """[num_beams, n] int64 so far."""

    @property
    def length(self) -> int:
        """Positions of a row in the cache: the token chosen last is not there yet."""
        return self._prompt + int(self.tokens.shape[1]) - 1

    @property
    @abstractmethod
    def done(self) -> bool:
        """Whether nothing can change any more."""

    @abstractmethod
    def sequence(self) -> Sequence:
        """What was generated."""


class GreedyStudy(BatchStudy):
    """Greedy search and sampling."""

    def __init__(self, key: int, request: Request, places: Integers, *, bos: int, eos: int) -> None:
        super().__init__(key, request, places, bos=bos, eos=eos)
        self._ids = np.zeros((1, request.decoding.max_new_tokens), np.int64)
        self._logprobs: list[float] = []
        self._others: list[tuple[int, float]] = []
        decoding = request.decoding
        self.processed = decoding.repetition_penalty != 1 or decoding.no_repeat_ngram_size > 0
        self.least = decoding.min_new_tokens
        self.draw = sampler(decoding) if decoding.do_sample else None

    @property
    def tokens(self) -> Integers:
        return self._ids[:, : len(self._logprobs)]

    @property
    def done(self) -> bool:
        count = len(self._logprobs)
        return count == self._decoding.max_new_tokens or (count > 0 and bool(self._ids[0, count - 1] == self._eos))

    @property
    def ids(self) -> list[int]:
        """The tokens so far."""
        written: list[int] = self.tokens[0].tolist()
        return written

    @property
    def left(self) -> int:
        """Tokens that may follow."""
        return self._decoding.max_new_tokens - len(self._logprobs)

    def write(self, token_id: int, logprob: float, other: tuple[int, float]) -> TokenEvent:
        """Append a token; `other`: as in `Sequence.others`."""
        step = len(self._logprobs)
        self._ids[0, step] = token_id
        self._logprobs.append(logprob)
        self._others.append(other)
        return TokenEvent(self.key, token_id, logprob, step)

    def sequence(self) -> Sequence:
        ids = self.ids
        return Sequence(
            token_ids=tuple(ids),
            logprobs=tuple(self._logprobs),
            score=None,
            finish_reason="eos" if ids[-1] == self._eos else "length",
            prefill_ms=self.prefill_ms,
            decode_ms=tuple(self.passes),
            drafted=self.drafted,
            accepted=self.accepted,
            together=self.together,
            others=tuple(self._others),
        )


class BeamStudy(BatchStudy):
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


def choose_greedy(studies: list[GreedyStudy], logits: Floats) -> list[TokenEvent]:
    """Choose a token for each study from logits [studies, vocab]."""
    scores = logits
    for row, study in enumerate(studies):
        if study.processed or study.tokens.shape[1] < study.least:
            scores = logits.copy() if scores is logits else scores
            scores[row] = study.process(study.tokens, logits[row : row + 1])[0]
    chosen: Integers = scores.argmax(axis=1)
    for row, study in enumerate(studies):
        if study.draw is not None:
            chosen[row] = study.draw(study.tokens, scores[row : row + 1])
    steps = steps_of_logits(logits, chosen)
    columns = chosen.tolist(), steps["logprob"].tolist(), others_of(steps)
    return [
        study.write(token_id, logprob, other) for study, token_id, logprob, other in zip(studies, *columns, strict=True)
    ]
