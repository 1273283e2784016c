"""A build in a process of its own: builders are native code that graphs have ended with a segmentation fault.

That process reads a folder (`order.json`, `model.onnx` and its weights, `timing.cache`) and leaves the plan, its
layers, the new timing cache and `outcome.json` in it; a line of its stdout is a fraction done and what is being done.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from r2gen_export.bundle.manifest_json import decode_fields
from r2gen_export.errors import CodedError, R2GenError
from r2gen_export.system.child_process import leave_signals_to_parent, open_answers
from r2gen_export.system.gpu import gpu
from r2gen_export.system.memory import peak_rss
from trt_engines.backends import Backend, load_backend
from trt_engines.builder import Order, Plan, Toolchain, inspect_plan
from trt_engines.identity import LAYERS, PLAN
from trt_engines.progress import Progress, Show
from trt_engines.store import TIMING_CACHE

ORDER: Final = "order.json"
OUTCOME: Final = "outcome.json"
MODEL: Final = "model.onnx"

INTERVAL_S: Final = 0.1
"""Between two lines of progress."""

NETWORK, INSPECTOR = "network", "engine inspector"
"""Where `layers.json` comes from."""

PROGRAM: Final = (
    "import sys; sys.path[:] = {path!r}; from trt_engines.worker import main; main(sys.argv[1], sys.argv[2])"
)
"""The child inherits sys.path: it must find the same packages."""


@dataclass(frozen=True)
class BuildOutcome:
    """What a build gave beside its files. `error`: code, message and fix when it gave nothing."""

    flags: tuple[str, ...] = ()
    layer_source: str = NETWORK
    peak_rss_bytes: int = 0
    error: tuple[str, ...] = ()


def build_apart(backend: Backend, order: Order, folder: Path, show: Show) -> BuildOutcome:
    """Build the graph in `folder`.

    Args:
        backend: builds it.
        order: what to build.
        folder: holds the graph and the timing cache; receives the plan, `layers.json` and the new timing cache.
        show: told how far it is.

    Raises:
        R2GenError: what `Toolchain.build` raises; `R2G-ENGINE-BUILD` too when the backend ends its process.
        KeyboardInterrupt: Ctrl-C; the builder's process is gone then.
        OSError: when a file cannot be written.
    """
    (folder / ORDER).write_text(json.dumps(dataclasses.asdict(order)), encoding="utf-8")
    command = [sys.executable, "-c", PROGRAM.format(path=sys.path), backend.name, str(folder)]
    with tempfile.TemporaryFile() as noise:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=noise, text=True)
        try:
            _follow(process.stdout, show)
            status = process.wait()
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        if not (folder / OUTCOME).is_file():
            raise _died(backend, status, noise)
    outcome: BuildOutcome = decode_fields(BuildOutcome, json.loads((folder / OUTCOME).read_text(encoding="utf-8")), "")
    if outcome.error:
        raise R2GenError(*outcome.error)
    return outcome


def _follow(lines: IO[str] | None, show: Show) -> None:
    for line in lines or ():
        fraction, _, what = line.rstrip("\n").partition("\t")
        show(float(fraction), what)


def _died(backend: Backend, status: int, noise: IO[bytes]) -> R2GenError:
    how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    noise.seek(0)
    lines = noise.read().decode(errors="replace").strip().splitlines()
    said = f": {lines[-1]}" if lines and status >= 0 else ""
    message = f"{backend.product} {backend.version} ended its own process ({how}) while it built the engine{said}"
    fix = "free memory; then another --precision, or report it"
    return R2GenError("R2G-ENGINE-BUILD", message, fix)


def main(backend: str, folder: str) -> None:
    """The child's side. Ctrl-C is the parent's business; when the parent is gone, so is the reason to go on."""
    leave_signals_to_parent()
    where = Path(folder)
    with open_answers() as channel:
        outcome = _attempt(backend, where, _Teller(channel))
    scratch = where / f"{OUTCOME}.part"
    scratch.write_text(json.dumps(dataclasses.asdict(outcome)), encoding="utf-8")
    scratch.replace(where / OUTCOME)


def _attempt(backend: str, folder: Path, show: Show) -> BuildOutcome:
    try:
        return _build(load_backend(backend), folder, show)
    except CodedError as error:
        return BuildOutcome(error=(error.code, error.message, error.fix))


def _build(backend: Backend, folder: Path, show: Show) -> BuildOutcome:
    order: Order = decode_fields(Order, json.loads((folder / ORDER).read_text(encoding="utf-8")), "")
    tools = Toolchain(backend)
    plan = tools.build(folder / MODEL, order, (folder / TIMING_CACHE).read_bytes(), Progress(show))
    with (folder / PLAN).open("wb") as file:
        file.write(plan.content)
    (folder / TIMING_CACHE).write_bytes(plan.timing_cache)
    peak = peak_rss()
    layers, source = _describe(backend, plan, order)
    (folder / LAYERS).write_text(json.dumps(layers, indent=1) + "\n", encoding="utf-8")
    return BuildOutcome(plan.flags, source, peak)


def _describe(backend: Backend, plan: Plan, order: Order) -> tuple[Any, str]:
    """Layers of the engine where it can be loaded, else of the network it was built from, and which it is."""
    own = gpu()
    fits = own is not None and (not order.capabilities or own.compute_capability in order.capabilities)
    if fits:
        with suppress(R2GenError):  # the plan is built; whoever loads it is told why it does not load here
            return inspect_plan(backend, plan.content), INSPECTOR
    return plan.layers, NETWORK


class _Teller:
    """Writes progress to the parent, a few times a second: a builder has hundreds of thousands of steps."""

    def __init__(self, channel: IO[str]) -> None:
        self._channel, self._last = channel, 0.0

    def __call__(self, fraction: float, what: str) -> None:
        now = time.monotonic()
        if now - self._last < INTERVAL_S:
            return
        self._last = now
        try:
            self._channel.write(f"{fraction:.4f}\t{what}\n")
            self._channel.flush()
        except OSError:
            os._exit(1)  # an exception would have to pass through the builder's C++
