"""One thread for every call to a GPU.

ONNX Runtime keeps CUDA graphs and handles of cuBLAS for each thread that runs a session, and does not free them while
graphs are in use: a thread for each report would leave its own behind and capture everything again.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

Calls = queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None]


class Worker:
    """A thread that runs what it is given, one call after the other, until nobody holds the worker any more."""

    def __init__(self) -> None:
        self._calls: Calls = queue.SimpleQueue()
        self._thread = threading.Thread(target=_work, args=(self._calls,), daemon=True, name="r2gen-gpu")
        self._thread.start()
        weakref.finalize(self, self._calls.put, None)

    def run(self, call: Callable[[], T]) -> T:
        """The result of a call made in the thread; what it raises is raised here."""
        if threading.current_thread() is self._thread:
            return call()
        future: Future[T] = Future()
        self._calls.put((call, future))
        return future.result()


def _work(calls: Calls) -> None:
    while (item := calls.get()) is not None:
        call, future = item
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)
        del item, call, future  # what a call holds goes when it is done, not when the next one comes
