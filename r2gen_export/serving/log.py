"""Log of the node: one JSON object a line on stderr. Studies appear by their keyed hash, patients not at all."""

from __future__ import annotations

import json
import logging
import os
import select
import sys
import threading
import warnings
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from r2gen_export.errors import CodedError, cause_of


class LineWriter:
    """Writes lines without a buffer: what a full disk does not take must not come later, nor fail again at the end.

    Args:
        cut: the file ends in a part of a line.
    """

    def __init__(self, *, cut: bool = False) -> None:
        self._cut = cut

    def write(self, descriptor: int, line: str) -> None:
        """Append one line. What is left of an earlier one that did not get in as a whole stays a line of its own.

        Raises:
            OSError: the line is not in the file as a whole.
        """
        whole = f"{line}\n".encode()
        data = b"\n" + whole if self._cut else whole
        while data:
            data = data[os.write(descriptor, data) :]
            self._cut = 0 < len(data) < len(whole)


class EventLog:
    """Writes events. What is passed must not come out of a DICOM file, nor out of an exception's own text."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines = LineWriter()

    def __call__(self, event: str, level: str = "info", **fields: str | int | float | None) -> None:
        """One line; a stderr that is closed or full stops nobody.

        Args:
            event: what happened, a fixed word or two.
            level: `info`, `warning` or `error`.
            fields: further members of the object.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "level": level, "event": event, **fields}, ensure_ascii=True)
        with self._lock:
            if sys.stderr is not None:
                with suppress(OSError, ValueError):
                    descriptor = sys.stderr.fileno()
                    # A pipe that nobody reads must not stop the service: its lines are lost.
                    if select.select([], [descriptor], [], 0)[1]:
                        self._lines.write(descriptor, line)

    def failure(self, event: str, error: BaseException, **fields: str | int | float | None) -> None:
        """An error: a coded one with its message, any other by its type and number alone."""
        if isinstance(error, CodedError):
            self(event, "error", code=error.code, reason=error.message, **fields)
        else:
            self(event, "error", reason=cause_of(error), **fields)


def silence_libraries(log: EventLog) -> None:
    """Let pydicom and pynetdicom write nothing, and threads that fail by an exception say so in one line.

    Their messages and warnings hold values of attributes; a traceback may.
    """
    from pynetdicom import _config

    _config.LOG_HANDLER_LEVEL = "none"
    for name in ("pynetdicom", "pydicom"):
        logger = logging.getLogger(name)
        logger.handlers = [logging.NullHandler()]
        logger.propagate = False
        logger.setLevel(logging.CRITICAL + 1)
    warnings.simplefilter("ignore")

    def report(failed: Any) -> None:
        if failed.exc_value is not None and not isinstance(failed.exc_value, SystemExit):
            log.failure("thread failed", failed.exc_value)

    threading.excepthook = report
