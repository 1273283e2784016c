"""The process that makes reports: what a damaged image or the model does to it, the receiving node survives.

Parent and child speak over the child's stdin and stdout: a line of JSON each way, the child's followed by the results'
bytes. Nothing is unpickled, and nothing of the child's stderr is shown: libraries may write names of patients there.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from r2gen_export.errors import CODES, CodedError, InternalError, R2GenError
from r2gen_export.serving.generate import Generator, Job, Made, Written
from r2gen_export.serving.worker_environment import worker_environment
from r2gen_export.system.child_process import failure

LOAD_SECONDS = 600
MOST_LINE_BYTES = 1 << 20
MOST_RESULT_BYTES = 256 << 20


class WorkerDiedError(Exception):
    """The process ended, or had to be ended because it took too long, while it worked."""


@dataclass(frozen=True)
class WorkerSettings:
    """How reports are made. `threads`: CPU threads of a graph."""

    bundle: str | None = None
    device: str = "auto"
    preset: str | None = None
    threads: int | None = None


class Worker:
    """A warm pipeline in a process of its own, started when it is needed. Used from one thread."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._guard = threading.Lock()
        self._stopped = False

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        """Load the bundle, unless it is loaded.

        Raises:
            R2GenError: what loading raises.
            WorkerDiedError: it died of it.
        """
        if self.pid is not None:
            return
        environment = worker_environment(self._settings.bundle, self._settings.device)
        with self._guard:
            if self._stopped:
                raise WorkerDiedError
            self._process = subprocess.Popen(
                [sys.executable, "-m", "r2gen_export.serving.worker", json.dumps(asdict(self._settings))],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
            )  # fmt: skip
        self._answer(time.monotonic() + LOAD_SECONDS)

    def make(self, job: Job, seconds: float) -> Made:
        """The results of one study.

        Raises:
            R2GenError, InternalError: there is no report of this study.
            WorkerDiedError: the process died, or took more than so many seconds and was ended.
        """
        self.start()
        assert self._process is not None and self._process.stdin is not None
        line = json.dumps({"paths": [str(path) for path in job.paths], "forms": job.forms,
                           "replaces": {form: str(path) for form, path in job.replaces.items()}})  # fmt: skip
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            self.end()
            raise WorkerDiedError from error
        answer, deadline = self._answer(time.monotonic() + seconds), time.monotonic() + seconds
        written = tuple(
            Written(
                item["form"],
                item["study"],
                item["sop_class"],
                item["sop_uid"],
                self._read(int(item["bytes"]), deadline),
            )
            for item in answer["results"]
        )
        return Made(written, answer["timings_ms"], tuple(answer["warnings"]))

    def stop(self) -> None:
        """End the process for good; from any thread. A call of `make` that is under way raises `WorkerDiedError`."""
        with self._guard:
            self._stopped = True
        self.end()

    def interrupt(self) -> None:
        """`stop` for a signal handler, which takes no lock."""
        self._stopped = True
        if (process := self._process) is not None:
            process.kill()

    def end(self) -> None:
        """End the process; the next call of `make` starts another."""
        with self._guard:
            process = self._process
        if process is not None:
            process.kill()
            process.wait()

    def _answer(self, deadline: float) -> Any:
        line = b""
        while not line.endswith(b"\n"):
            line += self._read(1, deadline) if len(line) < MOST_LINE_BYTES else self._died()
        try:
            answer = json.loads(line)
        except ValueError:
            self._died()
        if error := answer.get("error"):
            raise _error(error)
        return answer

    def _read(self, size: int, deadline: float) -> bytes:
        if not 0 <= size <= MOST_RESULT_BYTES:
            self._died()
        assert self._process is not None and self._process.stdout is not None
        pipe, data = self._process.stdout.fileno(), b""
        while len(data) < size:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                self._died()
            try:
                part = os.read(pipe, size - len(data))
            except OSError:
                part = b""
            if not part:
                self._died()
            data += part
        return data

    def _died(self) -> Any:
        self.end()
        raise WorkerDiedError


def _error(fields: Any) -> CodedError:
    code, message, fix = str(fields["code"]), str(fields["message"]), str(fields["fix"])
    return R2GenError(code, message, fix) if code in CODES and code != "R2G-INTERNAL" else InternalError(message)


def main(arguments: Sequence[str]) -> None:
    """The child: loads the bundle, says so, and answers jobs until its stdin ends."""
    parent = os.getppid()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the answers
    try:
        generator = Generator(**json.loads(arguments[0]))
    except Exception as error:
        _say_error(answers, error)
        return
    _say(answers, {"ready": True})
    for line in sys.stdin.buffer:
        fields = json.loads(line)
        paths = tuple(Path(path) for path in fields["paths"])
        replaces = {form: Path(path) for form, path in fields["replaces"].items()}
        try:
            made = generator.make(Job(paths, tuple(fields["forms"]), replaces))
        except Exception as error:
            _say_error(answers, error)
            continue
        results = [
            {
                "form": at.form,
                "study": at.study_uid,
                "sop_class": at.sop_class,
                "sop_uid": at.sop_uid,
                "bytes": len(at.data),
            }
            for at in made.results
        ]
        _say(
            answers,
            {"results": results, "timings_ms": made.timings_ms, "warnings": made.warnings},
            *(at.data for at in made.results),
        )


def _end_with(parent: int) -> None:
    """A report for a node that was killed is for nobody, and its successor needs the memory."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _say(answers: IO[bytes], fields: dict[str, Any], *data: bytes) -> None:
    answers.write(json.dumps(fields).encode() + b"\n")
    for part in data:
        answers.write(part)
    answers.flush()


def _say_error(answers: IO[bytes], error: Exception) -> None:
    from r2gen_export.runtime.outcome import coded

    _say(answers, failure(coded(error)))


if __name__ == "__main__":
    main(sys.argv[1:])
