"""What a bundle runs on: the best rung this machine has, and for every better one the reason why it was not taken.

TensorRT engines that were built of the bundle; TensorRT through ONNX Runtime, where asked for; CUDA; the CPU, there in
OpenVINO or ONNX Runtime (`cpu_timing.py`). Vision encoder and decoder may end on different rungs.
"""

from __future__ import annotations

import gc
import shlex
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from r2gen_export import bundle as layout
from r2gen_export.bundle import Manifest
from r2gen_export.errors import InternalError, R2GenError
from r2gen_export.interfaces import Encoder, PrefixDecoder
from r2gen_export.runtime.backends.cpu_timing import open_decoder
from r2gen_export.runtime.backends.embedding_table import EmbeddingTable
from r2gen_export.runtime.backends.gpu_memory import estimate, require_gpu_memory
from r2gen_export.runtime.backends.ort_providers import (
    CPU,
    CUDA,
    CUDA_TAKEN,
    PLAIN,
    PROVIDER_NAMES,
    Acceleration,
    ProviderChoice,
    choose_providers,
    parse_device,
)
from r2gen_export.runtime.backends.ort_vision import VisionSession
from r2gen_export.runtime.backends.placement import require_gpu_kernels
from r2gen_export.runtime.backends.trial_pass import Trial, run_trial, trial_prompt
from r2gen_export.system.gpu import why_no_gpu, why_no_such_gpu

if TYPE_CHECKING:
    from trt_engines.cuda import Cuda
    from trt_engines.select import Fitting
    from trt_engines.sessions import EngineDecoder, EngineVision

Opened: TypeAlias = tuple[Encoder, PrefixDecoder, ProviderChoice]

ENGINES: Final = "engines"
"""Folder of a bundle."""

STEP: Final = "TensorRT engine"
DECODER: Final = "decoder"


class EngineRung:
    """The first rung: the engines of a bundle that fit this machine. Loads none of them.

    Args:
        folder: the bundle.
        manifest: its manifest, verified.
        device: engines are for `auto` and `tensorrt`.

    Attributes:
        fitting: by part.
        reasons: by part, why it has none here; empty where engines were not asked for.
    """

    def __init__(self, folder: Path, manifest: Manifest, device: str) -> None:
        self._folder, self._manifest = folder, manifest
        self.fitting: dict[str, Fitting] = {}
        self.reasons: dict[str, str] = {}
        kind, self._gpu = parse_device(device)
        if kind not in ("auto", "tensorrt"):
            return
        # In this order, so that a machine without a GPU is not told to build, and imports nothing of TensorRT.
        built = f"none built (r2gen build {shlex.quote(str(folder))})" if not (folder / ENGINES).is_dir() else ""
        if reason := why_no_gpu() or why_no_such_gpu(self._gpu) or built:
            self.reasons = {"vision": reason, DECODER: reason}
            return
        from trt_engines.select import find_engines

        self.fitting, self.reasons = find_engines(folder, manifest, self._gpu)

    def drop(self, part: str, error: R2GenError) -> None:
        """An engine that does not load after all."""
        del self.fitting[part]
        self.reasons[part] = f"{error.code}: {error.message} ({error.fix})"

    @property
    def gpu(self) -> int:
        """Index of the GPU the engines are for."""
        return self._gpu

    @property
    def precision(self) -> str | None:
        """Of the decoder's engine, which may be another than the bundle's; None without one."""
        return self.fitting[DECODER].identity.precision if DECODER in self.fitting else None

    @property
    def steps(self) -> list[str]:
        """What was taken, and what was not and why, for the ladder. Reports keep them: no folder of a user in them."""
        return [_without_folder(step, self._folder) for step in self._steps()]

    def _steps(self) -> list[str]:
        steps = [f"{STEP}: taken for the {part}, {one.product}" for part, one in self.fitting.items()]
        if len(set(self.reasons.values())) == 1 and not self.fitting:
            return [f"{STEP}: not taken, {self.reasons[DECODER]}"]
        return steps + [f"{STEP}: not taken for the {part}, {reason}" for part, reason in self.reasons.items()]

    def choose(self, device: str) -> ProviderChoice:
        """The whole ladder: these engines, and providers of ONNX Runtime for what has none.

        Raises:
            R2GenError: as `choose_providers`, when no engine fits either.
        """
        if self.fitting and not self.reasons:
            return ProviderChoice([CPU], self.fitting[DECODER].backend.product, self.steps, self._gpu)
        try:
            rest = self._with_kernels(choose_providers(device), device)
        except R2GenError as error:
            if not self.fitting:
                raise self._explained(error) from error
            rest = self._with_kernels(choose_providers("auto"), "auto")
        name = self.fitting[DECODER].backend.product if DECODER in self.fitting else rest.name
        return replace(rest, name=name, steps=[*self.steps, *rest.steps])

    def _with_kernels(self, choice: ProviderChoice, device: str) -> ProviderChoice:
        """The same choice, or the CPU where a GPU has no kernels for what is left to it and nobody asked for it."""
        if choice.providers[0] == CPU:
            return choice
        try:
            left = {part: part not in self.fitting for part in ("vision", DECODER)}
            require_gpu_kernels(self._manifest, **left)
        except R2GenError as error:
            if device != "auto":
                raise
            return _on_the_cpu(choice, f"not taken, {error.message} ({error.fix})")
        return choice

    def _explained(self, error: R2GenError) -> R2GenError:
        """The error of the next rung, with the reason for stepping down to it, unless that is the same."""
        said = [step for step in self.steps if not error.message.endswith(step.rpartition(", ")[2])]
        return R2GenError(error.code, "; ".join([error.message, *said]), error.fix)


def _without_folder(step: str, folder: Path) -> str:
    """A step with the bundle's folder named `BUNDLE` in commands, and left out of paths of its engines."""
    engines = str(folder / ENGINES)
    step = step.replace(f"r2gen build {shlex.quote(str(folder))}", "r2gen build BUNDLE")
    # An OSError quotes a path, which on Windows doubles its backslashes.
    return step.replace(engines, ENGINES).replace(repr(engines)[1:-1], ENGINES)


def may_use_gpu(device: str) -> bool:
    """Whether `open_sessions` may open something on a GPU."""
    return parse_device(device)[0] not in ("cpu", "openvino") and not why_no_gpu()


def open_sessions(folder: Path, manifest: Manifest, *, device: str, threads: int | None) -> Opened:
    """Load vision encoder and decoder on the best rung this machine has, and try it where it is a GPU.

    Args:
        folder: the bundle.
        manifest: its manifest, verified.
        device: `auto`, `cpu`, `openvino`, `cuda` or `tensorrt`; the last two also with a GPU's index (`cuda:1`).
        threads: CPU threads for one graph, None: the cores this process may use.

    Returns:
        Vision encoder, decoder, and what they run on.

    Raises:
        R2GenError: `R2G-BUNDLE-GRAPH`, `R2G-CONFIG-VALUE`, `R2G-DEVICE-UNAVAILABLE`, `R2G-RESOURCE-MEMORY`.
    """
    rung = EngineRung(folder, manifest, device)
    opening = _Opening(folder, manifest, device, threads)
    if rung.fitting and (opened := _on_engines(rung, manifest, opening)):
        return opened
    gc.collect()  # the engines' memory goes before the next rung is loaded
    choice = rung.choose(device)
    try:
        return opening.on(choice)
    except R2GenError as error:
        # A provider whose libraries load may still not start; whoever asked for it by name gets the error.
        if choice.providers[0] == CPU or device != "auto":
            raise
        choice = _on_the_cpu(choice, f"not taken after all, {error.message} ({error.fix})")
    gc.collect()
    return opening.on(choice)


def _on_the_cpu(choice: ProviderChoice, reason: str) -> ProviderChoice:
    """The CPU in the place of a GPU, and why."""
    steps = [step for step in choice.steps if step != CUDA_TAKEN]
    return ProviderChoice([CPU], CPU, [*steps, f"{PROVIDER_NAMES[choice.providers[0]]}: {reason}", "CPU: taken"])


@dataclass(frozen=True)
class _Opening:
    """What stays the same from rung to rung."""

    folder: Path
    manifest: Manifest
    device: str
    threads: int | None

    def on(
        self,
        choice: ProviderChoice,
        vision: Encoder | None = None,
        decoder: PrefixDecoder | None = None,
        *,
        precision: str | None = None,
    ) -> Opened:
        """Both parts, those not given opened as `choice` says; on a GPU after a trial pass."""
        on_gpu = choice.providers[0] != CPU
        if on_gpu:
            parts = {"vision": vision is None, "decoder": decoder is None}
            require_gpu_memory(estimate(self.manifest, **parts), choice.gpu)
        engines = vision is not None or decoder is not None
        if vision is None:
            vision = self._vision(choice)
        # Before the decoder is loaded: a vision encoder that fails need not wait for gigabytes.
        prompt = self._prompt(vision) if on_gpu or engines else None
        if on_gpu and decoder is None and prompt is not None:
            return self._accelerated(vision, prompt, choice)
        if decoder is None:
            decoder, choice = open_decoder(self.folder, self.manifest, choice, device=self.device, threads=self.threads)
        if prompt is None:
            return vision, decoder, choice
        return vision, decoder, choice.tried(self._try(prompt, decoder, precision))

    def _vision(self, choice: ProviderChoice) -> VisionSession:
        tuning = None
        if choice.builds_engines:
            from r2gen_export.runtime.backends.ort_tensorrt import vision_tuning

            tuning = vision_tuning(self.manifest)
        path = self.folder / layout.VISION
        return VisionSession(path, providers=choice.providers, threads=self.threads, tuning=tuning, gpu=choice.gpu)

    def _accelerated(self, vision: Encoder, prompt: NDArray[np.float32], choice: ProviderChoice) -> Opened:
        """The decoder on a GPU; where the trial fails with what speeds it up, without."""
        reason = ""
        for acceleration in (Acceleration(), PLAIN):
            try:
                decoder, taken = open_decoder(
                    self.folder,
                    self.manifest,
                    choice,
                    device=self.device,
                    threads=self.threads,
                    acceleration=acceleration,
                )
                trial = self._try(prompt, decoder)
            except R2GenError as error:
                # What a captured pass does wrong may also come as NaN, or as too little memory.
                if choice.providers[0] != CUDA or acceleration == PLAIN:
                    raise
                reason = error.message
            else:
                step = f"CUDA graphs: not taken, {reason}"
                return vision, decoder, (taken.with_step(step) if reason else taken).tried(trial)
            decoder = None  # type: ignore[assignment]
            gc.collect()  # its weights go before they are loaded again
        raise InternalError("no trial pass was run")

    def _prompt(self, vision: Encoder) -> NDArray[np.float32]:
        return trial_prompt(vision, self._table, self.manifest.prompt, self.manifest.image)

    def _try(self, prompt: NDArray[np.float32], decoder: PrefixDecoder, precision: str | None = None) -> Trial:
        return run_trial(prompt, decoder, self._table, self.manifest, precision=precision)

    @property
    def _table(self) -> EmbeddingTable:
        return EmbeddingTable.of_bundle(self.folder, self.manifest.dims)


def _on_engines(rung: EngineRung, manifest: Manifest, opening: _Opening) -> Opened | None:
    """The bundle's engines, and what has none on the next rung, else on the CPU; None when the engines do not work."""
    vision, decoder, cuda = _open_engines(rung, manifest)
    if cuda is None or (vision is None and decoder is None):
        return None
    choice = rung.choose(opening.device)
    choices = [choice] if choice.providers[0] == CPU else [choice, replace(choice, providers=[CPU])]
    for candidate in choices:
        try:
            return opening.on(candidate, vision, decoder, precision=rung.precision)
        except R2GenError as error:
            # Its words only: the exception holds the frames, and these the sessions, of what failed.
            failure = R2GenError(error.code, error.message, error.fix)
        gc.collect()
    for name in list(rung.fitting):
        rung.drop(name, failure)
    with suppress(R2GenError):
        for part in (vision, decoder):
            if part is not None:
                part.close()
        cuda.close()
    return None


def _open_engines(
    rung: EngineRung, manifest: Manifest
) -> tuple[EngineVision | None, EngineDecoder | None, Cuda | None]:
    """Load the engines that fit, and what they run on; one that does not load steps down."""
    from trt_engines.cuda import Cuda
    from trt_engines.select import open_engine_decoder, open_engine_vision

    vision: EngineVision | None = None
    decoder: EngineDecoder | None = None
    try:
        cuda = Cuda(device_id=rung.gpu)
    except R2GenError as error:
        for part in list(rung.fitting):
            rung.drop(part, error)
        return None, None, None
    if fitting := rung.fitting.get("vision"):
        try:
            vision = open_engine_vision(fitting, manifest.dims, cuda)
        except R2GenError as error:
            rung.drop("vision", error)
    if fitting := rung.fitting.get(DECODER):
        try:
            decoder = open_engine_decoder(fitting, manifest.dims, cuda)
        except R2GenError as error:
            rung.drop(DECODER, error)
    if vision is None and decoder is None:
        with suppress(R2GenError):  # what is wrong with the GPU was said above
            cuda.close()
    return vision, decoder, cuda
