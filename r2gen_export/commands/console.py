"""What the commands of `cli.py` share: errors to exit statuses, optional extras, writing to stdout and files."""

from __future__ import annotations

import codecs
import contextlib
import functools
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TextIO

import typer

from r2gen_export.errors import CodedError, InternalError, R2GenError, cause_of
from r2gen_export.system.interrupts import Terminated, signals_held, termination_raises
from r2gen_export.system.memory import is_out_of_host_memory, out_of_host_memory

if TYPE_CHECKING:
    from rich.progress import Progress

    from r2gen_export.studies.study import StudyList

P = ParamSpec("P")

INTERRUPTED: Final = 130
READER_GONE: Final = 141
DEBUG_VARIABLE: Final = "R2GEN_DEBUG"


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """A command whose failures become one or two lines on stderr and an exit status; typer sees its signature.

    SIGTERM and SIGHUP are failures as well, so that whoever has a scratch folder removes it.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with termination_raises():
                command(*args, **kwargs)
        except (typer.Exit, SystemExit):
            raise
        except BaseException as error:
            raise typer.Exit(explain(error)) from None

    return run


def explain(error: BaseException) -> int:
    """Print a failure to stderr, without a traceback unless `R2GEN_DEBUG=1`. The one place where exceptions are shown.

    Our own errors name no study but by its number. Of any other exception only the type and the system's text for its
    errno are printed, never its own text: that of an `OSError` holds the file's path, which may identify a patient.

    Returns:
        The exit status: 1 our bug, 2 the user can fix it, 3 a gate, 4 some studies failed, 130 interrupted, 128 + n for
        signal n, 141 the reader of stdout has gone.
    """
    if os.environ.get(DEBUG_VARIABLE) == "1":
        say(f"{DEBUG_VARIABLE}=1: the traceback may hold names of files, which may identify patients")
        traceback.print_exception(error)
    if isinstance(error, BrokenPipeError):
        _abandon(sys.stdout)
        return READER_GONE
    if isinstance(error, KeyboardInterrupt):
        say("interrupted")
        return INTERRUPTED
    if isinstance(error, Terminated):
        say(f"ended by {signal.Signals(error.number).name}")
        return 128 + error.number
    if not isinstance(error, CodedError) and is_out_of_host_memory(error):
        error = out_of_host_memory("this command needs more", type(error).__name__)
    if not isinstance(error, CodedError):
        fix = f"run again with {DEBUG_VARIABLE}=1 and report what it prints, without names of patients"
        error = InternalError(cause_of(error), fix)
    say(error.render())
    return error.exit_status


def say(line: str) -> None:
    """One line on stderr; a stderr that is closed or full costs no report."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        _abandon(sys.stderr)


def say_passed_over(studies: StudyList, *, quiet: bool = False) -> None:
    """What the arguments hold and is not read, on stderr; `quiet`: only what may hold images."""
    for warning in studies.warnings:
        say(f"WARNING {warning}")
    for remark in () if quiet else studies.remarks:
        say(remark)


def write_out(text: str) -> None:
    """Text on stdout at once, so that a reader sees it and a full disk is noticed here.

    What the encoding of stdout lacks is written as an escape like `\\u2265`, and stderr says so once.

    Raises:
        R2GenError: `R2G-OUTPUT-WRITE`.
        BrokenPipeError: the reader has gone.
    """
    _at_once(lambda stdout: stdout.write(_encodable(text)))


def write_bytes(data: bytes) -> None:
    """As `write_out`, for bytes."""
    _at_once(lambda stdout: (stdout.flush(), stdout.buffer.write(data)))


def _at_once(write: Callable[[TextIO], Any]) -> None:
    if sys.stdout is None:
        raise R2GenError("R2G-OUTPUT-WRITE", "stdout is closed", "name a file with --out, or leave stdout open")
    try:
        with signals_held():
            write(sys.stdout)
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise unwritable(error) from error


def unwritable(error: OSError) -> R2GenError:
    """The error for a stdout that cannot be written (full, closed), to which nothing more is written then."""
    from r2gen_export.system.files import write_error

    _abandon(sys.stdout)
    return write_error(Path("stdout"), error)


def _encodable(text: str) -> str:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        if codecs.lookup(encoding).name != "utf-8":  # which lacks nothing but the bytes of names that are no text
            _warn_of_encoding(encoding)
        return text.encode(encoding, "backslashreplace").decode(encoding)
    return text


@functools.cache
def _warn_of_encoding(encoding: str) -> None:
    say(
        f"WARNING stdout is {encoding}, which lacks characters of this text; they are written as \\uNNNN "
        "(PYTHONIOENCODING=utf-8 keeps them)"
    )


def _abandon(stream: TextIO) -> None:
    """Let what is left of a stream go nowhere: Python flushes it once more at exit, and would fail there."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def open_streams() -> None:
    """Give descriptors 0 to 2 that are closed (`2>&-`) to the null device, before a file of ours gets their number.

    stdin and stdout are opened so that using them fails; what is written to stderr vanishes.
    """
    for number, name, flags in ((0, "stdin", os.O_WRONLY), (1, "stdout", os.O_RDONLY), (2, "stderr", os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                os.open(os.devnull, flags)  # takes the lowest number that is free, which is this one
                if name != "stdin":
                    setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115
    # For what does not go through `write_out` and `say`, such as help pages, tables and progress bars.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if isinstance(sys.stderr, io.TextIOWrapper):
        encoding = sys.stderr.encoding
        sys.stderr = _Stderr(sys.stderr.detach(), encoding=encoding, errors="backslashreplace", line_buffering=True)


class _Stderr(io.TextIOWrapper):
    """stderr, silent once it cannot be written."""

    def write(self, text: str) -> int:
        """As `TextIOWrapper.write`; never fails."""
        try:
            return super().write(text)
        except OSError:
            _abandon(self)
            return len(text)

    def flush(self) -> None:
        """As `TextIOWrapper.flush`; never fails."""
        try:
            super().flush()
        except OSError:
            _abandon(self)


def check_output(path: Path | None, *, overwrite: bool, resumable: bool = True) -> None:
    """Refuse, before any work, an output file that is there already or cannot be one.

    `resumable`: the command has --resume, which the message then names.

    Raises:
        R2GenError: `R2G-OUTPUT-WRITE`, `R2G-OUTPUT-EXISTS`.
    """
    if path is None:
        return
    from r2gen_export.system.files import OUT_FILE, partial_path

    if path.exists() and not path.is_file():
        raise R2GenError("R2G-OUTPUT-WRITE", f"{OUT_FILE} is not a regular file", "name another file")
    for there, what in ((path, ""), (partial_path(path), ", with reports of a run that was stopped")):
        if there.exists() and not overwrite:
            message = f"{OUT_FILE} is there already{what}"
            options = "--resume or --overwrite" if resumable else "--overwrite"
            raise R2GenError("R2G-OUTPUT-EXISTS", message, f"name another file, or add {options}")


@contextmanager
def output(path: Path | None) -> Iterator[Callable[[str], Any]]:
    """A function that writes text to stdout, or to a file: `FILE.partial`, which becomes `FILE` when the block ends.

    Raises:
        R2GenError: `R2G-OUTPUT-WRITE`.
    """
    if path is None:
        yield write_out
        return
    from r2gen_export.system.files import growing_file

    with growing_file(path) as append:
        yield append


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A progress bar on stderr, where that is a terminal, that vanishes when it is done; stdout is left alone."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        disable=not console.is_terminal,
    )
    with bar:
        yield bar
