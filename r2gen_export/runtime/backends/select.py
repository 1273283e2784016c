"""What a bundle runs on: the fastest backend usable here, and a record of why each faster one was not taken.

TensorRT engines that were built of the bundle; TensorRT through ONNX Runtime, where requested; CUDA; the CPU, there in
OpenVINO or ONNX Runtime (`decoders.py`). Vision encoder and decoder may end on different backends.
"""

from __future__ import annotations

import gc
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from r2gen_export import bundle as layout
from r2gen_export.bundle import ENGINES, Manifest
from r2gen_export.candidates import ENGINE, PARTS, Candidate, Obstacle, Part, Reason, render
from r2gen_export.errors import InternalError, R2GenError
from r2gen_export.interfaces import Encoder, PrefixDecoder
from r2gen_export.runtime.backends.decoders import open_decoder
from r2gen_export.runtime.backends.embedding_table import EmbeddingTable
from r2gen_export.runtime.backends.gpu_memory import estimate, require_gpu_memory
from r2gen_export.runtime.backends.ort_providers import (
    CPU,
    CUDA,
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
from r2gen_export.runtime.backends.tuning import SINGLE, Workload
from r2gen_export.system.gpu import why_no_gpu, why_no_such_gpu

if TYPE_CHECKING:
    from trt_engines.cuda import Cuda
    from trt_engines.select import Fitting
    from trt_engines.sessions import EngineDecoder, EngineVision

Opened: TypeAlias = tuple[Encoder, PrefixDecoder, ProviderChoice]

DECODER: Final = "decoder"


class EngineCandidates:
    """The first candidates: the engines of a bundle that fit this machine. Loads none of them.

    Args:
        folder: the bundle.
        manifest: its manifest, verified.
        device: engines are for `auto` and `tensorrt`.

    Attributes:
        fitting: by part.
        refused: by part, why it has no engine here; empty where engines were not requested.
    """

    def __init__(self, folder: Path, manifest: Manifest, device: str) -> None:
        self._manifest = manifest
        self.fitting: dict[str, Fitting] = {}
        self.refused: dict[str, list[Candidate]] = {}
        kind, self._gpu = parse_device(device)
        if kind not in ("auto", "tensorrt"):
            return
        # In this order, so that a machine without a GPU is not told to build, and imports nothing of TensorRT.
        if message := why_no_gpu() or why_no_such_gpu(self._gpu):
            obstacle = Obstacle(Reason.no_gpu, message)
        elif not (folder / ENGINES).is_dir():
            obstacle = Obstacle(Reason.not_built, "none built", "r2gen build BUNDLE")
        else:
            from trt_engines.select import find_engines

            self.fitting, self.refused = find_engines(folder, manifest, self._gpu)
            return
        for part in PARTS:
            self.refused[part] = [Candidate.refused(ENGINE, part, obstacle)]

    def drop(self, part: Part, error: R2GenError) -> None:
        """An engine that does not load after all."""
        del self.fitting[part]
        message = f"{error.code}: {error.message}"
        self.refused[part] = [Candidate(ENGINE, part, False, Reason.does_not_load, message, error.fix)]

    @property
    def gpu(self) -> int:
        """Index of the GPU the engines are for."""
        return self._gpu

    @property
    def precision(self) -> str | None:
        """Of the decoder's engine, which may be another than the bundle's; None without one."""
        return self.fitting[DECODER].identity.precision if DECODER in self.fitting else None

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """The engines taken, and those not taken and why. Reports keep them: no folder of a user in them."""
        taken = [
            Candidate(ENGINE, part, True, Reason.fastest_usable, self.fitting[part].product)
            for part in PARTS
            if part in self.fitting
        ]
        refused = [candidate for part in PARTS for candidate in self.refused.get(part, [])]
        merged = dict.fromkeys(replace(candidate, part="all") for candidate in refused)
        return tuple(merged) if not taken and len(merged) == 1 else (*taken, *refused)

    def choose(self, device: str) -> ProviderChoice:
        """Every candidate: these engines, and providers of ONNX Runtime for the parts without one.

        Raises:
            R2GenError: as `choose_providers`, when no engine fits either.
        """
        if self.fitting and not self.refused:
            return ProviderChoice([CPU], self.fitting[DECODER].backend.product, self.candidates, self._gpu)
        try:
            rest = self._with_kernels(choose_providers(device), device)
        except R2GenError as error:
            if not self.fitting:
                raise self._explained(error) from error
            rest = self._with_kernels(choose_providers("auto"), "auto")
        name = self.fitting[DECODER].backend.product if DECODER in self.fitting else rest.name
        return replace(rest, name=name, candidates=(*self.candidates, *rest.candidates))

    def _with_kernels(self, choice: ProviderChoice, device: str) -> ProviderChoice:
        """The same choice, or the CPU where a GPU has no kernels for what is left to it and `device` is `auto`."""
        if choice.providers[0] == CPU:
            return choice
        try:
            left = {part: part not in self.fitting for part in PARTS}
            require_gpu_kernels(self._manifest, **left)
        except R2GenError as error:
            if device != "auto":
                raise
            return _on_the_cpu(choice, Reason.unsupported, error)
        return choice

    def _explained(self, error: R2GenError) -> R2GenError:
        """The error of the next candidate, with the reasons against the engines unless it has the same one."""
        reasons = [render(candidate) for candidate in self.candidates if candidate.reason is not Reason.no_gpu]
        return R2GenError(error.code, "; ".join([error.message, *reasons]), error.fix)


def may_use_gpu(device: str) -> bool:
    """Whether `open_sessions` may open something on a GPU."""
    return parse_device(device)[0] not in ("cpu", "openvino") and not why_no_gpu()


def open_sessions(
    folder: Path, manifest: Manifest, *, device: str, threads: int | None, workload: Workload = SINGLE
) -> Opened:
    """Load vision encoder and decoder on the fastest backend usable here, and try it where it is a GPU.

    Args:
        folder: the bundle.
        manifest: its manifest, verified.
        device: `auto`, `cpu`, `openvino`, `cuda` or `tensorrt`; the last two also with a GPU's index (`cuda:1`).
        threads: CPU threads for one graph; None: for the decoder those of the record of `r2gen tune`, if there is
            one, else the cores this process may use.
        workload: what will be decoded together.

    Returns:
        Vision encoder, decoder, and what they run on.

    Raises:
        R2GenError: `R2G-BUNDLE-GRAPH`, `R2G-CONFIG-VALUE`, `R2G-DEVICE-UNAVAILABLE`, `R2G-RESOURCE-MEMORY`.
    """
    engines = EngineCandidates(folder, manifest, device)
    opening = _Opening(folder, manifest, device, threads, workload)
    if engines.fitting and (opened := _on_engines(engines, manifest, opening)):
        return opened
    gc.collect()  # the engines' memory goes before the next backend is loaded
    choice = engines.choose(device)
    try:
        return opening.on(choice)
    except R2GenError as error:
        # A provider whose libraries load may still not start; whoever asked for it by name gets the error.
        if choice.providers[0] == CPU or device != "auto":
            raise
        choice = _on_the_cpu(choice, Reason.does_not_load, error)
    gc.collect()
    return opening.on(choice)


def _on_the_cpu(choice: ProviderChoice, reason: Reason, error: R2GenError) -> ProviderChoice:
    """The CPU in the place of a GPU, and why."""
    name = PROVIDER_NAMES[choice.providers[0]]
    others = [candidate for candidate in choice.candidates if not (candidate.taken and candidate.name == name)]
    refused = Candidate(name, "all", False, reason, error.message, error.fix)
    return ProviderChoice([CPU], CPU, (*others, refused, Candidate("CPU", "all", True, Reason.fastest_usable)))


@dataclass(frozen=True)
class _Opening:
    """What stays the same from backend to backend."""

    folder: Path
    manifest: Manifest
    device: str
    threads: int | None
    workload: Workload

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
            decoder, choice = self._decoder(choice)
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

    def _decoder(
        self, choice: ProviderChoice, acceleration: Acceleration = PLAIN
    ) -> tuple[PrefixDecoder, ProviderChoice]:
        return open_decoder(
            self.folder,
            self.manifest,
            choice,
            device=self.device,
            threads=self.threads,
            workload=self.workload,
            acceleration=acceleration,
        )

    def _accelerated(self, vision: Encoder, prompt: NDArray[np.float32], choice: ProviderChoice) -> Opened:
        """The decoder on a GPU; where the trial fails with what speeds it up, without."""
        refused: Candidate | None = None
        for acceleration in (Acceleration(), PLAIN):
            try:
                decoder, taken = self._decoder(choice, acceleration)
                trial = self._try(prompt, decoder)
            except R2GenError as error:
                # What a captured pass does wrong may also come as NaN, or as too little memory.
                if choice.providers[0] != CUDA or acceleration == PLAIN:
                    raise
                refused = Candidate("CUDA graphs", "decoder", False, Reason.does_not_load, error.message)
            else:
                return vision, decoder, (taken.with_candidates(refused) if refused else taken).tried(trial)
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


def _on_engines(engines: EngineCandidates, manifest: Manifest, opening: _Opening) -> Opened | None:
    """The bundle's engines; a part without one on the next backend, else the CPU. None when the engines do not work."""
    vision, decoder, cuda = _open_engines(engines, manifest)
    if cuda is None or (vision is None and decoder is None):
        return None
    choice = engines.choose(opening.device)
    choices = [choice] if choice.providers[0] == CPU else [choice, replace(choice, providers=[CPU])]
    for candidate in choices:
        try:
            return opening.on(candidate, vision, decoder, precision=engines.precision)
        except R2GenError as error:
            # Its words only: the exception holds the frames, and these the sessions, of what failed.
            failure = R2GenError(error.code, error.message, error.fix)
        gc.collect()
    for part in PARTS:
        if part in engines.fitting:
            engines.drop(part, failure)
    with suppress(R2GenError):
        for session in (vision, decoder):
            if session is not None:
                session.close()
        cuda.close()
    return None


def _open_engines(
    engines: EngineCandidates, manifest: Manifest
) -> tuple[EngineVision | None, EngineDecoder | None, Cuda | None]:
    """Load the engines that fit, and what they run on; one that does not load steps down."""
    from trt_engines.cuda import Cuda
    from trt_engines.select import open_engine_decoder, open_engine_vision

    vision: EngineVision | None = None
    decoder: EngineDecoder | None = None
    try:
        cuda = Cuda(device_id=engines.gpu)
    except R2GenError as error:
        for part in PARTS:
            if part in engines.fitting:
                engines.drop(part, error)
        return None, None, None
    if fitting := engines.fitting.get("vision"):
        try:
            vision = open_engine_vision(fitting, manifest.dims, cuda)
        except R2GenError as error:
            engines.drop("vision", error)
    if fitting := engines.fitting.get(DECODER):
        try:
            decoder = open_engine_decoder(fitting, manifest.dims, cuda)
        except R2GenError as error:
            engines.drop("decoder", error)
    if vision is None and decoder is None:
        with suppress(R2GenError):  # what is wrong with the GPU was said above
            cuda.close()
    return vision, decoder, cuda
