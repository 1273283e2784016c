"""Reports of many studies: in a running batch that studies enter and leave, or in batches that begin and end together.

Which of the two is the decoder's business: rows of different length need a cache that keeps a length for each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from time import perf_counter
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from r2gen_export.errors import CodedError, InternalError
from r2gen_export.reporting.report import Report
from r2gen_export.runtime.decoding.batch import Ended, Progress, RunningBatch
from r2gen_export.runtime.decoding.batch_studies import Request
from r2gen_export.runtime.decoding.sequence import Sequence
from r2gen_export.runtime.outcome import Outcome, coded
from r2gen_export.runtime.pictures import Images, Pictures

AHEAD: Final = 4
"""Reports come in the order of the studies. One that takes long holds up those behind it: so many times the batch size
of them may be unfinished or wait for it, then no further study is begun."""

Numbered = tuple[int, Images]


@dataclass(frozen=True)
class Prepared:
    """One study whose images were read: its pixels [V, 3, H, W], and what it took to get there.

    `started`: when its images began to be read, in seconds of `perf_counter`.
    """

    study: int
    read: Pictures
    pixel_values: NDArray[np.float32]
    preprocess_ms: float
    started: float


Begun = tuple[int, Callable[[], Prepared]]
"""A study's number, and what gives its pixels or raises why there are none."""


@dataclass(frozen=True)
class Encoded:
    """One study on its way: prompt embeddings [1, S, d] and what it took to get there; `started` as in `Prepared`."""

    study: int
    views: int
    prompt: NDArray[np.float32]
    preprocess_ms: float
    encode_ms: float
    inputs: tuple[str, ...]
    warnings: tuple[str, ...]
    started: float


class Stages(Protocol):
    """What a pipeline does for many studies."""

    def prepare(self, number: int, images: Images) -> Prepared:
        """Read the images of a study, in any thread. Errors name the study, here and below."""

    def encode(self, prepared: Prepared) -> Encoded:
        """The prompt of a study."""

    def decode(self, studies: list[Encoded], started: float) -> list[Report]:
        """Reports of studies that begin together."""

    def request(self, study: Encoded) -> Request:
        """What a running batch is asked for."""

    def open_batch(self, studies: int) -> RunningBatch:
        """A running batch with room for so many studies."""

    def report(self, study: Encoded, sequence: Sequence) -> Report:
        """The report of a study that left the running batch."""

    def limit(self) -> int:
        """Most studies that the memory suffices for, as far as is known."""

    def halve(self, studies: int) -> None:
        """Remember that memory did not suffice for so many."""


def with_numbers(numbers: Iterable[int], studies: Iterable[Images]) -> Iterator[Numbered]:
    """The studies with their numbers, by which outcomes are told apart: of two with one number, one would get the
    report of the other.

    Raises:
        InternalError: a number comes twice, or there are fewer than studies.
    """
    given, seen = iter(numbers), set()
    for study in studies:
        number = next(given, None)
        if number is None or number in seen:
            problem = "no number is left for a study" if number is None else f"two studies have the number {number}"
            raise InternalError(problem)
        seen.add(number)
        yield number, study


def encoded(stages: Stages, studies: list[Begun], outcomes: dict[int, Outcome]) -> list[Encoded]:
    """The studies that could be encoded; the others' errors go to `outcomes`."""
    done = []
    for number, prepared in studies:
        try:
            done.append(stages.encode(prepared()))
        except Exception as error:
            outcomes[number] = Outcome(number, error=coded(error))
    return done


def alone(stages: Stages, study: Encoded) -> Outcome:
    """The outcome of a study that is decoded by itself."""
    try:
        return Outcome(study.study, stages.decode([study], study.started)[0])
    except Exception as error:
        return failed(study, error)


def failed(study: Encoded, error: Exception) -> Outcome:
    """The outcome of a study that has no report."""
    return Outcome(study.study, error=coded(error).about(f"study {study.study}"))


def static_batch(stages: Stages, batch: list[Numbered]) -> list[Outcome]:
    """Outcomes of studies that begin together, in their order."""
    started = perf_counter()
    outcomes: dict[int, Outcome] = {}
    ready = encoded(stages, [(number, partial(stages.prepare, number, images)) for number, images in batch], outcomes)
    most = stages.limit()
    waiting = [ready[first : first + most] for first in range(0, len(ready), most)]
    while waiting:
        part = waiting.pop(0)
        try:
            for report in stages.decode(part, started):
                outcomes[report.study] = Outcome(report.study, report=report)
        except Exception as error:
            if len(part) > 1 and out_of_memory(error):
                stages.halve(len(part))
                waiting = [part[: stages.limit()], part[stages.limit() :], *waiting]
                continue
            # One study's NaN must not take the batch with it: decode each alone to find it.
            for study in part:
                outcomes[study.study] = alone(stages, study)
    return [outcomes[number] for number, _ in batch]


def out_of_memory(error: Exception) -> bool:
    """Whether fewer studies at a time may help."""
    return isinstance(error, CodedError) and error.code == "R2G-RESOURCE-MEMORY"


class RunningStudies:
    """Studies that enter a running batch as rows become free. Gives outcomes in the order of the studies.

    Args:
        stages: of the pipeline.
        studies: with their numbers.
        size: most studies decoded together.
        run: makes the calls of encoder and decoder, for a GPU in its own thread.
        ahead: studies whose images are read in a thread while others are decoded; 0 reads them when a row is free.
    """

    def __init__(
        self,
        stages: Stages,
        studies: Iterator[Numbered],
        size: int,
        run: Callable[[Callable[[], None]], None],
        *,
        ahead: int,
    ) -> None:
        self._stages, self._studies, self._size, self._run, self._ahead = stages, studies, size, run, ahead
        self._readers = ThreadPoolExecutor(1, "r2gen-read") if ahead else None
        self._begun: deque[Begun] = deque()
        self._order: deque[int] = deque()
        """Studies that were begun and whose outcome was not given yet."""
        self._outcomes: dict[int, Outcome] = {}
        self._waiting: deque[Encoded] = deque()
        self._running: dict[int, Encoded] = {}
        self._batch: RunningBatch | None = None
        self._capacity = 0
        self._exhausted = False

    def outcomes(self) -> Iterator[Outcome]:
        """Decode until there is an outcome to give, again and again."""
        try:
            while True:
                begun = self._begin()
                if not (begun or self._waiting or self._running):
                    return
                self._run(partial(self._advance, begun))
                while self._order and self._order[0] in self._outcomes:
                    yield self._outcomes.pop(self._order.popleft())
        finally:
            if self._readers is not None:
                self._readers.shutdown(wait=False, cancel_futures=True)

    def _begin(self) -> list[Begun]:
        """The studies to encode now: as many as there are rows without one."""
        free = min(self._size, self._stages.limit()) - len(self._waiting) - len(self._running)
        room = max(0, min(free, AHEAD * self._size - len(self._order) + len(self._begun)))
        missing = max(0, room + self._ahead - len(self._begun))
        for number, images in (more := list(islice(self._studies, missing))):
            prepare = partial(self._stages.prepare, number, images)
            self._begun.append((number, prepare if self._readers is None else self._readers.submit(prepare).result))
        self._order.extend(number for number, _ in more)
        begun = [self._begun.popleft() for _ in range(min(room, len(self._begun)))]
        self._exhausted |= len(more) < missing
        return begun

    def _advance(self, begun: list[Begun]) -> None:
        """Encode, read the prompts of those for which rows are free, and decode one position of all."""
        self._waiting.extend(encoded(self._stages, begun, self._outcomes))
        try:
            if self._batch is None and self._waiting:
                self._capacity = self._room()
                self._batch = self._stages.open_batch(self._capacity)
            while self._waiting and self._batch is not None and self._batch.fits(request := self._next_request()):
                study = self._waiting.popleft()
                self._running[study.study] = study
                self._take(self._batch.add(study.study, request))
            if self._batch is not None:
                self._take(self._batch.step())
        except Exception as error:
            self._recover(error)

    def _room(self) -> int:
        """Studies the batch is opened for: no more than there are, where that is known."""
        most = min(self._size, self._stages.limit())
        return min(most, len(self._waiting) + len(self._begun)) if self._exhausted else most

    def _next_request(self) -> Request:
        return self._stages.request(self._waiting[0])

    def _take(self, progress: Progress) -> None:
        for ended in progress.ended:
            self._outcomes[ended.key] = self._outcome(self._running.pop(ended.key), ended)

    def _outcome(self, study: Encoded, ended: Ended) -> Outcome:
        if ended.error is not None:
            return failed(study, ended.error)
        assert ended.sequence is not None
        try:
            return Outcome(study.study, self._stages.report(study, ended.sequence))
        except Exception as error:
            return failed(study, error)

    def _recover(self, error: Exception) -> None:
        """After an error that is not one study's: begin again with fewer at a time, or decode each alone to find it."""
        studies = list(self._running.values())
        self._running.clear()
        self._batch = None
        tried = len(studies) if len(studies) > 1 else self._capacity
        if out_of_memory(error) and tried > 1:
            self._stages.halve(tried)
            self._waiting.extendleft(reversed(studies))
            return
        if not studies:  # the batch could not be opened
            studies = [self._waiting.popleft()]
        for study in studies:
            self._outcomes[study.study] = alone(self._stages, study)
