"""What an export will take, said before it starts: memory of its own, disk, time; and which parity gate fits."""

from __future__ import annotations

import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from r2gen_export.errors import R2GenError
from r2gen_export.exporting.settings import Gate
from r2gen_export.precision import PRECISIONS
from r2gen_export.system.memory import anonymous_memory, available_memory

if TYPE_CHECKING:
    from transformers import LlamaConfig


BASE: Final = 1.3e9
"""Bytes of Python with torch, transformers, optimum and ONNX Runtime, and of a Swin-base with its session."""

WHOLE_COPIES: Final = 2.2
"""PyTorch's float32 weights and, after them, the session's packed copy; the first is freed before the second is read,
but not all of it goes back to the system."""

PARAMETERS_A_SECOND: Final = {"whole": 12e6, "layers": 35e6}
"""Measured on two cores: at the demo's size, and at the 7B shape. Real machines are faster."""

WHOLE_SHARE: Final = 0.6
"""Of the memory that is free: what the whole-model gate may take before the layered one is chosen."""


@dataclass(frozen=True)
class Estimate:
    """`memory` and `disk` in bytes, `seconds` on two slow cores; `gate` as chosen."""

    parameters: int
    memory: float
    disk: float
    seconds: float
    gate: Gate

    def __str__(self) -> str:
        way = "layer by layer" if self.gate == "layers" else "with the whole model in memory"
        minutes = max(1, round(self.seconds / 60))
        return (
            f"{self.parameters / 1e6:.0f} M parameters, checked {way}: about {self.memory / 2**30:.1f} GiB of memory, "
            f"{self.disk / 2**30:.2f} GiB of disk, {minutes} min on two cores"
        )


def estimate(
    config: LlamaConfig,
    *,
    dialect: str,
    precision: str,
    embeddings: str | None = None,
    gate: Gate | None = None,
    runs: bool = False,
) -> Estimate:
    """Estimate from the LLM's configuration.

    Args:
        config: the LLM's.
        dialect: of the decoder; `standard` is only written from a whole model.
        precision: of the decoder.
        embeddings: of the embedding table; `default_embeddings` when None.
        gate: `whole` or `layers`; chosen by the memory that is free when None.
        runs: whether the finished bundle writes reports, of phantoms; how long it takes for them is not counted.
    """
    matrices = _layer_parameters(config)
    table = config.vocab_size * config.hidden_size
    parameters = config.num_hidden_layers * matrices + 2 * table
    stored = PRECISIONS[precision].bytes_per_weight
    weights = (parameters - table) * stored
    rows = PRECISIONS[embeddings or default_embeddings(precision)].bytes_per_weight
    disk = weights + table * rows + 400e6  # Swin-base in float32, tokenizer
    whole = BASE + WHOLE_COPIES * 4 * parameters
    if dialect == "standard":
        gate = "whole"
    elif gate is None:
        gate = "whole" if whole < WHOLE_SHARE * available_memory() else "layers"
    # One PyTorch layer, the session of one exported layer, and their copies on the way; or the output layer's.
    layered = BASE + max(matrices * (4.0 + 2 * stored), table * (8.0 + 2 * stored))
    memory = whole if gate == "whole" else max(layered, BASE + weights if runs else 0.0)
    return Estimate(
        parameters=parameters,
        memory=memory,
        disk=disk,
        seconds=20 + parameters / PARAMETERS_A_SECOND[gate],
        gate=gate,
    )


def default_embeddings(precision: str) -> str:
    """The embedding table is looked up, never multiplied: float16 beside every reduced precision."""
    return "fp32" if precision == "fp32" else "fp16"


def _layer_parameters(config: LlamaConfig) -> int:
    from r2gen_export.exporting.decoder.skeleton import head_dim

    attention = 2 * config.hidden_size * head_dim(config) * (config.num_attention_heads + config.num_key_value_heads)
    return int(attention + 3 * config.hidden_size * config.intermediate_size)


def require_room(needed: Estimate, out: Path) -> None:
    """Refuse an export for which there is no room.

    Raises:
        R2GenError: `R2G-RESOURCE-MEMORY`, `R2G-RESOURCE-DISK`, with what is needed and what is there.
    """
    free = available_memory()
    if needed.memory > free:
        message = f"the export needs about {needed.memory / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB are free"
        fix = "close other programs" if needed.gate == "layers" else "--dialect ort with --gate layers"
        raise R2GenError("R2G-RESOURCE-MEMORY", message, fix)
    folder = next((one for one in (out, *out.absolute().parents) if one.exists()), Path())
    room = shutil.disk_usage(folder).free
    if needed.disk > room:
        message = f"the bundle needs about {needed.disk / 2**30:.2f} GiB of disk, {room / 2**30:.2f} GiB are free"
        raise R2GenError("R2G-RESOURCE-DISK", message, "free space, choose another --out or a lower --precision")


class PeakMemory:
    """Watches this process's own (anonymous) memory while the block runs; pages of mapped files do not count.

    Attributes:
        peak: bytes; 0 where the system does not say (not Linux).
    """

    def __init__(self, interval: float = 0.02) -> None:
        self.peak = 0
        self._interval = interval
        self._done = threading.Event()

    def __enter__(self) -> PeakMemory:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()
        self.peak = max(self.peak, anonymous_memory())  # on a busy machine the thread may not have looked for a while

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, anonymous_memory())
            if self._done.wait(self._interval):
                return
