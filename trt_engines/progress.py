"""How far a build is, from the backend's own progress monitor."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
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

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins, inside another one or not."""
        with self._lock:
            self._phases[name] = _Phase(name, parent, max(1, steps))
            self._tell(name)

    def step(self, name: str, index: int) -> None:
        """Step `index` of a phase is done."""
        with self._lock:
            if name in self._phases:
                self._phases[name].done = index + 1
                self._tell(name)

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
            progress.step(phase_name, step)
            return True

        def phase_finish(self, phase_name: str) -> None:
            progress.finish(phase_name)

    return Monitor()
