"""How far a build is, from the backend's own progress monitor, and the way Ctrl-C gets into it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

Show = Callable[[float, str], None]
"""Called with the fraction done, 0 to 1, and what is being done."""


@dataclass
class _Phase:
    name: str
    parent: str | None
    steps: int
    done: int = 0


class Progress:
    """Nested phases of a build as one fraction. The backend calls from threads of its own.

    Args:
        show: told whenever something was done.
    """

    def __init__(self, show: Show) -> None:
        self._show = show
        self._phases: dict[str, _Phase] = {}
        self._lock = threading.Lock()
        self._most = 0.0
        self.cancelled = False
        """Set by Ctrl-C; the backend asks after each step whether to go on."""

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins, inside another one or not."""
        with self._lock:
            self._phases[name] = _Phase(name, parent, max(1, steps))
            self._tell(name)

    def step(self, name: str, index: int) -> bool:
        """Step `index` of a phase is done. Whether to go on."""
        with self._lock:
            if name in self._phases:
                self._phases[name].done = index + 1
                self._tell(name)
        return not self.cancelled

    def finish(self, name: str) -> None:
        """A phase ends."""
        with self._lock:
            self._phases.pop(name, None)

    def _tell(self, name: str) -> None:
        # A bar never goes back: phases of one parent may overlap.
        self._most = max(self._most, self._fraction(name))
        self._show(self._most, name)

    def _fraction(self, name: str) -> float:
        """How much of the outermost phase is done when this one is where it is."""
        within = 0.0
        phase = self._phases.get(name)
        while phase is not None:
            within = min(1.0, (phase.done + within) / phase.steps)
            phase = self._phases.get(phase.parent) if phase.parent else None
        return within


def make_monitor(trt: Any, progress: Progress) -> Any:
    """An `IProgressMonitor` of the backend that feeds `progress`. No exception may leave it: C++ calls it."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return progress.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            progress.finish(phase_name)

    return Monitor()


@contextmanager
def interruptible(progress: Progress) -> Iterator[None]:
    """Let Ctrl-C cancel the build at its next step; a second one is raised at once. Main thread only.

    Raises:
        KeyboardInterrupt: at the end of the block, when Ctrl-C came inside it.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return

    def cancel(number: int, frame: FrameType | None) -> None:
        if progress.cancelled:
            before(number, frame)
        progress.cancelled = True

    signal.signal(signal.SIGINT, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if progress.cancelled:
            before(signal.SIGINT, None)
