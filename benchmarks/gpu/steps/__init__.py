"""The steps of the GPU check: `steps.run(name, argument, context)`, each in a process of its own.

A step is a function of a `Context` and, where it has one, of its argument; it returns what goes into `gpu.json` under
its name. `{"skipped": REASON}` where the machine has not what it needs.
"""

from __future__ import annotations

import importlib
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

Answer = dict[str, Any]

STEPS: Final = {
    "ceilings": "machine",
    "providers": "machine",
    "binding": "machine",
    "engine_memory": "engine_memory",
    "placement": "bundle",
    "parity": "bundle",
    "command_line": "command_line",
    "reference": "shapes",
    "shape": "shapes",
    "vision": "shapes",
}
"""Every step, and the module its function is in."""


@dataclass(frozen=True)
class Context:
    """What steps share.

    Attributes:
        device: as `--device` has it: `cuda`, or `cpu` to try the check without a GPU.
        work: folder with `bundles/` and `recipes/`.
        scratch: folder for what one step leaves for another; removed at the end.
        imitated: there is no GPU; kernels do nothing.
        answer: file the answer goes to.
    """

    device: str
    work: Path
    scratch: Path
    imitated: bool = False
    answer: Path | None = None

    @cached_property
    def torch_device(self) -> str:
        """Where torch makes weights and runs: `cuda` where it can."""
        import torch

        return "cuda" if self.device == "cuda" and not self.imitated and torch.cuda.is_available() else "cpu"

    @property
    def few(self) -> bool:
        """Whether times mean nothing and a handful of runs will do."""
        return self.device == "cpu" or self.imitated

    def keep(self, answer: Answer) -> None:
        """Write an answer that is not complete yet, so that it survives when the step is ended at its deadline."""
        if self.answer:
            self.answer.write_text(json.dumps(answer), encoding="utf-8")

    def synchronize(self) -> None:
        """Wait until torch's work is done."""
        if self.torch_device == "cuda":
            import torch

            torch.cuda.synchronize()


def run(name: str, argument: str, context: Context) -> Answer:
    """The answer of a step of `STEPS`."""
    function = getattr(importlib.import_module(f"benchmarks.gpu.steps.{STEPS[name]}"), name)
    answer: Answer = function(context, argument) if argument else function(context)
    return answer


def median_ms(work: Callable[[], object], runs: int, context: Context | None = None) -> float:
    """Median milliseconds of `work`; `context` where it leaves torch's work behind that must be waited for."""
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        work()
        if context:
            context.synchronize()
        times.append((time.perf_counter() - started) * 1000)
    return round(statistics.median(times), 4)
