"""What a bundle runs on: the best rung this machine has, and for every better one the reason why it was not taken.

TensorRT engines that were built of the bundle; TensorRT through ONNX Runtime, where asked for; CUDA; the CPU, there in
OpenVINO or ONNX Runtime (`engines.py`). Vision encoder and decoder may end on different rungs.
"""

from __future__ import annotations

import shlex
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from r2gen_export import bundle as layout
from r2gen_export.bundle import Manifest
from r2gen_export.errors import R2GenError
from r2gen_export.runtime.engines import open_decoder
from r2gen_export.runtime.providers import CPU, ProviderChoice, choose_providers, why_no_gpu
from r2gen_export.runtime.sessions import Encoder, PrefixDecoder, VisionSession

if TYPE_CHECKING:
    from trt_engines.find import Fitting

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
        self._folder = folder
        self.fitting: dict[str, Fitting] = {}
        self.reasons: dict[str, str] = {}
        if device not in ("auto", "tensorrt"):
            return
        # In this order, so that a machine without a GPU is not told to build, and imports nothing of TensorRT.
        built = f"none built (r2gen build {shlex.quote(str(folder))})" if not (folder / ENGINES).is_dir() else ""
        if reason := why_no_gpu() or built:
            self.reasons = {"vision": reason, DECODER: reason}
            return
        from trt_engines.find import find_engines

        self.fitting, self.reasons = find_engines(folder, manifest)

    def drop(self, part: str, error: R2GenError) -> None:
        """An engine that does not load after all."""
        del self.fitting[part]
        self.reasons[part] = f"{error.code}: {error.message} ({error.fix})"

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
            return ProviderChoice([CPU], self.fitting[DECODER].backend.product, self.steps)
        try:
            rest = choose_providers(device)
        except R2GenError as error:
            if not self.fitting:
                raise self._explained(error) from error
            rest = choose_providers("auto")
        name = self.fitting[DECODER].backend.product if DECODER in self.fitting else rest.name
        return ProviderChoice(rest.providers, name, [*self.steps, *rest.steps])

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


def open_sessions(
    folder: Path, manifest: Manifest, *, device: str, threads: int | None
) -> tuple[Encoder, PrefixDecoder, ProviderChoice]:
    """Load vision encoder and decoder on the best rung this machine has.

    Args:
        folder: the bundle.
        manifest: its manifest, verified.
        device: `auto`, `cpu`, `openvino`, `cuda` or `tensorrt`.
        threads: CPU threads for one graph, None: the cores this process may use.

    Returns:
        Vision encoder, decoder, and what they run on.

    Raises:
        R2GenError: `R2G-BUNDLE-GRAPH`, `R2G-CONFIG-VALUE`, `R2G-DEVICE-UNAVAILABLE`.
    """
    rung = EngineRung(folder, manifest, device)
    vision, decoder = _open_engines(rung, manifest) if rung.fitting else (None, None)
    choice = rung.choose(device)
    try:
        return _open_rest(folder, manifest, choice, vision, decoder, device=device, threads=threads)
    except R2GenError as error:
        # A provider whose libraries load may still not start; whoever asked for it by name gets the error.
        if choice.providers[0] == CPU or not (device == "auto" or rung.fitting):
            raise
        failed = f"{choice.providers[0]}: not taken after all, {error.message}"
        steps = [*(step for step in choice.steps if not step.endswith(": taken")), failed, "CPU: taken"]
        choice = ProviderChoice([CPU], choice.name if decoder is not None else CPU, steps)
        return _open_rest(folder, manifest, choice, vision, decoder, device=device, threads=threads)


def _open_rest(
    folder: Path,
    manifest: Manifest,
    choice: ProviderChoice,
    vision: Encoder | None,
    decoder: PrefixDecoder | None,
    *,
    device: str,
    threads: int | None,
) -> tuple[Encoder, PrefixDecoder, ProviderChoice]:
    """What no engine was loaded for, in ONNX Runtime or OpenVINO."""
    if vision is None:
        tuning = None
        if choice.builds_engines:
            from r2gen_export.runtime.trt_provider import vision_tuning

            tuning = vision_tuning(manifest)
        vision = VisionSession(folder / layout.VISION, providers=choice.providers, threads=threads, tuning=tuning)
    if decoder is None:
        decoder, choice = open_decoder(folder, manifest, choice, device=device, threads=threads)
    return vision, decoder, choice


def _open_engines(rung: EngineRung, manifest: Manifest) -> tuple[Encoder | None, PrefixDecoder | None]:
    """Load the engines that fit; one that does not load steps down."""
    from trt_engines.device_memory import Cuda
    from trt_engines.find import open_engine_decoder, open_engine_vision

    vision: Encoder | None = None
    decoder: PrefixDecoder | None = None
    try:
        cuda = Cuda()
    except R2GenError as error:
        for part in list(rung.fitting):
            rung.drop(part, error)
        return None, None
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
    return vision, decoder
