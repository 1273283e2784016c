"""Pieces of a streamed text, on a clock of the test: how many there are depends on how busy a machine is."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from r2gen_export.serving.http_jobs import Job
from r2gen_export.serving.http_worker import PIECES_SECONDS, HttpWorker, HttpWorkerSettings
from tests.helpers.sentinel import PHANTOM
from tests.serving.http_site import demo, demo_pipeline


@pytest.fixture(scope="module")
def pieces() -> list[str]:
    """What the pipeline streams, without the notice."""
    with demo_pipeline().stream(PHANTOM, preset="fast") as stream:
        return list(stream)[:-1]


class Answers(io.StringIO):
    """What a worker writes, and the commands it gets, which end with its first report."""

    def __init__(self, told: dict[str, Any]) -> None:
        super().__init__()
        self.writes: list[list[dict[str, Any]]] = []
        self._told, self._done = told, threading.Event()

    def write(self, lines: str) -> int:
        self.writes.append([json.loads(line) for line in lines.splitlines()])
        if any("report" in answer for answer in self.writes[-1]):
            self._done.set()
        return len(lines)

    def __iter__(self) -> Iterator[str]:
        yield json.dumps(self._told)
        assert self._done.wait(60)


@pytest.mark.parametrize("together", [1, 2, 4, None])
def test_pieces_within_some_milliseconds_are_said_together(
    monkeypatch: pytest.MonkeyPatch, pieces: list[str], together: int | None
) -> None:
    """On a clock that goes on by a part of them with each pass of the decoder; None: that stands still."""
    step = 1.001 * PIECES_SECONDS / together if together else 0.0
    times = (PIECES_SECONDS + number * step for number in itertools.count())
    monkeypatch.setattr("r2gen_export.serving.http_worker.monotonic", lambda: next(times))
    settings = demo_pipeline().settings(preset="fast")
    answers = Answers({"id": 1, "paths": [str(PHANTOM)], "decoding": asdict(settings.decoding), "force": False,
                       "preset": settings.preset, "semantics": settings.semantics, "polarity": "auto",
                       "form": "stream", "streams": True, "pixels": 1 << 24})  # fmt: skip
    HttpWorker(HttpWorkerSettings(str(demo()), "cpu", 1, draft=False), answers).run(answers)
    said = [[answer["text"] for answer in write if "text" in answer] for write in answers.writes]
    assert [text for texts in said for text in texts] == pieces
    first, *later = [len(texts) for texts in said if texts]
    assert first == 2, "the first pass gives the prefill's token and its own"
    assert max(later) == (together or len(pieces) - 2)


def test_pieces_that_wait_together_are_joined() -> None:
    async def joined() -> list[dict[str, Any]]:
        job = Job("id", "owner", "key", Path())
        events = []
        for text in ("The ", "lungs"):
            job.events.put_nowait({"id": 1, "text": text})
            events.append(await job.next_event())
        for event in ({"text": " are"}, {"text": " clear"}, {"text": "."}, {"report": {}}):
            job.events.put_nowait({"id": 1, **event})
        return [*events, await job.next_event(), await job.next_event()]

    assert asyncio.run(joined()) == [
        {"id": 1, "text": "The "},
        {"id": 1, "text": "lungs"},
        {"id": 1, "text": " are clear."},
        {"id": 1, "report": {}},
    ]
