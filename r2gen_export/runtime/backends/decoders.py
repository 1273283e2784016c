"""Loads a bundle's decoder: in ONNX Runtime, or on the CPU in OpenVINO where `r2gen tune` recorded it as faster."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from r2gen_export import bundle as layout
from r2gen_export.bundle import Manifest
from r2gen_export.candidates import Candidate, Obstacle, Reason
from r2gen_export.errors import R2GenError
from r2gen_export.precision import PRECISIONS
from r2gen_export.runtime.backends.openvino_decoder import OpenVinoDecoder, why_not_openvino
from r2gen_export.runtime.backends.ort_decoder import DecoderSession
from r2gen_export.runtime.backends.ort_providers import CPU, PLAIN, Acceleration, ProviderChoice
from r2gen_export.runtime.backends.row_check import rounds_activations
from r2gen_export.runtime.backends.tuning import (
    ONNX_RUNTIME,
    OPENVINO,
    SINGLE,
    Backend,
    Tuning,
    Workload,
    read_tuning,
)

LARGE: Final = 2048 * 16
"""Width times layers from which an LLM's weights are worth huge pages."""

BOTH: Final[tuple[Backend, ...]] = (ONNX_RUNTIME, OPENVINO)

AnyDecoder = DecoderSession | OpenVinoDecoder


def is_large(manifest: Manifest) -> bool:
    """Whether the LLM is of a size where memory bandwidth counts."""
    return manifest.dims.d_llm * manifest.dims.num_layers >= LARGE


@dataclass(frozen=True)
class CpuDecoder:
    """What decodes on the CPU. `choice`: with the records of why. `threads`: None is one for each physical core."""

    backend: Backend
    threads: int | None
    choice: ProviderChoice


def openvino_obstacle(manifest: Manifest) -> Obstacle | None:
    """Why OpenVINO cannot decode this bundle here; None when it can."""
    if message := why_not_openvino():
        return Obstacle(Reason.not_installed, message, "pip install 'r2gen[openvino]'")
    precision = manifest.precision["decoder"]
    if manifest.dialect != "ort" or PRECISIONS[precision].half:
        message = f"it cannot run a decoder of dialect {manifest.dialect} in {precision}"
        return Obstacle(Reason.unsupported, message)
    return None


def choose_cpu_decoder(
    manifest: Manifest,
    choice: ProviderChoice,
    *,
    device: str,
    threads: int | None = None,
    workload: Workload = SINGLE,
) -> CpuDecoder:
    """Backend and threads of a decoder on the CPU, from the record of `r2gen tune`. Loads and measures nothing.

    Args:
        manifest: the bundle's.
        choice: with the CPU as its first provider.
        device: as requested; `auto` takes the faster backend, the others are limited to their own.
        threads: as requested; the record decides when None.
        workload: what will be decoded together.
    """
    tuning = read_tuning(manifest)
    if device != "auto":
        backend: Backend = OPENVINO if device == "openvino" else ONNX_RUNTIME
        best = tuning.best(workload, [backend]) if tuning else None
        return CpuDecoder(backend, threads or (best.threads if best else None), choice)
    obstacle = openvino_obstacle(manifest)
    if tuning is None or (best := tuning.best(workload, [ONNX_RUNTIME] if obstacle else BOTH)) is None:
        missing = obstacle or Obstacle(Reason.not_measured, "not measured on this machine", "r2gen tune BUNDLE")
        refused = Candidate.refused(OPENVINO, "decoder", missing)
        return CpuDecoder(ONNX_RUNTIME, threads, choice.with_candidates(refused))
    used = threads or best.threads
    message = f"fastest setting measured for {workload.title}; {used} thread{'s' if used > 1 else ''}"
    if best.backend == OPENVINO:
        taken = Candidate(OPENVINO, "decoder", True, Reason.measured_faster, message)
        return CpuDecoder(OPENVINO, used, choice.with_candidates(taken, name=OPENVINO))
    refused = Candidate.refused(OPENVINO, "decoder", obstacle or _slower(tuning, workload))
    taken = Candidate(ONNX_RUNTIME, "decoder", True, Reason.measured_faster, message)
    return CpuDecoder(ONNX_RUNTIME, used, choice.with_candidates(refused, taken))


def _slower(tuning: Tuning, workload: Workload) -> Obstacle:
    """Why OpenVINO, which can run the bundle, is not what the record chose."""
    ours, theirs = (tuning.best(workload, [backend]) for backend in BOTH)
    if ours is None or theirs is None:
        message = tuning.skipped.get(OPENVINO, "not measured on this machine")
        return Obstacle(Reason.not_measured, message, "r2gen tune BUNDLE")
    ratio = theirs.report_ms / ours.report_ms
    return Obstacle(Reason.measured_slower, f"{ratio:.2f} of ONNX Runtime's time for {workload.title}")


def open_decoder(
    folder: Path,
    manifest: Manifest,
    choice: ProviderChoice,
    *,
    device: str,
    threads: int | None,
    workload: Workload = SINGLE,
    acceleration: Acceleration = PLAIN,
) -> tuple[AnyDecoder, ProviderChoice]:
    """Load the decoder of a bundle.

    Args:
        folder: the bundle.
        manifest: its manifest.
        choice: what the graphs run on, from `choose_providers`.
        device: as requested; with `auto` on the CPU the record of `r2gen tune` decides.
        threads: CPU threads, None: those of the record, else one for each core this process may use.
        workload: what will be decoded together.
        acceleration: of the CUDA provider.

    Returns:
        The decoder; and the choice with a record that says why OpenVINO was taken or not.

    Raises:
        R2GenError: `R2G-BUNDLE-GRAPH`, `R2G-DEVICE-UNAVAILABLE`.
    """
    path = folder / layout.DECODER
    if choice.providers[0] != CPU:
        tuning = None
        if choice.builds_engines:
            from r2gen_export.runtime.backends.ort_tensorrt import decoder_tuning

            tuning = decoder_tuning(manifest)
        session = DecoderSession(
            path,
            manifest.dims,
            providers=choice.providers,
            threads=threads,
            tuning=tuning,
            acceleration=acceleration,
            gpu=choice.gpu,
        )
        return session, choice
    selected = choose_cpu_decoder(manifest, choice, device=device, threads=threads, workload=workload)
    try:
        return open_cpu_decoder(folder, manifest, selected.backend, selected.threads), selected.choice
    except R2GenError as error:
        if device != "auto" or selected.backend == ONNX_RUNTIME:
            raise
        refused = Candidate(OPENVINO, "decoder", False, Reason.does_not_load, error.message, error.fix)
    gc.collect()  # what OpenVINO allocated goes before ONNX Runtime loads
    return open_cpu_decoder(folder, manifest, ONNX_RUNTIME, threads), choice.with_candidates(refused)


def open_cpu_decoder(folder: Path, manifest: Manifest, backend: Backend, threads: int | None) -> AnyDecoder:
    """Load the decoder in one backend on the CPU.

    Raises:
        R2GenError: `R2G-BUNDLE-GRAPH`, `R2G-DEVICE-UNAVAILABLE`.
    """
    path = folder / layout.DECODER
    if backend == OPENVINO:
        return OpenVinoDecoder(path, manifest.dims, threads=threads)
    # With quantised weights a study without drafts would get other logits beside one that has some.
    wide_rows = manifest.dialect == "trt" and not rounds_activations(manifest)
    return DecoderSession(path, manifest.dims, providers=[CPU], threads=threads, wide_rows=wide_rows)
