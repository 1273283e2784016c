"""What one report of a bundle takes of a GPU's memory, said before it is loaded. More rows show when they come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from r2gen_export.bundle import DECODER, VISION, Manifest
from r2gen_export.errors import R2GenError
from r2gen_export.precision import PRECISIONS
from r2gen_export.runtime.backends.gpu_kv_cache import MOST_MOVED
from r2gen_export.runtime.backends.ort_kv_cache import cache_length
from r2gen_export.system.gpu import free_memory

WORKSPACE: Final = 1 << 30
"""Bytes for the CUDA context, cuBLAS, cuDNN and the activations of a pass: an allowance, not measured on a GPU yet."""


@dataclass(frozen=True)
class GpuMemory:
    """Bytes by what they are for. `rows`: beams of the default preset, for which the cache is counted."""

    weights: int
    cache: int
    rows: int
    workspace: int = WORKSPACE

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.workspace

    def __str__(self) -> str:
        parts = f"weights {_gib(self.weights)}, cache of {self.rows} rows and its moves {_gib(self.cache)}, workspace"
        return f"{_gib(self.total)} GiB ({parts} {_gib(self.workspace)})"


def estimate(manifest: Manifest, *, vision: bool = True, decoder: bool = True) -> GpuMemory:
    """What one report of the default preset takes.

    Args:
        manifest: the bundle's.
        vision: count the vision encoder.
        decoder: count the decoder and its cache.
    """
    dims, preset = manifest.dims, manifest.presets[manifest.default_preset]
    parts = [name for name, counted in ((VISION, vision), (DECODER, decoder)) if counted]
    weights = sum(entry.size for name, entry in manifest.files.items() if name.startswith(tuple(parts)))
    length = manifest.prompt.length(dims.image_tokens) + preset.max_new_tokens
    slots = cache_length(length, dims.max_positions)
    element = 2 if PRECISIONS[manifest.precision["decoder"]].half else 4
    row = 2 * dims.num_layers * dims.num_kv_heads * slots * dims.head_dim * element
    # ONNX Runtime takes memory in powers of two; a prompt is read in a cache of one row, which then grows to the beams.
    cache = _power_of_two(row) + (_power_of_two(row * preset.num_beams) if preset.num_beams > 1 else 0)
    moved = min(2 * MOST_MOVED * element, 2 * row * preset.num_beams) if preset.num_beams > 1 else 0
    return GpuMemory(weights, cache + moved if decoder else 0, preset.num_beams)


def require_gpu_memory(needed: GpuMemory, gpu: int) -> None:
    """Refuse a bundle that does not fit; where the driver does not say what is free, loading will tell.

    Raises:
        R2GenError: `R2G-RESOURCE-MEMORY`, with what is needed and what is there.
    """
    memory = free_memory(gpu)
    if memory is None or needed.total <= memory[0]:
        return
    message = f"the bundle needs about {needed} on GPU {gpu}, {_gib(memory[0])} of {_gib(memory[1])} GiB are free"
    fix = "close other programs on this GPU, export with fewer bits (--precision int4-f16), or --device cpu"
    raise R2GenError("R2G-RESOURCE-MEMORY", message, fix)


def _power_of_two(size: int) -> int:
    return 1 << max(0, size - 1).bit_length()


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"
