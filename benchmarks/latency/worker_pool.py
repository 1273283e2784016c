"""The measuring side: processes of one configuration, stopped unless it is their turn."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.latency.settings import BenchSettings, Configuration
from r2gen_export.bundle import load_manifest
from r2gen_export.errors import InternalError, R2GenError
from r2gen_export.runtime.backends.decoders import is_large
from r2gen_export.system.child_process import JsonProcess
from r2gen_export.system.huge_pages import huge_page_environment

ROOT: Final = Path(__file__).parents[2]


class MeasuredProcess:
    """One process. It loads when made; the first `answer` waits for that."""

    def __init__(self, job: dict[str, Any], *, large: bool) -> None:
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        if large:
            environment |= huge_page_environment()  # as `infer` starts itself
        command = [sys.executable, "-m", "benchmarks.latency.worker_process"]
        shown = os.environ.get("R2GEN_DEBUG") == "1"
        self._process = JsonProcess(command, environment=environment, show_errors=shown)
        self.put, self.signal, self.close = self._process.put, self._process.signal, self._process.close
        self.put(job)

    def answer(self) -> dict[str, Any]:
        """Wait for one line.

        Raises:
            R2GenError: what the process failed with; `R2G-RESOURCE-MEMORY` when the system ended it.
        """
        answer = self._process.answer()
        if answer is not None:
            return answer
        status = self._process.wait()
        if status == -signal.SIGKILL:
            message = "a measured process was killed, most likely for want of memory"
            raise R2GenError("R2G-RESOURCE-MEMORY", message, "a smaller --batch or --concurrency, or more memory")
        raise InternalError(f"a measured process ended with status {status}")


class Group:
    """The processes of one configuration that report at the same time. A context manager which ends them."""

    def __init__(self, settings: BenchSettings, configuration: Configuration, studies: Sequence[Sequence[Path]]):
        decoding = configuration.settings
        self.configuration = configuration
        self._count = len(studies)
        self._warmup = settings.warmup
        sources = settings.sources
        job = {
            "engine": configuration.engine,
            "bundle": str(settings.bundle),
            "device": configuration.device,
            "threads": configuration.requested_threads,
            "batch": configuration.batch,
            "draft": settings.draft,
            "preset": decoding.preset,
            "semantics": decoding.semantics,
            "overrides": settings.overrides,
            "studies": [[str(image) for image in study] for study in studies],
            "sources": [str(sources.checkpoint), sources.vision, sources.llm, sources.dtype] if sources else None,
        }
        large = configuration.engine == "r2gen" and is_large(load_manifest(settings.bundle))
        self._workers = [MeasuredProcess(job, large=large) for _ in range(configuration.concurrency)]

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.close()

    def load(self) -> list[dict[str, Any]]:
        """What each process says when it has loaded."""
        return [worker.answer() for worker in self._workers]

    def run(self, round_: int) -> list[dict[str, Any]]:
        """One report, or one batch, from each process at the same time. `round_` 0 is the first warm-up.

        Every process goes through the studies in the same order, so that processes are comparable; those that report
        at the same time take different ones.
        """
        batch = self.configuration.batch
        for place, worker in enumerate(self._workers):
            first = (round_ * len(self._workers) + place) * batch
            worker.put({"studies": [(first + number) % self._count for number in range(batch)]})
        return [worker.answer() for worker in self._workers]

    def stop(self) -> None:
        """Take the processor away from threads that wait spinning."""
        if hasattr(signal, "SIGSTOP"):
            for worker in self._workers:
                worker.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Undo `stop`."""
        if hasattr(signal, "SIGCONT"):
            for worker in self._workers:
                worker.signal(signal.SIGCONT)


def studies_needed(settings: BenchSettings, configurations: Sequence[Configuration]) -> int:
    """Studies after which a process would meet one again."""
    most = max(one.batch * one.concurrency for one in configurations)
    return (settings.warmup + settings.rounds) * most
