"""What the exporters of torch and optimum need around them: silence, and no Ctrl-C in the middle of a trace."""

from __future__ import annotations

import contextlib
import io
import logging
import signal
import threading
import warnings
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings, no log records up to WARNING and nothing on stdout inside the block; errors still raise."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)


@contextlib.contextmanager
def interrupt_later() -> Iterator[None]:
    """Hold Ctrl-C back until the block ends; a second one is raised at once. Does nothing outside the main thread.

    torch's tracers are C++ that calls Python: an exception thrown through them is taken for a failed conversion, or
    ends the process with a segmentation fault.

    Raises:
        KeyboardInterrupt: at the end of the block, when Ctrl-C came inside it.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    held = False

    def hold(number: int, frame: FrameType | None) -> None:
        nonlocal held
        if held:
            before(number, frame)
        held = True

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if held:
            before(signal.SIGINT, None)
