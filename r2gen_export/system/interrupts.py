"""Signals that end a process, as exceptions; and where an exception must not be raised in the middle of what runs."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Final

TERMINATING: Final = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that end a process unless it says otherwise; Windows has no SIGHUP."""


class Terminated(BaseException):
    """SIGTERM or SIGHUP. Like KeyboardInterrupt no `Exception`: nobody but the command line handles it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def termination_raises() -> Iterator[None]:
    """Inside the block SIGTERM and SIGHUP raise `Terminated`, so that files are closed and put away.

    A signal that is ignored (`nohup`) or handled by somebody else is left alone, and so are processes forked inside the
    block: the signals end them. Does nothing outside the main thread.
    """
    global _process  # noqa: PLW0603
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = [number for number in TERMINATING if signal.getsignal(number) is signal.SIG_DFL]
    if ours:
        _process = os.getpid()
    for number in ours:
        signal.signal(number, _raise_terminated)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


_process = 0
"""The process in which signals raise `Terminated`."""


def _raise_terminated(number: int, _: object) -> None:
    _end_child(number)
    raise Terminated(number)


def _end_child(number: int) -> None:
    """End a forked process (a worker that reads images) as the signal does by default."""
    if number in TERMINATING and os.getpid() != _process:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Hold Ctrl-C, SIGTERM and SIGHUP back until a short block ends, such as the writing of one line.

    A second signal is raised at once: the block may wait for a reader that does not read. Does nothing outside the main
    thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, *TERMINATING)}
    held: list[int] = []

    def hold(number: int, frame: object) -> None:
        held.append(number)
        if len(held) > 1:
            _call(handlers[number], number)

    for number, handler in handlers.items():
        if callable(handler):
            signal.signal(number, hold)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if callable(handler):
                signal.signal(number, handler)
    if held:
        _call(handlers[held[0]], held[0])


def _call(handler: object, number: int) -> None:
    assert callable(handler)
    handler(number, None)


@contextlib.contextmanager
def interrupt_later(word: str = "") -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C back until the block ends; a second one is raised at once. Does nothing outside the main thread.

    So are SIGTERM and SIGHUP where they raise `Terminated`. An error that ends the block is raised as it is, a signal
    that was held back then forgotten.

    For C++ that calls Python: torch's tracers take an exception thrown through them for a failed conversion, or end the
    process with a segmentation fault; `torch.vmap`, with which transformers builds attention masks, fails an assertion.

    Args:
        word: a line for stderr when Ctrl-C is held back, for blocks that take long.

    Yields:
        What a long block calls where it can be left: raises what is held back, if there is anything.

    Raises:
        KeyboardInterrupt, Terminated: at the end of the block, when the signal came inside it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, *TERMINATING)}
    before = {
        number: handler
        for number, handler in handlers.items()
        if handler is _raise_terminated or (number == signal.SIGINT and callable(handler))
    }
    held: list[int] = []

    def release() -> None:
        if held:
            number = held.pop()
            _call(before[number], number)

    def hold(number: int, _: object) -> None:
        _end_child(number)
        release()
        held.append(number)
        if word and number == signal.SIGINT:
            sys.stderr.write(f"{word}\n")

    for number in before:
        signal.signal(number, hold)
    try:
        yield release
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    release()
