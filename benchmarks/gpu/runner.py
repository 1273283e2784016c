"""Run steps, each in a process of its own under a deadline, and keep their answers in `gpu.json`."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.gpu.bundles import not_exported
from benchmarks.gpu.plan import Step
from r2gen_export.system.files import atomic_file

Results = dict[str, Any]

LEAST_S: Final = 15
"""Seconds that must be left for a further step."""


@dataclass(frozen=True)
class Machine:
    """Where steps run.

    Attributes:
        device: `cuda` or `cpu`.
        work: folder with `bundles/` and `recipes/`.
        libraries: folder of the imitated CUDA runtime, where one is used.
        packages: folder of packages that come before all others, where some are used.
    """

    device: str
    work: Path
    libraries: Path | None = None
    packages: Path | None = None

    @property
    def kind(self) -> str:
        """`cuda`, `cpu` or `imitated`: answers of one kind are not those of another."""
        return "imitated" if self.libraries else self.device

    def environment(self) -> dict[str, str]:
        """Of a step's process."""
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
        paths = [self.packages, Path(__file__).resolve().parents[2], os.environ.get("PYTHONPATH")]
        environment["PYTHONPATH"] = os.pathsep.join(str(path) for path in paths if path)
        if self.libraries:
            libraries = [str(self.libraries), os.environ.get("LD_LIBRARY_PATH", "")]
            environment["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, libraries))
        return environment


def run_steps(
    machine: Machine,
    steps: Sequence[Step],
    out: Path,
    *,
    deadline: float,
    earlier: Results,
    report: Callable[[str], object],
) -> Results:
    """Run steps in their order.

    Args:
        machine: where.
        steps: what.
        out: folder of `gpu.json`, which is written after each step, and of `log.txt`.
        deadline: in `time.monotonic()`; no further step is begun behind it.
        earlier: answers that hold already, by the keys of their steps.
        report: gets a line for each step.

    Returns:
        Answers by the keys of their steps, behind facts about the run. An answer has `seconds`, and `failed` or
        `skipped` with the reason where there is none.
    """
    results: Results = {
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "device": machine.kind,
        "code": code_version(),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    reasons = not_exported(machine.work / "bundles")
    with tempfile.TemporaryDirectory() as scratch:
        environment = {**machine.environment(), "R2GEN_CACHE": f"{scratch}/cache"}
        for number, step in enumerate(steps, 1):
            results[step.key] = _answer(machine, step, out, deadline, earlier, reasons, Path(scratch), environment)
            write_json(out / "gpu.json", results)
            outcome = results[step.key].get("failed") or results[step.key].get("skipped") or "done"
            report(f"{number}/{len(steps)} {step.key}: {outcome[:160]} ({results[step.key].get('seconds', 0)} s)")
    return results


def _answer(  # noqa: PLR0917
    machine: Machine,
    step: Step,
    out: Path,
    deadline: float,
    earlier: Results,
    reasons: dict[str, str],
    scratch: Path,
    environment: dict[str, str],
) -> dict[str, Any]:
    if step.key in earlier:
        return dict(earlier[step.key])
    if step.name in ("placement", "parity") and step.argument in reasons:
        return {"skipped": reasons[step.argument]}
    left = deadline - time.monotonic()
    if left < LEAST_S:
        return {"failed": "no time left"}
    command = [sys.executable, "-m", "benchmarks.gpu.steps", step.name, *filter(None, [step.argument])]
    command += ["--device", machine.device, "--work", str(machine.work), "--scratch", str(scratch)]
    command += ["--imitated"] if machine.libraries else []
    return _run(command, min(step.seconds, left), environment, out / "log.txt")


def _run(command: list[str], seconds: float, environment: dict[str, str], log: Path) -> dict[str, Any]:
    """The answer a process writes, or why there is none; what it prints goes into the log."""
    with tempfile.TemporaryDirectory() as folder:
        file, started = Path(folder) / "answer.json", time.monotonic()
        with log.open("ab") as output:
            output.write(f"\n== {' '.join(command[3:])}\n".encode())
            output.flush()
            begin = output.tell()
            try:
                done = subprocess.run(
                    [*command, "--answer", str(file)],
                    env=environment,
                    stdout=output,
                    stderr=output,
                    timeout=seconds,
                    check=False,
                )
                outcome = f"status {done.returncode}" if done.returncode else ""
            except subprocess.TimeoutExpired:
                outcome = f"stopped after {seconds:.0f} s"
        answer = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if outcome:
            last = log.read_bytes()[begin:].decode(errors="replace").strip().splitlines()[-2:]
            answer["failed"] = f"{outcome}: {' | '.join(last)[-400:]}"
        return {**answer, "seconds": round(time.monotonic() - started, 1)}


def code_version() -> str:
    """12 hex digits that name the code under check and the check itself."""
    root = Path(__file__).resolve().parents[2]
    return digest(
        file for part in ("r2gen_export", "trt_engines", "benchmarks/gpu") for file in (root / part).rglob("*.py")
    )


def digest(files: Iterable[Path]) -> str:
    """12 hex digits of the content of files."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files))).hexdigest()[:12]


def succeeded(results: Results) -> Results:
    """Answers that need not be asked for again."""
    return {
        key: value
        for key, value in results.items()
        if isinstance(value, dict) and not value.keys() & {"failed", "skipped", "error"}
    }


def write_json(path: Path, value: Any) -> None:
    """Write JSON; a reader sees the old file or the new one."""
    with atomic_file(path) as part:
        part.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
