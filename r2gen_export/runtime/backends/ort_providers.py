"""Which ONNX Runtime execution provider runs the graphs, and why not a faster one."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import io
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from r2gen_export.candidates import Candidate, Obstacle, Reason, render
from r2gen_export.errors import R2GenError
from r2gen_export.runtime.backends.placement import RECORD
from r2gen_export.runtime.backends.tuning import OPENVINO
from r2gen_export.system.gpu import why_no_gpu, why_no_such_gpu, why_old_driver

if TYPE_CHECKING:
    from r2gen_export.runtime.backends.trial_pass import Trial

CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
TENSORRT: Final = "TensorrtExecutionProvider"
TENSORRT_RTX: Final = "NvTensorRTRTXExecutionProvider"

RTX_PLUGIN: Final = "onnxruntime_ep_nv_tensorrt_rtx"
"""The package that brings ONNX Runtime's TensorRT-RTX provider; it registers itself under the provider's name."""

"""What reports call a decoder in OpenVINO on the CPU; the vision encoder is then ONNX Runtime's."""

DEVICES: Final = ("auto", "cpu", "openvino", "cuda", "tensorrt")

PROVIDER_NAMES: Final = {CPU: "CPU", CUDA: "CUDA", TENSORRT: "TensorRT", TENSORRT_RTX: "TensorRT-RTX"}

NUMBERED: Final = ("cuda", "tensorrt")
"""Devices that may be followed by `:` and the index of a GPU."""


@dataclass(frozen=True)
class Acceleration:
    """What makes a decoder faster on CUDA, and is dropped with its reason where the trial pass fails with it.

    `cuda_graph`: passes of one position are captured once and replayed. `int4_gemm`: ONNX Runtime's tensor-core kernels
    for 4- and 8-bit weights beside float16 activations (`fpA_intB`), off until measured on a GPU: their kernels
    are chosen for each number of rows by trial, and one that was not tried fails in the middle of a report.
    """

    cuda_graph: bool = True
    int4_gemm: bool = False


PLAIN: Final = Acceleration(cuda_graph=False, int4_gemm=False)


@dataclass(frozen=True)
class ProviderChoice:
    """`providers`: what sessions are opened with, best first. `name`: the first one, as reports record it.

    `candidates`: every backend that was considered (a TensorRT engine, TensorRT through ONNX Runtime, CUDA, CPU), best
    first, and why it was taken or not. `gpu`: index of the GPU, as CUDA counts them. `trial`: of what runs on a GPU,
    None before it and on the CPU.
    """

    providers: list[str]
    name: str
    candidates: tuple[Candidate, ...] = ()
    gpu: int = 0
    trial: Trial | None = None

    @property
    def steps(self) -> list[str]:
        """The candidates, each as a line of text."""
        return [render(candidate) for candidate in self.candidates]

    @property
    def builds_engines(self) -> bool:
        """Whether the first provider builds engines when a session is opened."""
        return self.providers[0] in (TENSORRT, TENSORRT_RTX)

    @property
    def decodes_on_cpu(self) -> bool:
        """Whether the LLM's weights are in host memory."""
        return self.name in (CPU, OPENVINO)

    def tried(self, trial: Trial) -> ProviderChoice:
        """The same choice after a trial pass."""
        name = PROVIDER_NAMES.get(self.name, self.name)
        return replace(self.with_candidates(Candidate(name, "all", True, Reason.trial_passed, str(trial))), trial=trial)

    def with_candidates(self, *candidates: Candidate, name: str | None = None) -> ProviderChoice:
        """The same choice with further candidates, and another name when one is given."""
        return replace(self, name=name or self.name, candidates=(*self.candidates, *candidates))


def provider_options(
    provider: str, gpu: int = 0, acceleration: Acceleration = PLAIN, *, growing: bool = False
) -> dict[str, Any]:
    """Options a session opens this provider with, on the GPU `gpu`; `growing`: its tensors grow from run to run."""
    if provider == CUDA:
        return {
            "device_id": str(gpu),
            # TF32 keeps 10 bits of mantissa: tokens would differ from the fp32 ones the parity gate passed.
            "use_tf32": "0",
            # The default doubles what it holds, which tensors that grow need: no freed one fits the next.
            "arena_extend_strategy": "kNextPowerOfTwo" if growing else "kSameAsRequested",
            # The default tries every algorithm at the first image of each number of views.
            "cudnn_conv_algo_search": "HEURISTIC",
            # Flash, memory-efficient and plain attention (and XQA, which is outside this choice). cuDNN's, which ONNX
            # Runtime prefers on Hopper, is compiled at run time for each shape.
            "sdpa_kernel": "19",
            "enable_cuda_graph": str(int(acceleration.cuda_graph)),
        }
    return {"device_id": str(gpu)} if provider == TENSORRT else {}


def gpu_session_entries(acceleration: Acceleration) -> dict[str, str]:
    """Session settings for a GPU, by name (ONNX Runtime `onnxruntime_session_options_config_keys.h`)."""
    return {
        RECORD: "1",
        # Weights beside the arena, which would round their sizes up.
        "session.use_device_allocator_for_initializers": "1",
        "ep.cuda.fpa_intb_gemm": str(int(acceleration.int4_gemm)),
    }


def parse_device(device: str) -> tuple[str, int]:
    """A device and the index of its GPU: `cuda:1` is the second GPU that CUDA shows, `cuda` the first.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE` for another device; `R2G-DEVICE-UNAVAILABLE` for a GPU that is not there.
    """
    kind, colon, index = device.partition(":")
    numbered = kind in NUMBERED and index.isascii() and index.isdigit()
    if kind not in DEVICES or (colon and not numbered):
        choices = f"{', '.join(DEVICES)}; {' and '.join(NUMBERED)} also with a GPU's number, like cuda:1"
        raise R2GenError("R2G-CONFIG-VALUE", f"device {device!r} is unknown", f"choose one of {choices}")
    return kind, int(index or 0)


def choose_providers(device: str) -> ProviderChoice:
    """Execution providers for a device.

    Args:
        device: `cpu`, `openvino`, `cuda`, `tensorrt`, or `auto`: CUDA where it works, else the CPU. `cuda` and
            `tensorrt` may name a GPU by its index (`cuda:1`). TensorRT through ONNX Runtime builds its engines while a
            bundle loads, which takes minutes, so it is taken only when asked for, and after the bundle's own engines
            (`select.open_sessions`).

    Raises:
        R2GenError: `R2G-CONFIG-VALUE` for another device; `R2G-DEVICE-UNAVAILABLE` when the one asked for is not usable
            on this machine.
    """
    kind, gpu = parse_device(device)
    if kind == "cpu":
        return ProviderChoice([CPU], CPU, (_requested("CPU"),))
    if kind == "openvino":
        return ProviderChoice([CPU], OPENVINO, (_requested(OPENVINO),))
    if kind == "tensorrt":
        return _choose_tensorrt(gpu)
    obstacle = _why_not_cuda(gpu)
    if kind == "cuda":
        if obstacle:
            raise _unavailable("CUDA", obstacle)
        return ProviderChoice([CUDA, CPU], CUDA, (_requested("CUDA"),), gpu)
    slow = "through ONNX Runtime it builds engines while the bundle loads"
    skipped = Candidate("TensorRT", "all", False, Reason.not_requested, slow, "--device tensorrt")
    if obstacle:
        refused = Candidate.refused("CUDA", "all", obstacle)
        return ProviderChoice([CPU], CPU, (skipped, refused, Candidate("CPU", "all", True, Reason.fastest_usable)))
    return ProviderChoice([CUDA, CPU], CUDA, (skipped, Candidate("CUDA", "all", True, Reason.fastest_usable)))


def _requested(name: str, message: str = "requested") -> Candidate:
    return Candidate(name, "all", True, Reason.requested, message)


def _choose_tensorrt(gpu: int) -> ProviderChoice:
    """ONNX Runtime's TensorRT provider, else the one for TensorRT-RTX."""
    # Both keep their tensors in the memory of ONNX Runtime's CUDA provider.
    if obstacle := _why_not_cuda(gpu):
        raise _unavailable("TensorRT", obstacle)
    requested = "requested, through ONNX Runtime"
    if not (obstacle := _why_not_tensorrt()):
        return ProviderChoice([TENSORRT, CUDA, CPU], TENSORRT, (_requested("TensorRT", requested),), gpu)
    if rtx := _why_not_rtx():
        both = Obstacle(obstacle.reason, f"{obstacle.message}; for TensorRT-RTX, {rtx.message}", obstacle.fix)
        raise _unavailable("TensorRT", both)
    refused = Candidate.refused("TensorRT", "all", obstacle)
    return ProviderChoice([TENSORRT_RTX, CPU], TENSORRT_RTX, (refused, _requested("TensorRT-RTX", requested)), gpu)


def _why_not_cuda(gpu: int = 0) -> Obstacle | None:
    """None when the CUDA provider can start, with cuDNN, on a GPU that is there."""
    if message := why_no_gpu() or why_no_such_gpu(gpu):
        return Obstacle(Reason.no_gpu, message)
    import onnxruntime

    if CUDA not in onnxruntime.get_available_providers():
        message = f"the installed onnxruntime {onnxruntime.__version__} is a build without CUDA"
        return Obstacle(Reason.not_installed, message)
    if message := why_old_driver(_cuda_of_build()):
        return Obstacle(Reason.old_driver, message)
    _load_cuda_wheels()
    # ONNX Runtime loads cuDNN when a convolution first runs: without it, it starts and fails in the first report.
    return _why_not_loaded("cuda") or _why_no_cudnn()


def _cuda_of_build() -> int:
    """The CUDA release that the installed ONNX Runtime is built for; 0 where it does not say."""
    try:
        from onnxruntime.capi.build_and_package_info import cuda_version
    except ImportError:
        return 0
    major = str(cuda_version).partition(".")[0]
    return int(major) if major.isdigit() else 0


def _load_cuda_wheels() -> None:
    """Load the wheels of `onnxruntime-gpu[cuda,cudnn]`, beside ONNX Runtime or wherever the package `nvidia` lies."""
    import onnxruntime

    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find; the loader says it later
        spec = importlib.util.find_spec("nvidia")
        for root in (spec.submodule_search_locations or []) if spec else []:
            for pattern in ("*/bin", "*/bin/x86_64") if sys.platform == "win32" else ("*/lib",):
                for folder in sorted(Path(root).glob(pattern)):
                    onnxruntime.preload_dlls(directory=str(folder.resolve()))
        onnxruntime.preload_dlls(directory="")


def _why_no_cudnn() -> Obstacle | None:
    try:
        if sys.platform == "win32":
            ctypes.CDLL("cudnn64_9.dll", winmode=0)  # searches PATH too, where cuDNN's installer puts it
        else:
            ctypes.CDLL("libcudnn.so.9")
    except OSError:
        return Obstacle(Reason.not_installed, "cuDNN 9 is not installed", "pip install 'r2gen[cuda]'")
    return None


def _why_not_tensorrt() -> Obstacle | None:
    import onnxruntime

    if TENSORRT not in onnxruntime.get_available_providers():
        message = f"the installed onnxruntime {onnxruntime.__version__} is a build without TensorRT"
        return Obstacle(Reason.not_installed, message)
    with contextlib.suppress(ImportError, OSError):  # loads the libraries of TensorRT's wheel, which nothing else finds
        importlib.import_module("tensorrt_libs")
    if obstacle := _why_not_loaded("tensorrt"):
        message = f"{obstacle.message}; it needs TensorRT 10"
        return Obstacle(obstacle.reason, message, "pip install 'tensorrt>=10.15,<11'")
    return None


def _why_not_rtx() -> Obstacle | None:
    if importlib.util.find_spec(RTX_PLUGIN) is None:
        return Obstacle(Reason.not_installed, f"the package {RTX_PLUGIN.replace('_', '-')} is not installed")
    try:
        return None if rtx_devices() else Obstacle(Reason.no_gpu, "it finds no GPU it runs on")
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        first = str(error).strip().partition("\n")[0]
        return Obstacle(Reason.does_not_load, f"its library does not load ({first})")


def rtx_devices() -> list[Any]:
    """Devices of ONNX Runtime's TensorRT-RTX provider, which is registered first."""
    import onnxruntime

    devices = [one for one in onnxruntime.get_ep_devices() if one.ep_name == TENSORRT_RTX]
    if not devices:
        plugin = importlib.import_module(RTX_PLUGIN)
        onnxruntime.register_execution_provider_library(TENSORRT_RTX, plugin.get_library_path())
        devices = [one for one in onnxruntime.get_ep_devices() if one.ep_name == TENSORRT_RTX]
    return devices


def _why_not_loaded(provider: str) -> Obstacle | None:
    """The loader's message, unless the provider's library and all it is linked against can be loaded."""
    import onnxruntime

    stem = f"onnxruntime_providers_{provider}"
    name = f"{stem}.dll" if sys.platform == "win32" else f"lib{stem}.so"
    folder = Path(onnxruntime.__file__).parent / "capi"
    try:
        if sys.platform != "win32":
            # The provider takes symbols from this one, which ONNX Runtime itself loads first.
            ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / name))
    except OSError as error:
        message = f"its libraries do not load ({str(error).rsplit('/', maxsplit=1)[-1]})"
        return Obstacle(Reason.does_not_load, message)
    return None


def _unavailable(name: str, obstacle: Obstacle) -> R2GenError:
    fix = "for a GPU: an NVIDIA driver and pip install 'onnxruntime-gpu[cuda,cudnn]'"
    return R2GenError(
        "R2G-DEVICE-UNAVAILABLE", f"{name} is not usable: {obstacle.message}", f"--device cpu; {obstacle.fix or fix}"
    )
