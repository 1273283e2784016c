"""Times the CPU backends of a bundle's decoder, for `r2gen tune`: separately for single reports, beams and batches.

No backend wins everywhere: OpenVINO reads prompts in about half the time, ONNX Runtime takes less for a single position
on some machines, and more than one thread costs a tiny model more than it gains.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np

from r2gen_export.bundle import Manifest, bundle_id
from r2gen_export.errors import R2GenError
from r2gen_export.runtime.backends.decoders import AnyDecoder, open_cpu_decoder, openvino_obstacle
from r2gen_export.runtime.backends.embedding_table import EmbeddingTable
from r2gen_export.runtime.backends.row_check import rounds_activations, rows_agree
from r2gen_export.runtime.backends.tuning import (
    ONNX_RUNTIME,
    OPENVINO,
    SINGLE,
    WORKLOADS,
    Backend,
    Timing,
    Tuning,
    Workload,
    this_machine,
)
from r2gen_export.system.cores import available_cores

PASSES: Final = 12
"""Passes of one position that are timed for each workload."""

HOPELESS: Final = 1.5
"""Fewer threads that take so many times the time of a single report are not measured on more rows."""

Advance = Callable[[str], None]


def setting_count(manifest: Manifest) -> int:
    """Settings that `measure` goes through: backends times numbers of threads."""
    return len(_backends(manifest)) * len(_thread_counts())


def measure(folder: Path, manifest: Manifest, advance: Advance = lambda setting: None) -> Tuning:
    """Time every backend with every number of threads, one after the other: a 7B model may not fit twice.

    Args:
        folder: the bundle.
        manifest: its manifest, verified.
        advance: told what is measured next, like "OpenVINO, 2 threads".

    Returns:
        The record; nothing is written.

    Raises:
        R2GenError: what ONNX Runtime raises for the decoder; a failure of OpenVINO is recorded as `skipped`.
    """
    timings: list[Timing] = []
    obstacle = openvino_obstacle(manifest)
    skipped: dict[str, str] = {OPENVINO: obstacle.message} if obstacle else {}
    for backend in _backends(manifest):
        for threads in _thread_counts():
            if backend in skipped:
                continue
            advance(f"{backend}, {threads} thread{'s' if threads > 1 else ''}")
            earlier = [timing for timing in timings if (timing.backend, timing.workload) == (backend, SINGLE.name)]
            try:
                timings += _time_setting(folder, manifest, backend, threads, earlier[0] if earlier else None)
            except R2GenError as error:
                if backend == ONNX_RUNTIME:
                    raise
                skipped[backend] = error.message
            gc.collect()  # the decoder's memory goes before the next one loads
    complete = tuple(timing for timing in timings if timing.backend not in skipped)
    return Tuning(bundle_id(manifest), this_machine(), complete, skipped)


def _backends(manifest: Manifest) -> list[Backend]:
    return [ONNX_RUNTIME] if openvino_obstacle(manifest) else [ONNX_RUNTIME, OPENVINO]


def _thread_counts() -> list[int]:
    """Every physical core first, which is the default, then one thread."""
    return list(dict.fromkeys([available_cores(), 1]))


def _time_setting(
    folder: Path, manifest: Manifest, backend: Backend, threads: int, earlier: Timing | None
) -> list[Timing]:
    """Every workload with one backend and number of threads; `earlier`: a single report with more threads."""
    prompt = manifest.prompt.length(manifest.dims.image_tokens)
    embeds = np.random.default_rng(0).normal(0, 0.02, (1, prompt, manifest.dims.d_llm)).astype(np.float32)
    decoder = open_cpu_decoder(folder, manifest, backend, threads)
    decoder.share_prefix(embeds[:, : 1 + len(manifest.prompt.before_ids)])
    timings: list[Timing] = []
    for workload in WORKLOADS:
        if workload.studies > 1 and not _together(decoder, folder, manifest):
            # Such studies are decoded one by one.
            single, count = timings[0], workload.studies
            timings.append(replace(single, workload=workload.name, prefill_ms=count * single.prefill_ms,
                                   step_ms=count * single.step_ms))  # fmt: skip
            continue
        _time_workload(decoder, embeds, workload, 2)  # the first passes of a shape are not like the others
        # The lower of two rounds: other processes of the machine can only add to a time.
        rounds = [_time_workload(decoder, embeds, workload, PASSES) for _ in range(2)]
        prefill_ms, step_ms = (min(times) for times in zip(*rounds, strict=True))
        timings.append(Timing(workload.name, backend, threads, prefill_ms, step_ms))
        if earlier is not None and timings[0].report_ms > HOPELESS * earlier.report_ms:
            break
    return timings


def _together(decoder: AnyDecoder, folder: Path, manifest: Manifest) -> bool:
    """Whether studies are decoded together in this backend (`LoadedModel.together`)."""
    return not rounds_activations(manifest) or rows_agree(
        decoder, EmbeddingTable.of_bundle(folder, manifest.dims), manifest.dims.vocab_size
    )


def _time_workload(decoder: AnyDecoder, embeds: Any, workload: Workload, passes: int) -> tuple[float, float]:
    """Milliseconds of the prefill [studies, S, d], and the median of passes of one position [studies * beams, 1, d]."""
    started = perf_counter()
    state = decoder.prefill(np.repeat(embeds, workload.studies, axis=0), passes)
    prefill_ms = (perf_counter() - started) * 1000
    state.reorder(np.repeat(np.arange(workload.studies), workload.beams))
    token = np.repeat(embeds[:, :1], workload.rows, axis=0)
    steps_ms = []
    for _ in range(passes):
        started = perf_counter()
        state.decode(token)
        steps_ms.append((perf_counter() - started) * 1000)
    return prefill_ms, float(np.median(steps_ms))
