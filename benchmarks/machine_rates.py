"""What this machine can do, measured in the same run as the reports: read bandwidth, matrix rates, a scalar loop.

All of them are the best of several short measurements: a floor may be too low, never too high.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

LARGE: Final = 512 << 20
"""Bytes read for the bandwidth of memory, at least; several times the last-level cache where that is larger."""

ROWS, SIZE = 256, 2048
"""The matrices multiplied: [ROWS, SIZE] by [SIZE, SIZE]."""


@dataclass(frozen=True)
class Rates:
    """`read_gb_s`: 10^9 bytes a second, all threads. Matrix rates: 10^9 operations a second, a multiplication and an
    addition being two. `scalar_mops`: 10^6 turns a second of a loop in Python, which follows the core's clock.
    """

    read_gb_s: float
    gemm_fp32_gops: float
    gemm_int8_gops: float
    scalar_mops: float


@dataclass(frozen=True)
class Machine:
    """The rates at several moments of a run; `threads` each was measured with."""

    threads: int
    moments: tuple[Rates, ...]

    def best(self, name: str) -> float:
        """The highest of the run: what the floors are computed from."""
        return max(float(getattr(one, name)) for one in self.moments)

    def typical(self, name: str) -> float:
        """The median of the run: what tells one run's machine from another's."""
        return median(float(getattr(one, name)) for one in self.moments)

    def spread(self, name: str) -> float:
        """Largest divided by smallest."""
        found = [float(getattr(one, name)) for one in self.moments]
        return max(found) / min(found)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        names = list(Rates.__dataclass_fields__)
        return {
            "threads": self.threads,
            "best": {name: self.best(name) for name in names},
            "typical": {name: self.typical(name) for name in names},
            "spread": {name: self.spread(name) for name in names},
            "moments": [asdict(one) for one in self.moments],
        }


def measure_rates(threads: int) -> Rates:
    """All rates, in about a second."""
    return Rates(
        read_gb_s=read_bandwidth(threads, max(LARGE, 4 * last_level_cache())),
        gemm_fp32_gops=gemm_rate("fp32", threads),
        gemm_int8_gops=gemm_rate("int8", threads),
        scalar_mops=scalar_rate(),
    )


def read_bandwidth(threads: int, size: int, seconds: float = 0.2) -> float:
    """GB/s at which `threads` threads together read `size` bytes again and again, the best pass counts.

    Each thread takes the maximum of its own part: one read of every byte, and little arithmetic.
    """
    parts = [np.ones(max(1024, size // 4 // threads), np.float32) for _ in range(threads)]
    turns = max(1, (64 << 20) // (parts[0].nbytes * threads))  # a small one several times, or the clock is too coarse

    def read(part: NDArray[np.float32]) -> None:
        for _ in range(turns):
            part.max()

    def once() -> None:
        workers = [threading.Thread(target=read, args=(part,)) for part in parts[1:]]
        for one in workers:
            one.start()
        read(parts[0])
        for one in workers:
            one.join()

    return turns * sum(part.nbytes for part in parts) / 1e9 / _best(once, seconds)


def gemm_rate(kind: str, threads: int, seconds: float = 0.1) -> float:
    """10^9 operations a second of a matrix product in ONNX Runtime, `fp32` or `int8` (unsigned by signed)."""
    import onnxruntime

    from benchmarks.onnx_bytes import matmul_model
    from r2gen_export.runtime.backends.ort_session import session_options

    options = session_options()
    options.intra_op_num_threads = threads
    rng = np.random.default_rng(0)
    if kind == "fp32":
        x: NDArray[Any] = rng.random((ROWS, SIZE), np.float32)
        weights: NDArray[Any] = rng.random((SIZE, SIZE), np.float32)
    else:
        x = rng.integers(0, 255, (ROWS, SIZE), dtype=np.uint8)
        weights = rng.integers(-127, 127, (SIZE, SIZE), dtype=np.int8)
    model = matmul_model(x.shape, x.dtype, weights)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return 2 * ROWS * SIZE * SIZE / 1e9 / _best(lambda: session.run(None, {"x": x}), seconds)


def scalar_rate(turns: int = 200_000) -> float:
    """10^6 turns a second of an addition in a loop, on one core."""

    def loop() -> int:
        total = 0
        for number in range(turns):
            total += number & 7
        return total

    return turns / 1e6 / _best(loop, 0.1)


def last_level_cache() -> int:
    """Bytes of the largest cache of the first core, 0 where the system does not say."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        try:
            text = path.read_text(encoding="ascii").strip()
            sizes.append(int(text.rstrip("KMG")) * {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1], 1))
        except (OSError, ValueError):
            continue
    return max(sizes, default=0)


def _best(call: Callable[[], object], seconds: float) -> float:
    """Shortest time of a call in seconds, after one to warm up, of at least three."""
    call()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        started = perf_counter()
        call()
        times.append(perf_counter() - started)
    return min(times)
