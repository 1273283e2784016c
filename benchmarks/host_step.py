"""What the host does between two passes of the decoder, in time: `python -m benchmarks.host_step`.

The decoder is a stub that has its logits ready, so that a step's time is that of processors, log-softmax, choice of the
tokens and bookkeeping. Logits are random, and rounded to float16 once more, as a float16 graph rounds them: then many
are equal, and beam search has to break ties.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import platform
from collections.abc import Callable
from functools import partial
from statistics import median
from time import perf_counter
from typing import Final

import numpy as np
from numpy.typing import NDArray

from r2gen_export.decoding import Decoding
from r2gen_export.runtime.decoding.generate import generate
from r2gen_export.runtime.decoding.topk import topk

Floats = NDArray[np.float32]

EOS: Final = 2
LOGITS: Final = 8
"""Different logits that take turns; together they fit into a cache as those of a decoder do, which come just then."""

PAPER: Final = Decoding()
SETTINGS: Final = {"greedy, 1 row": dataclasses.replace(PAPER, num_beams=1), "3 beams": PAPER}


class _Stub:
    """Decoder, its state and the embeddings in one: every pass costs nothing and gives the next logits."""

    def __init__(self, logits: Floats) -> None:
        self._turns = itertools.cycle(logits)
        self._first = logits[0][:1]
        self.logits = self._first

    def prefill(self, inputs_embeds: Floats, room: int) -> _Stub:
        self.logits = self._first
        return self

    def decode(self, embeds: Floats) -> None:
        self.logits = next(self._turns)

    def extend(self, embeds: Floats) -> Floats:
        raise NotImplementedError("nothing is drafted")

    def rollback(self, count: int) -> None:
        raise NotImplementedError("nothing is drafted")

    def reorder(self, rows: NDArray[np.int64]) -> None:
        """The logits are the same whoever the rows were."""

    def lookup(self, ids: NDArray[np.int64]) -> Floats:
        return np.zeros((*ids.shape, 1), np.float32)


def step_times(decoding: Decoding, logits: Floats, reports: int) -> list[float]:
    """Milliseconds of each step of `reports` reports; logits [LOGITS, rows, vocab]."""
    stub = _Stub(logits)
    prompt = np.zeros((1, 1, 1), np.float32)
    times: list[float] = []
    for _ in range(reports + 1):  # the first warms up
        (report,) = generate(stub, stub, prompt, decoding, bos_token_id=1, eos_token_id=EOS)
        times += report.decode_ms
    return times[len(times) // (reports + 1) :]


def call_times(call: Callable[[], object], repeats: int) -> list[float]:
    """Milliseconds of each call."""
    times = []
    for _ in range(repeats + 1):
        started = perf_counter()
        call()
        times.append((perf_counter() - started) * 1000)
    return times[1:]


def line(name: str, times: list[float]) -> str:
    """Median, least and most."""
    return f"{name:<42}{median(times):8.3f}{min(times):8.3f}{max(times):8.3f}   ({len(times)} times)"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--reports", type=int, default=10, help="reports of 120 tokens for each line")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    print(f"vocabulary {options.vocab}, repetition penalty {PAPER.repetition_penalty}, at least {PAPER.min_new_tokens}")
    print(f"tokens; {platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}\n")
    print(f"{'ms':<42}{'median':>8}{'min':>8}{'max':>8}")
    for name, decoding in SETTINGS.items():
        logits = rng.normal(0, 3, (LOGITS, decoding.num_beams, options.vocab)).astype(np.float32)
        logits[..., EOS] = -50  # reports get their full length
        rounded = logits.astype(np.float16).astype(np.float32)
        print(line(f"step, {name}", step_times(decoding, logits, options.reports)))
        print(line(f"step, {name}, float16 logits", step_times(decoding, rounded, options.reports)))

    size = 3 * options.vocab
    values = rng.normal(0, 3, size).astype(np.float32)
    inputs = {"random": values, "float16": values.astype(np.float16).astype(np.float32)}
    inputs |= {"whole numbers": values.round(), "all equal": np.zeros(size, np.float32)}
    inputs |= {"second half -inf": np.where(np.arange(size) < size // 2, values, np.float32(-np.inf))}
    inputs |= {"first half -inf": inputs["second half -inf"][::-1].copy(), "ascending": np.sort(values)}
    for name, array in inputs.items():
        print(line(f"topk, n={size}, k=6, {name}", call_times(partial(topk, array, 6), options.reports)))


if __name__ == "__main__":
    main()
