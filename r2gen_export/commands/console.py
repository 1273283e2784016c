"""What the commands of `cli.py` share: errors to exit statuses, optional extras, writing to stdout and files."""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, ParamSpec

import typer

from r2gen_export.errors import CodedError, InternalError, R2GenError

if TYPE_CHECKING:
    from rich.progress import Progress

P = ParamSpec("P")

INTERRUPTED: Final = 130
READER_GONE: Final = 141
DEBUG_VARIABLE: Final = "R2GEN_DEBUG"

OWN_PACKAGES: Final = frozenset({"r2gen_export", "trt_engines", "benchmarks", "cli"})


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """A command whose failures become one or two lines on stderr and an exit status; typer sees its signature."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except (typer.Exit, SystemExit):
            raise
        except BaseException as error:
            raise typer.Exit(explain(error)) from None

    return run


def explain(error: BaseException) -> int:
    """Print a failure to stderr, without a traceback unless `R2GEN_DEBUG=1`.

    Returns:
        The exit status: 1 our bug, 2 the user can fix it, 3 parity, 130 interrupted, 141 the reader of stdout has gone.
    """
    if os.environ.get(DEBUG_VARIABLE) == "1":
        traceback.print_exception(error)
    if isinstance(error, BrokenPipeError):
        # Python flushes stdout once more when it exits; let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    if isinstance(error, KeyboardInterrupt):
        say("interrupted")
        return INTERRUPTED
    if not isinstance(error, CodedError):
        first_line = str(error).partition("\n")[0]
        error = InternalError(
            f"{type(error).__name__}: {first_line}", f"run again with {DEBUG_VARIABLE}=1 and report what it prints"
        )
    say(error.render())
    return error.exit_status


def say(line: str) -> None:
    """One line on stderr."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def write_out(text: str) -> None:
    """Text on stdout at once, so that a reader sees it and a full disk is noticed here.

    Raises:
        R2GenError: `R2G-OUTPUT-WRITE`.
        BrokenPipeError: the reader has gone.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        from r2gen_export.atomic import write_error

        raise write_error(Path("stdout"), error) from error


@contextmanager
def output(path: Path | None) -> Iterator[Callable[[str], Any]]:
    """A function that writes text to stdout, or to a file that appears, whole, when the block ends.

    Raises:
        R2GenError: `R2G-OUTPUT-WRITE`.
    """
    if path is None:
        yield write_out
        return
    if path.exists() and not path.is_file():
        raise R2GenError("R2G-OUTPUT-WRITE", f"{path} is not a regular file", "name a file for --out")
    from r2gen_export.atomic import atomic_file

    with atomic_file(path) as scratch, scratch.open("w", encoding="utf-8") as file:
        yield file.write


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Turn a missing package into `R2G-DEPENDENCY-MISSING` that names the extra which brings it."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in OWN_PACKAGES:
            raise
        raise R2GenError(
            "R2G-DEPENDENCY-MISSING",
            f"this command needs {package or 'a package'}, which is not installed ({error})",
            f"pip install 'r2gen[{extra}]'",
        ) from error


def progress_bar() -> Progress:
    """A progress bar on stderr that vanishes when it is done; stdout is left alone."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
