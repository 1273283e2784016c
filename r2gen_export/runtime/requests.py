"""Requests that come at any time, each with settings of its own: decoded in a running batch, or alone where they must.

For a service. `many.py` is its counterpart for the studies of one call, which share their settings.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from functools import partial

from r2gen_export.errors import CodedError, InternalError
from r2gen_export.reporting.report import Report
from r2gen_export.runtime.backends.trial_pass import Trial, run_trial, trial_prompt
from r2gen_export.runtime.decoding.batch import Progress, RunningBatch
from r2gen_export.runtime.detokenizer import TextStream
from r2gen_export.runtime.loaded_model import LoadedModel, ModelStages
from r2gen_export.runtime.many import Encoded, Prepared, out_of_memory
from r2gen_export.runtime.outcome import coded
from r2gen_export.runtime.settings import Settings, resolve_settings


@dataclass(frozen=True)
class Piece:
    """Text that became certain for a request."""

    key: int
    text: str


@dataclass(frozen=True)
class Done:
    """A request that has left: exactly one of `report` and `error` is set."""

    key: int
    report: Report | None = None
    error: CodedError | None = None


Event = Piece | Done


@dataclass
class _Item:
    """A request under way. `given`: what its `Piece` events have said; `text`: what its tokens say so far."""

    key: int
    prepared: Prepared
    stages: ModelStages
    stream: TextStream
    study: Encoded | None = None
    given: str = ""
    text: str = ""
    alone: bool = False
    streams: bool = True


class RunningRequests:
    """Requests that are being decoded or wait for it. Used from one thread.

    A request is decoded alone, while no other is, where the decoder keeps one length for all rows or gives a row other
    logits beside others, where it samples (its report must depend on its seed only), and where it needs more rows than
    the batch has.

    Args:
        model: whose reports they are.
        studies: most that are decoded together.
        most_beams, most_tokens: the batch has room for so many studies of so many beams and new tokens each.
    """

    def __init__(self, model: LoadedModel, *, studies: int, most_beams: int, most_tokens: int) -> None:
        self._model = model
        self._studies = model.together(studies, most_beams) if model.decoder.row_lengths else 1
        largest = resolve_settings(model.manifest, overrides={})
        decoding = replace(largest.decoding, num_beams=most_beams, max_new_tokens=most_tokens, do_sample=False)
        self._largest = ModelStages(model, replace(largest, decoding=decoding))
        self._most_beams, self._most_tokens = most_beams, most_tokens
        self._waiting: deque[_Item] = deque()
        self._running: dict[int, _Item] = {}
        self._batch: RunningBatch | None = None
        self._alone: tuple[_Item, Generator[str, None, list[Report]]] | None = None

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self._waiting or self._running or self._alone)

    @property
    def together(self) -> int:
        """Most requests that are decoded together."""
        return min(self._studies, self._model.most)

    @property
    def decoding(self) -> int:
        """Requests that are being decoded."""
        return len(self._running) + (self._alone is not None)

    def add(self, key: int, prepared: Prepared, settings: Settings, *, streams: bool = True) -> None:
        """A request whose images were read; it is begun by a later `step`, in the order of the calls.

        Without `streams` its only `Piece` is an empty one, when its first token is there.
        """
        stages = ModelStages(self._model, settings)
        self._waiting.append(_Item(key, prepared, stages, stages.text_stream(), streams=streams))

    def cancel(self, key: int) -> None:
        """Let a request go, wherever it is; nothing happens when it has ended."""
        self._waiting = deque(item for item in self._waiting if item.key != key)
        if self._running.pop(key, None) is not None and self._batch is not None:
            self._batch.remove(key)
        if self._alone is not None and self._alone[0].key == key:
            generation, self._alone = self._alone[1], None
            self._model.run(generation.close)

    def step(self) -> list[Event]:
        """Begin what may begin, and decode one pass of all that run. What fails is an event of its request."""
        events: list[Event] = []
        self._model.run(partial(self._advance, events))
        return events

    def _advance(self, events: list[Event]) -> None:
        if self._alone is None:
            try:
                self._admit(events)
                if self._batch is not None and self._running:
                    self._take(self._batch.step(), events)
            except Exception as error:
                self._recover(error)
        if self._alone is not None:
            self._go_on_alone(*self._alone, events)

    def _admit(self, events: list[Event]) -> None:
        """Begin the first of those that wait, if there is room: one a step, since the others wait for its prefill."""
        if not self._waiting or len(self._running) >= self.together:
            return
        item = self._waiting[0]
        by_itself = item.alone or self._must_be_alone(item)
        if by_itself and self._running:
            return
        if item.study is None:
            try:
                item.study = item.stages.encode(item.prepared)
            except Exception as error:
                self._waiting.popleft()
                events.append(Done(item.key, error=coded(error)))
                return
        if by_itself:
            self._batch = None
            self._alone = self._waiting.popleft(), item.stages.pieces(item.study)
            return
        if self._batch is None:
            self._batch = self._largest.open_batch(self.together)
        request = item.stages.request(item.study)
        if self._batch.fits(request):
            self._waiting.popleft()
            self._running[item.key] = item
            self._take(self._batch.add(item.key, request), events)

    def _must_be_alone(self, item: _Item) -> bool:
        decoding = item.stages.settings.decoding
        return (
            self.together == 1
            or decoding.do_sample
            or decoding.num_beams > self._most_beams
            or decoding.max_new_tokens > self._most_tokens
        )

    def _take(self, progress: Progress, events: list[Event]) -> None:
        for token in progress.tokens:
            item = self._running[token.row]
            if item.streams:
                self._say(item, item.stream.push(token.token_id), events)
            elif token.step == 0:
                events.append(Piece(item.key, ""))
        for ended in progress.ended:
            item = self._running.pop(ended.key)
            if ended.error is not None:
                events.append(Done(item.key, error=ended.error.about("study 1")))
                continue
            assert ended.sequence is not None and item.study is not None
            try:
                self._finish(item, item.stages.report(item.study, ended.sequence), events)
            except Exception as error:
                events.append(Done(item.key, error=coded(error).about("study 1")))

    def _go_on_alone(self, item: _Item, generation: Generator[str, None, list[Report]], events: list[Event]) -> None:
        try:
            self._say(item, next(generation), events)
        except StopIteration as end:
            self._alone = None
            self._finish(item, end.value[0], events)
        except Exception as error:
            self._alone = None
            events.append(Done(item.key, error=coded(error).about("study 1")))

    def _say(self, item: _Item, piece: str, events: list[Event]) -> None:
        """A piece, less what was said before the request had to begin again."""
        if not item.streams:
            events.extend([] if item.text else [Piece(item.key, "")])
            item.text = piece
            return
        item.text += piece
        if len(item.text) > len(item.given) and item.text.startswith(item.given):
            events.append(Piece(item.key, item.text[len(item.given) :]))
            item.given = item.text

    def _finish(self, item: _Item, report: Report, events: list[Event]) -> None:
        """The rest of the text, all of it with beam search, and the report."""
        if not report.text.startswith(item.given):
            # What a client has been shown cannot be taken back, so it must not be called a report.
            events.append(Done(item.key, error=InternalError("the pieces of a report are not its text")))
            return
        if item.streams and (rest := report.text[len(item.given) :]):
            events.append(Piece(item.key, rest))
        events.append(Done(item.key, report))

    def _recover(self, error: Exception) -> None:
        """After an error that is not one request's: begin again with fewer at a time, or each alone to find it."""
        items = list(self._running.values()) or ([self._waiting.popleft()] if self._waiting else [])
        self._running.clear()
        self._batch = None
        together = self.together
        fewer = out_of_memory(error) and together > 1
        if fewer:
            self._model.halve(together)
        for item in items:
            item.stream, item.text, item.alone = item.stages.text_stream(), "", not fewer
        self._waiting.extendleft(reversed(items))


@dataclass(frozen=True)
class Readiness:
    """What a trial pass over the loaded graphs showed (`trial_pass.Trial`), as plain values."""

    difference: float | None
    tolerance: float
    rows: str = field(default="")


def try_model(model: LoadedModel) -> Readiness:
    """Compare what the loaded graphs compute with the logits that the bundle keeps of its export.

    Raises:
        R2GenError: `R2G-DEVICE-UNAVAILABLE` when they differ.
    """

    def trial() -> Trial:
        embeds = trial_prompt(model.vision, model.embed_tokens, model.manifest.prompt, model.manifest.image)
        return run_trial(embeds, model.decoder, model.embed_tokens, model.manifest)

    # On a GPU the pass was made while loading, with the tolerance of the engine's own precision.
    shown = model.provider.trial or model.run(trial)
    return Readiness(shown.difference, shown.tolerance, shown.rows)
