"""The parent's side of the child process: it is started when needed, kept between files, and ended when it is slow."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from r2gen_export.studies.dicom.limits import Limits
from r2gen_export.studies.dicom.messages import ClosedError, receive, send

START_SECONDS: Final = 120.0
"""A cold start imports pydicom and numpy, perhaps from a network disk."""

MOST_REQUESTS: Final = 1000
"""A child is replaced after so many files, against memory that libraries do not give back."""


class SlowError(Exception):
    """The child took longer than its limit and was ended."""


class DiedError(Exception):
    """The child ended by itself while it read a file, twice."""


class NotStartedError(Exception):
    """The child does not start, twice."""


class MissingPackageError(Exception):
    """A package without which no DICOM file is read."""

    def __init__(self, package: str) -> None:
        super().__init__(package)
        self.package = package


@dataclass
class Counts:
    """What has happened to the children so far."""

    starts: int = 0
    deaths: int = 0
    slow: int = 0


class ChildProcess:
    """One child process for all threads: a request waits for the one before it. A fork gets a child of its own."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.counts = Counts()
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._requests = 0
        atexit.register(self.close)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytearray]:
        """Send one request to the child and wait for its answer.

        A child that ends by itself is replaced, and the request sent once more: it may have been ended from outside.

        Raises:
            SlowError, DiedError, NotStartedError, MissingPackageError: and the next request finds a new child.
        """
        with self._lock:
            last: Exception = NotStartedError()
            for _ in range(2):
                try:
                    answer = self._exchange(self._ready(), request, self.limits.seconds)
                except NotStartedError as error:
                    last = error
                    continue
                except (ClosedError, OSError) as error:
                    self.counts.deaths += 1
                    self._end()
                    last = DiedError()
                    last.__cause__ = error
                    continue
                except BaseException:
                    self._end()  # an answer that comes later would be taken for that of the next request
                    raise
                self._requests += 1
                if answer[0].get("last") or self._requests >= MOST_REQUESTS:
                    self._end()
                return answer
            raise last

    def close(self) -> None:
        """End the child; a later request starts another."""
        with self._lock:
            self._end()

    def _ready(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._child.poll() is not None:
            self._end()
        if self._child is None:
            try:
                self._child = self._start()
                self.counts.starts += 1
                self._requests = 0
                hello, _ = self._exchange(self._child, None, START_SECONDS)
            except (OSError, ClosedError, SlowError) as error:
                self._end()
                raise NotStartedError from error
            if hello.get("missing"):
                self._end()
                raise MissingPackageError(str(hello["missing"]))
        return self._child

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", "r2gen_export.studies.dicom.child", json.dumps(self.limits.as_dict())]
        # The child must import this very package, wherever this process got it from, and nothing from the working
        # directory, which an empty entry stands for: it may hold anything.
        entries = [entry for entry in sys.path if entry]
        root = str(Path(__file__).resolve().parents[3])
        path = os.pathsep.join(entries if root in entries else [root, *entries])
        # OpenBLAS reserves address space for each of its threads.
        environment = {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the parent
        )

    def _exchange(
        self, child: subprocess.Popen[bytes], request: dict[str, Any] | None, seconds: float
    ) -> tuple[dict[str, Any], bytearray]:
        """Send a request, if there is one, and receive an answer; the child is killed when it takes too long."""
        assert child.stdin is not None
        assert child.stdout is not None
        late = threading.Event()

        def kill() -> None:
            late.set()
            child.kill()

        timer = threading.Timer(seconds, kill)
        timer.daemon = True
        timer.start()
        try:
            if request is not None:
                send(child.stdin, request)
            answer = receive(child.stdout)
            if answer is None:
                raise ClosedError
            return answer
        except (ClosedError, OSError) as error:
            if late.is_set():
                self.counts.slow += 1
                raise SlowError from error
            raise
        finally:
            timer.cancel()
            if late.is_set():
                self._end()

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            # A child that waits for a dead network disk cannot be killed; nobody waits for it.
            child.wait(timeout=5)

    def _forget(self) -> None:
        """In a fork: the child belongs to the parent, and its pipes must end with the parent alone."""
        self._lock = threading.Lock()
        self.counts = Counts()
        child, self._child = self._child, None
        if child is not None:
            for stream in (child.stdin, child.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
            child.returncode = 0  # its Popen must not wait for somebody else's child
