"""The child process that parses and decodes: `python -m r2gen_export.studies.dicom.child LIMITS`, driven over pipes.

It has limits on memory, time and files written, leaves no core dump (which would hold the image), and ends with its
parent: its standard input is closed then.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from r2gen_export.studies.dicom.limits import Limits
from r2gen_export.studies.dicom.messages import ClosedError, receive, send

GRACE_SECONDS: Final = 5
"""The parent ends a slow child; the child ends itself so much later, for when the parent is gone."""


def main() -> None:
    """Serve requests until standard input ends."""
    limits = Limits(**json.loads(sys.argv[1]))
    answers = _private_stdout()
    missing = _prepare(limits)
    try:
        with os.fdopen(0, "rb", 0, closefd=False) as requests, os.fdopen(answers, "wb", 0) as stream:
            send(stream, {"missing": missing})
            while not missing and (request := receive(requests)) is not None:
                from r2gen_export.studies.dicom.work import serve

                with _ends_in_time(limits.seconds + GRACE_SECONDS):
                    answer, raw = serve(request[0], limits)
                send(stream, answer, raw)
                if answer.get("last"):
                    return  # after a failed allocation memory is fragmented
    except (ClosedError, OSError):
        return


def _private_stdout() -> int:
    """A descriptor for answers; what libraries print goes nowhere: it may name the patient."""
    answers = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    return answers


def _prepare(limits: Limits) -> str:
    """Import what every file needs, then set the limits. Returns the name of a package that is not installed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.dont_write_bytecode = True
    try:
        import pydicom
        import pydicom.encaps
        import pydicom.filereader

        import r2gen_export.studies.dicom.work  # noqa: F401
    except ModuleNotFoundError as error:
        return (error.name or "pydicom").partition(".")[0]
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    with contextlib.suppress(ImportError):
        import resource

        for limit, value in (
            (resource.RLIMIT_AS, limits.memory_bytes),
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_FSIZE, 0),
        ):
            inherited = [bound for bound in resource.getrlimit(limit) if bound != resource.RLIM_INFINITY]
            lowest = min([value, *inherited])
            with contextlib.suppress(OSError, ValueError):  # macOS has no limit on address space
                resource.setrlimit(limit, (lowest, lowest))
    with contextlib.suppress(OSError):
        # When memory runs out, the kernel ends this process before its parent.
        Path("/proc/self/oom_score_adj").write_text("1000")
    return ""


@contextlib.contextmanager
def _ends_in_time(seconds: float) -> Iterator[None]:
    """End this process after some time, or when its parent ends, also inside a library that does not return.

    Both signals end a process by default, without Python's help.
    """
    watched = hasattr(os, "O_ASYNC")
    if hasattr(signal, "alarm"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM, signal.SIGIO})  # inherited from the parent
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(math.ceil(seconds))
    if watched:
        import fcntl

        signal.signal(signal.SIGIO, signal.SIG_DFL)
        flags = fcntl.fcntl(0, fcntl.F_GETFL)
        fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(0, fcntl.F_SETFL, flags | os.O_ASYNC)
    try:
        yield
    finally:
        if watched:
            fcntl.fcntl(0, fcntl.F_SETFL, flags)
        if hasattr(signal, "alarm"):
            signal.alarm(0)


if __name__ == "__main__":
    main()
