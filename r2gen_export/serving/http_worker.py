"""The process that writes reports for the HTTP service: reads images, decodes running requests, writes their forms.

It is told and answers in JSON objects, one a line. It opens only files of the service's private folder, and what a
damaged image or a library does to it, the HTTP front survives.

    told:    {"id", "paths", "decoding", "preset", "semantics", "force", "polarity", "form", "streams", "pixels"}   {"cancel": id}
             {"id", "paths", "force", "polarity", "form": "picture", "streams", "pixels"}
    answers: {"ready": {...}}   {"running": n}   {"id", "text"}   {"id", "report", "file"}   {"id", "error"}   {"id", "gone"}
             {"id", "picture"}
"""  # noqa: E501

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, Final, TextIO

from r2gen_export.errors import CodedError, R2GenError, cause_of
from r2gen_export.serving.http_pixels import check_claim
from r2gen_export.serving.http_preview import PICTURE, preview
from r2gen_export.system.child_process import failure, leave_signals_to_parent, open_answers, write_answer

PIECES_SECONDS: Final = 0.004
"""Pieces that follow each other faster are said together: the front, woken for each, would take the decoder's cores."""


@dataclass(frozen=True)
class HttpWorkerSettings:
    """What the process loads, and how much is decoded together (see `RunningRequests`)."""

    bundle: str | None = None
    device: str = "auto"
    threads: int | None = None
    draft: bool | None = None
    studies: int = 8
    most_beams: int = 1
    most_tokens: int = 120


@dataclass(repr=False)
class _Task:
    """A request in this process. `reading`: a thread works for it, and its files are in use."""

    told: Mapping[str, Any]
    reading: bool = True
    cancelled: bool = False
    study: Any = None
    pictures: tuple[Any, ...] = field(default=())


class HttpWorker:
    """A loaded pipeline and its running requests.

    Args:
        settings: what to load.
        answers: where answers go.

    Raises:
        R2GenError: what loading raises; `R2G-DEVICE-UNAVAILABLE` when it computes other logits than the export did.
    """

    def __init__(self, settings: HttpWorkerSettings, answers: TextIO) -> None:
        from r2gen_export.bundle import bundle_sha256
        from r2gen_export.runtime.pipeline import Pipeline
        from r2gen_export.runtime.requests import RunningRequests, try_model

        self._answers, self._lock = answers, threading.Lock()
        # A service learns no drafts: token ids of reports are patient data, and its bundle may be read-only.
        self._model = model = Pipeline.from_bundle(
            settings.bundle,
            device=settings.device,
            threads=settings.threads,
            draft=settings.draft,
            learn=False,
            batch=settings.studies,
        ).model
        trial = try_model(model)
        self._requests = RunningRequests(
            model, studies=settings.studies, most_beams=settings.most_beams, most_tokens=settings.most_tokens
        )
        self._bundle_sha256 = bundle_sha256(model.manifest)
        self._tasks: dict[int, _Task] = {}
        self._inbox: queue.SimpleQueue[Mapping[str, Any] | None] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(1, "r2gen-read")  # the child that reads DICOM ends with its thread
        self._running = 0
        self._pieces: list[Mapping[str, Any]] = []
        self._said = 0.0
        self._say({"ready": {"backend": model.provider.name, "trial": asdict(trial),
                             "together": self._requests.together, "drafts": model.drafter is not None}})  # fmt: skip

    def run(self, commands: TextIO) -> None:
        """Work until the commands end."""
        threading.Thread(target=self._listen, args=(commands,), daemon=True).start()
        while True:
            try:
                told = self._inbox.get(block=self._requests.idle)
            except queue.Empty:
                self._step()
                self._note_running()
                continue
            if told is None:
                return
            self._take(told)
            self._note_running()

    def _listen(self, commands: TextIO) -> None:
        for line in commands:
            self._inbox.put(json.loads(line))
        self._inbox.put(None)

    def _say(self, *answers: Mapping[str, Any]) -> None:
        """Answers in one write, for which the front is woken once."""
        if answers:
            with self._lock:
                self._answers.write("".join(json.dumps(fields) + "\n" for fields in answers))
                self._answers.flush()

    def _take(self, told: Mapping[str, Any]) -> None:
        if "cancel" in told:
            self._cancel(int(told["cancel"]))
        elif "prepared" in told:
            self._prepared(int(told["id"]), told["prepared"])
        elif "written" in told:
            del self._tasks[int(told["id"])]
            self._say(told["written"])
        else:
            key = int(told["id"])
            self._tasks[key] = _Task(told)
            self._threads.submit(self._prepare, key, self._tasks[key])

    def _cancel(self, key: int) -> None:
        task = self._tasks.get(key)
        if task is not None and task.reading:
            task.cancelled = True
            return
        if task is not None:
            self._requests.cancel(key)
            del self._tasks[key]
        self._say({"id": key, "gone": True})

    def _prepare(self, key: int, task: _Task) -> None:
        """In the thread that reads: the study with its pixel values, or the file of a picture. Nothing is read for a
        client that has left meanwhile."""
        from r2gen_export.runtime.outcome import coded

        read = _picture if task.told["form"] == PICTURE else self._read
        try:
            prepared = None if task.cancelled else read(task.told)
        except Exception as error:
            prepared = coded(error)
        self._inbox.put({"id": key, "prepared": prepared})

    def _read(self, told: Mapping[str, Any]) -> Any:
        from r2gen_export.runtime.loaded_model import ModelStages

        paths = [Path(path) for path in told["paths"]]
        for view, path in enumerate(paths, start=1):
            check_claim(path, int(told["pixels"]), f"view {view}")
        dicom = _dicom_settings(told)
        study = _study(paths, dicom)
        if told["form"] in _forms():
            _check_form(told["form"], study)
        return study, ModelStages(self._model, self._settings(told), dicom).prepare(1, study)

    def _settings(self, told: Mapping[str, Any]) -> Any:
        from r2gen_export.decoding import Decoding
        from r2gen_export.runtime.settings import Settings

        return Settings(Decoding(**told["decoding"]), told["preset"], told["semantics"])

    def _prepared(self, key: int, prepared: Any) -> None:
        task = self._tasks[key]
        task.reading = False
        if task.cancelled:
            self._cancel(key)
        elif isinstance(prepared, CodedError):
            del self._tasks[key]
            self._say({"id": key, **failure(prepared)})
        elif task.told["form"] == PICTURE:
            del self._tasks[key]
            self._say({"id": key, "picture": str(prepared)})
        else:
            task.study, ready = prepared
            if task.told["form"] in _forms() and _forms()[task.told["form"]].needs_pictures:
                task.pictures = tuple(picture.pixels for picture in ready.read.pictures)
            self._requests.add(key, ready, self._settings(task.told), streams=bool(task.told["streams"]))

    def _step(self) -> None:
        from r2gen_export.runtime.requests import Piece

        answers, events = self._pieces, self._requests.step()
        for event in events:
            task = self._tasks[event.key]
            if isinstance(event, Piece):
                answers.append({"id": event.key, "text": event.text})
            elif event.error is not None:
                del self._tasks[event.key]
                answers.append({"id": event.key, **failure(event.error)})
            elif task.told["form"] in _forms():
                task.reading = True
                self._threads.submit(self._write, event.key, task, event.report)
            else:
                del self._tasks[event.key]
                assert event.report is not None
                answers.append({"id": event.key, "report": event.report.to_dict(), "file": None})
        now = monotonic()
        if now - self._said >= PIECES_SECONDS or not all(isinstance(event, Piece) for event in events):
            self._pieces, self._said = [], now
            self._say(*answers)

    def _note_running(self) -> None:
        """Say how many requests are decoded, when that has changed."""
        if self._requests.decoding != self._running:
            self._running = self._requests.decoding
            self._say({"running": self._running})

    def _write(self, key: int, task: _Task, report: Any) -> None:
        """In the thread that reads: the report in its form, as a file beside the images."""
        from r2gen_export.reporting.source import Source
        from r2gen_export.reporting.writers import render
        from r2gen_export.runtime.outcome import coded
        from r2gen_export.studies.pixels import grey_levels

        try:
            pictures = tuple(grey_levels(pixels) for pixels in task.pictures)
            data = render(task.told["form"], report, Source(task.study.identity, pictures, self._bundle_sha256))
            path = _write_result(Path(task.told["paths"][0]), data)
            written = {"id": key, "report": report.to_dict(), "file": str(path)}
        except Exception as error:
            written = {"id": key, **failure(coded(error))}
        self._inbox.put({"id": key, "written": written})


def _picture(told: Mapping[str, Any]) -> Path:
    """The file of a picture."""
    path = Path(told["paths"][0])
    check_claim(path, int(told["pixels"]), "the image")
    return _write_result(path, preview(path, _dicom_settings(told)))


def _dicom_settings(told: Mapping[str, Any]) -> Any:
    from r2gen_export.studies.dicom.types import DicomSettings

    return DicomSettings(polarity=told["polarity"], force=bool(told["force"]))


def _write_result(image: Path, data: bytes) -> Path:
    """An answer's file, in the folder of the request's images.

    Raises:
        R2GenError: `R2G-RESOURCE-DISK`.
    """
    path = image.parent / "result"
    try:
        path.write_bytes(data)
    except OSError as error:
        message = f"there is no room for the answer ({cause_of(error)})"
        raise R2GenError("R2G-RESOURCE-DISK", message, "make room on the service's disk") from error
    return path


def _forms() -> Mapping[str, Any]:
    from r2gen_export.reporting.writers import FORMS

    return FORMS


def _check_form(form: str, study: Any) -> None:
    """Refuse, before the report is generated, what cannot be written."""
    from r2gen_export.reporting.source import Source
    from r2gen_export.reporting.writers import check_installed, check_source

    check_installed(_forms()[form])
    check_source(_forms()[form], Source(study.identity, (), ""))


def _study(paths: Sequence[Path], dicom: Any) -> Any:
    """The study of files that a client says are one; DICOM files are checked to be."""
    from r2gen_export.studies.dicom_studies import DicomFile, make_study, read_files
    from r2gen_export.studies.file_kinds import ARCHIVE, DICOM, DICOMDIR, argument_kind
    from r2gen_export.studies.study import Study

    kinds = [argument_kind(path) for path in paths]
    for view, kind in enumerate(kinds, start=1):
        if kind in (ARCHIVE, DICOMDIR):
            what = "a zip archive" if kind == ARCHIVE else "a DICOMDIR"
            raise R2GenError("R2G-IMAGE-FORMAT", f"view {view} is {what}", "send the images of one study")
    files = [DicomFile(path, "", named=True) for path, kind in zip(paths, kinds, strict=True) if kind == DICOM]
    others = tuple(path for path, kind in zip(paths, kinds, strict=True) if kind != DICOM)
    if not files:
        return Study("", others)
    return make_study("", read_files(files, dicom), others, dicom, Counter())


def main(arguments: Sequence[str]) -> None:
    """The child: loads, says so, and works until its stdin ends."""
    leave_signals_to_parent()
    answers = open_answers()
    try:
        worker = HttpWorker(HttpWorkerSettings(**json.loads(arguments[0])), answers)
    except Exception as error:
        from r2gen_export.runtime.outcome import coded

        write_answer(answers, failure(coded(error)))
        return
    worker.run(sys.stdin)
    os._exit(0)  # a thread may still read an image for nobody


if __name__ == "__main__":
    main(sys.argv[1:])
