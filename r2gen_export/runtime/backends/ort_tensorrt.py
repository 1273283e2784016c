"""ONNX Runtime's TensorRT and TensorRT-RTX providers: they build engines themselves, when a session is opened.

Without profile shapes they would build another one whenever a longer prompt or cache comes. Options and their form are
those of the libraries: `onnxruntime_providers_tensorrt` 1.31, and `tensorrt_rtx_provider_options.h` 0.5.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from r2gen_export.bundle import Dims, Manifest, bundle_id
from r2gen_export.runtime.backends.ort_kv_cache import STEP
from r2gen_export.runtime.backends.ort_providers import TENSORRT, TENSORRT_RTX
from r2gen_export.system.cache_folder import cache_folder

Range = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Smallest, usual and largest shape of an input."""

MOST_VIEWS: Final = 8
MOST_STUDIES: Final = 8
MOST_DRAFTED: Final = 9


@dataclass(frozen=True)
class ProviderTuning:
    """What a provider that builds engines is told about one graph.

    Attributes:
        cache: folder for its engines, its timings and what it compiles.
        shapes: every input whose shape varies.
    """

    cache: Path
    shapes: dict[str, Range]

    def options(self, provider: str) -> dict[str, str]:
        """Provider options; nothing for a provider that builds no engines. Makes the folder where one does."""
        if provider in (TENSORRT, TENSORRT_RTX):
            with suppress(OSError):  # a cache folder that cannot be written costs the next start a build
                self.cache.mkdir(parents=True, exist_ok=True)
        if provider == TENSORRT:
            switches = ("trt_engine_cache_enable", "trt_timing_cache_enable", "trt_context_memory_sharing_enable")
            paths = ("trt_engine_cache_path", "trt_timing_cache_path")
            return {**dict.fromkeys(switches, "1"), **dict.fromkeys(paths, str(self.cache)), **self._profile("trt")}
        if provider == TENSORRT_RTX:
            return {"nv_runtime_cache_path": str(self.cache), **self._profile("nv")}
        return {}

    def _profile(self, prefix: str) -> dict[str, str]:
        texts = (
            ",".join(f"{name}:{'x'.join(map(str, sizes[end]))}" for name, sizes in self.shapes.items())
            for end in range(3)
        )
        return {f"{prefix}_profile_{end}_shapes": text for end, text in zip(("min", "opt", "max"), texts, strict=True)}


def vision_tuning(manifest: Manifest) -> ProviderTuning:
    """For `vision.onnx`: one to `MOST_VIEWS` views."""
    image = manifest.image
    shapes: list[tuple[int, ...]] = [(views, 3, image.height, image.width) for views in (1, 1, MOST_VIEWS)]
    return ProviderTuning(_folder(manifest, "vision"), {"pixel_values": (shapes[0], shapes[1], shapes[2])})


def decoder_tuning(manifest: Manifest) -> ProviderTuning:
    """For `decoder/model.onnx`: prompts, single positions and drafts, up to `MOST_STUDIES` studies with their beams."""
    dims = manifest.dims
    prompt = manifest.prompt.length(dims.image_tokens)
    decoding = manifest.presets.values()
    beams = max(one.num_beams for one in decoding)
    length = min(prompt + max(one.max_new_tokens for one in decoding), dims.max_positions)
    cells = [(1, 1, 1), (beams, 1, 1), (MOST_STUDIES * beams, prompt, MOST_DRAFTED)]  # rows, positions, with logits
    if manifest.dialect == "standard":
        return ProviderTuning(_folder(manifest, "decoder"), _growing(dims, cells, length))
    slots = [STEP, max(STEP, length), -(-length // STEP) * STEP]
    shapes: dict[str, list[tuple[int, ...]]] = {
        "inputs_embeds": [(rows, size, dims.d_llm) for rows, size, _ in cells],
        "position_ids": [(rows, size) for rows, size, _ in cells],
        "logits_to_keep": [(kept,) for _, _, kept in cells],
    }
    caches = [(rows, dims.num_kv_heads, slot, dims.head_dim) for (rows, _, _), slot in zip(cells, slots, strict=True)]
    return ProviderTuning(_folder(manifest, "decoder"), {**_ranges(shapes), **_caches(dims, caches)})


def _growing(dims: Dims, cells: list[tuple[int, int, int]], length: int) -> dict[str, Range]:
    """The `standard` dialect: no past before the prompt, one position more of it with every token."""
    pasts = [0, length // 2, length]
    shapes: dict[str, list[tuple[int, ...]]] = {
        "inputs_embeds": [(rows, size, dims.d_llm) for rows, size, _ in cells],
        "attention_mask": [(rows, past + size) for (rows, size, _), past in zip(cells, pasts, strict=True)],
        "position_ids": [(rows, size) for rows, size, _ in cells],
    }
    caches = [(rows, dims.num_kv_heads, past, dims.head_dim) for (rows, _, _), past in zip(cells, pasts, strict=True)]
    return {**_ranges(shapes), **_caches(dims, caches)}


def _ranges(shapes: dict[str, list[tuple[int, ...]]]) -> dict[str, Range]:
    return {name: (small, usual, large) for name, (small, usual, large) in shapes.items()}


def _caches(dims: Dims, sizes: list[tuple[int, int, int, int]]) -> dict[str, Range]:
    small, usual, large = sizes
    parts = [f"{layer}.{part}" for layer in range(dims.num_layers) for part in ("key", "value")]
    return {f"past_key_values.{part}": (small, usual, large) for part in parts}


def _folder(manifest: Manifest, part: str) -> Path:
    return cache_folder() / "onnxruntime" / bundle_id(manifest) / part
