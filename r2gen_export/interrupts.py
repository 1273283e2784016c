"""Ctrl-C where an exception must not be raised in the middle of what runs."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def interrupt_later(word: str = "") -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C back until the block ends; a second one is raised at once. Does nothing outside the main thread.

    An error that ends the block is raised as it is, a Ctrl-C that was held back then forgotten.

    For C++ that calls Python: torch's tracers take an exception thrown through them for a failed conversion, or end the
    process with a segmentation fault; `torch.vmap`, with which transformers builds attention masks, fails an assertion.

    Args:
        word: a line for stderr when Ctrl-C is held back, for blocks that take long.

    Yields:
        What a long block calls where it can be left: raises the Ctrl-C that is held back, if there is one.

    Raises:
        KeyboardInterrupt: at the end of the block, when Ctrl-C came inside it.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield lambda: None
        return
    held = False

    def release() -> None:
        nonlocal held
        if held:
            held = False
            before(signal.SIGINT, None)

    def hold(*_: object) -> None:
        nonlocal held
        release()
        held = True
        if word:
            sys.stderr.write(f"{word}\n")

    signal.signal(signal.SIGINT, hold)
    try:
        yield release
    finally:
        signal.signal(signal.SIGINT, before)
    release()
