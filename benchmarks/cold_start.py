"""Process start to first text of `r2gen infer`, and to the end of `--help`: `python -m benchmarks.cold_start`.

Every sample is a new process. The clock starts before it is created and stops when the first byte of the streamed
report arrives through a pipe. Files are in the page cache: one process of each kind runs first and is reported apart.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np
from PIL import Image

from r2gen_export.bundle import bundle_path, load_manifest
from r2gen_export.system.cores import available_cores, processor_name
from r2gen_export.system.versions import VERSION, installed_version

R2GEN: Final = (sys.executable, "-c", "from cli import main; main()")
"""What the console script does, without depending on where it is installed."""

PACKAGES: Final = ("numpy", "onnxruntime", "onnxruntime-gpu", "tokenizers", "pillow", "typer", "pydantic")
PICTURE: Final = 1024
"""Height and width in pixels of the radiograph, 8-bit grey."""


@dataclass(frozen=True)
class StartTimes:
    """Milliseconds of one thing. `warm_up_ms` is the first process, which is in none of the other numbers."""

    name: str
    median_ms: float
    samples_ms: tuple[float, ...]
    warm_up_ms: float

    @classmethod
    def measure(cls, name: str, sample: Callable[[], float], runs: int) -> StartTimes:
        """`runs` samples of a function that gives seconds, after one for warming up."""
        warm_up, *samples = (round(sample() * 1000, 1) for _ in range(runs + 1))
        return cls(name, round(statistics.median(samples), 1), tuple(samples), warm_up)


def seconds_to_first_byte(command: Sequence[str]) -> float:
    """Seconds from before the process is created until the first byte of its stdout; the process then ends by itself.

    Raises:
        RuntimeError: the process failed or wrote nothing.
    """
    started = perf_counter()
    with tempfile.TemporaryFile() as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as child:
        assert child.stdout is not None
        first = os.read(child.stdout.fileno(), 1)
        arrived = perf_counter()
        child.stdout.read()
        status = child.wait()
        errors.seek(0)
        message = errors.read().decode(errors="replace")
    if status or not first:
        raise RuntimeError(f"{command[-1]}: exit status {status}\n{message}")
    return arrived - started


def seconds_to_end(command: Sequence[str]) -> float:
    """Seconds until the process has ended.

    Raises:
        CalledProcessError: it failed.
    """
    started = perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return perf_counter() - started


def write_picture(path: Path) -> None:
    """A picture that decodes and compresses like a radiograph: a gradient under noise."""
    shade = np.linspace(40, 200, PICTURE)[:, None] + np.random.default_rng(0).normal(0, 6, (PICTURE, PICTURE))
    Image.fromarray(shade.clip(0, 255).astype(np.uint8)).save(path)


def conditions(bundle: Path) -> dict[str, Any]:
    """What the numbers depend on. Nothing that names the machine."""
    manifest = load_manifest(bundle)
    return {
        "cpu": processor_name(),
        "cores": available_cores(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "r2gen": VERSION,
        "packages": {name: found for name in PACKAGES if (found := installed_version(name)) is not None},
        "model": manifest.model_id,
        "bundle_bytes": sum(entry.size for entry in manifest.files.values()),
        "preset": "fast",
        "picture": f"{PICTURE}x{PICTURE} 8-bit PNG",
    }


def measure(bundle: Path, runs: int) -> list[StartTimes]:
    """All timings on one bundle."""
    with tempfile.TemporaryDirectory() as scratch:
        picture = Path(scratch) / "picture.png"
        write_picture(picture)
        infer = [*R2GEN, "infer", str(picture), "--bundle", str(bundle), "--device", "cpu", "--preset", "fast"]
        return [
            StartTimes.measure("infer, first text", lambda: seconds_to_first_byte([*infer, "--stream"]), runs),
            StartTimes.measure("infer, whole", lambda: seconds_to_end([*infer, "--stream"]), runs),
            StartTimes.measure("--help", lambda: seconds_to_end([*R2GEN, "--help"]), runs),
            StartTimes.measure("infer --help", lambda: seconds_to_end([*R2GEN, "infer", "--help"]), runs),
        ]


def as_text(found: dict[str, Any], timings: Sequence[StartTimes]) -> str:
    """Conditions, then a line per timing."""
    lines = [f"{name}: {value}" for name, value in found.items()]
    for timing in timings:
        samples = " ".join(f"{sample:.0f}" for sample in timing.samples_ms)
        lines.append(
            f"{timing.name}: median {timing.median_ms:.0f} ms of {len(timing.samples_ms)} "
            f"({samples}; warm-up {timing.warm_up_ms:.0f})"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--bundle", type=Path, help="default: $R2GEN_BUNDLE, else the embedded demo bundle")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if options.runs < 1:
        parser.error("--runs: give 1 or more")
    bundle = bundle_path(options.bundle)
    found = conditions(bundle)
    timings = measure(bundle, options.runs)
    if options.json:
        print(json.dumps({"conditions": found, "timings": [asdict(timing) for timing in timings]}, indent=1))
    else:
        print(as_text(found, timings))


if __name__ == "__main__":
    main()
