"""A child process that is told and answers in JSON objects, one a line, over its stdin and stdout; both ends of it.

For work that a process must not do itself: native code that may end it, or that is measured beside others.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from r2gen_export.errors import CodedError, InternalError, R2GenError


class JsonProcess:
    """The parent's end. Who makes one calls `close`."""

    def __init__(
        self, command: Sequence[str | Path], *, environment: Mapping[str, str] | None = None, show_errors: bool = False
    ) -> None:
        """Start it. `show_errors`: its stderr is this process's; else what it writes there is lost."""
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if show_errors else subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env=environment,
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def put(self, fields: Mapping[str, Any]) -> None:
        """Say one line; nothing happens when the process has ended, which the next `answer` tells."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(fields) + "\n")
            self._process.stdin.flush()

    def answer(self) -> dict[str, Any] | None:
        """Wait for one line; None when the process has ended instead.

        Raises:
            R2GenError, InternalError: what the process says it failed with (`failure`).
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            return None
        fields: dict[str, Any] = json.loads(line)
        if error := fields.get("error"):
            if error["code"] == "R2G-INTERNAL":
                raise InternalError(error["message"], error["fix"])
            raise R2GenError(error["code"], error["message"], error["fix"])
        return fields

    def signal(self, number: signal.Signals) -> None:
        """Stop it, or let it go on; nothing when it has ended."""
        if self.runs:
            self._process.send_signal(number)

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def wait(self) -> int:
        """Wait for its end. Returns its exit status, or the negative number of the signal that ended it."""
        return self._process.wait()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def open_answers() -> TextIO:
    """In the child: what was stdout, for answers alone. What native code prints from now on goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def write_answer(answers: TextIO, fields: Mapping[str, Any]) -> None:
    """In the child: one line."""
    answers.write(json.dumps(fields) + "\n")
    answers.flush()


def failure(error: CodedError) -> dict[str, Any]:
    """In the child: the answer that `JsonProcess.answer` raises."""
    return {"error": {"code": error.code, "message": error.message, "fix": error.fix}}


def leave_signals_to_parent() -> None:
    """In the child: Ctrl-C is the parent's business, and on Linux the child ends when the parent does.

    More exactly, when the thread that started it does. A stopped process would not see its stdin close.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform.startswith("linux"):
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
