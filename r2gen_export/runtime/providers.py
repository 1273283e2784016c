"""Which ONNX Runtime execution provider runs the graphs, and why not a faster one."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from r2gen_export.errors import R2GenError
from r2gen_export.runtime.gpu import why_no_gpu
from r2gen_export.runtime.placement import RECORD

__all__ = ["why_no_gpu"]

CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
TENSORRT: Final = "TensorrtExecutionProvider"
TENSORRT_RTX: Final = "NvTensorRTRTXExecutionProvider"

RTX_PLUGIN: Final = "onnxruntime_ep_nv_tensorrt_rtx"
"""The package that brings ONNX Runtime's TensorRT-RTX provider; it registers itself under the provider's name."""

OPENVINO: Final = "OpenVINO"
"""What reports call a decoder in OpenVINO on the CPU; the vision encoder is then ONNX Runtime's."""

DEVICES: Final = ("auto", "cpu", "openvino", "cuda", "tensorrt")


@dataclass(frozen=True)
class Acceleration:
    """What makes a decoder faster on CUDA, and is dropped with its reason where the trial pass fails with it.

    `cuda_graph`: passes of one position are captured once and replayed. `int4_gemm`: ONNX Runtime's tensor-core kernels
    for 4- and 8-bit weights beside float16 activations (`fpA_intB`).
    """

    cuda_graph: bool = True
    int4_gemm: bool = True


PLAIN: Final = Acceleration(cuda_graph=False, int4_gemm=False)


@dataclass(frozen=True)
class ProviderChoice:
    """`providers`: what sessions are opened with, best first. `name`: the first one, as reports record it.

    `steps` says of every rung of the ladder (a TensorRT engine, TensorRT through ONNX Runtime, CUDA, CPU) why it was
    taken or not.
    """

    providers: list[str]
    name: str
    steps: list[str]

    @property
    def builds_engines(self) -> bool:
        """Whether the first provider builds engines when a session is opened."""
        return self.providers[0] in (TENSORRT, TENSORRT_RTX)

    def with_step(self, step: str, name: str | None = None) -> ProviderChoice:
        """The same choice with a further step, and another name when one is given."""
        return ProviderChoice(self.providers, name or self.name, [*self.steps, step])


def provider_options(provider: str, gpu: int = 0, acceleration: Acceleration = PLAIN) -> dict[str, Any]:
    """Options a session opens this provider with, on the GPU `gpu`."""
    if provider == CUDA:
        return {
            "device_id": str(gpu),
            # TF32 keeps 10 bits of mantissa: tokens would differ from the fp32 ones the parity gate passed.
            "use_tf32": "0",
            # The default doubles what it holds: 13 GB of weights could take 26.
            "arena_extend_strategy": "kSameAsRequested",
            # The default tries every algorithm at the first image of each number of views.
            "cudnn_conv_algo_search": "HEURISTIC",
            # Flash, memory-efficient and plain attention: the same kernels on every GPU. cuDNN's, which ONNX Runtime
            # prefers on Hopper, is compiled at run time for each shape.
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


def choose_providers(device: str) -> ProviderChoice:
    """Execution providers for a device.

    Args:
        device: `cpu`, `openvino`, `cuda`, `tensorrt`, or `auto`: CUDA where it works, else the CPU. TensorRT through
            ONNX Runtime builds its engines while a bundle loads, which takes minutes, so it is taken only when asked
            for, and after the bundle's own engines (`ladder.open_sessions`).

    Raises:
        R2GenError: `R2G-CONFIG-VALUE` for another device; `R2G-DEVICE-UNAVAILABLE` when the one asked for is not usable
            on this machine.
    """
    if device not in DEVICES:
        raise R2GenError("R2G-CONFIG-VALUE", f"device {device!r} is unknown", f"choose one of {', '.join(DEVICES)}")
    if device == "cpu":
        return ProviderChoice([CPU], CPU, ["CPU: asked for"])
    if device == "openvino":
        return ProviderChoice([CPU], OPENVINO, ["OpenVINO: asked for"])
    if device == "tensorrt":
        return _choose_tensorrt()
    reason = _why_not_cuda()
    if device == "cuda":
        if reason:
            raise _unavailable("CUDA", reason)
        return ProviderChoice([CUDA, CPU], CUDA, ["CUDA: asked for"])
    skipped = "TensorRT: not taken, through ONNX Runtime it builds engines while the bundle loads (--device tensorrt)"
    if reason:
        return ProviderChoice([CPU], CPU, [skipped, f"CUDA: not taken, {reason}", "CPU: taken"])
    return ProviderChoice([CUDA, CPU], CUDA, [skipped, "CUDA: taken"])


def _choose_tensorrt() -> ProviderChoice:
    """ONNX Runtime's TensorRT provider, else the one for TensorRT-RTX."""
    reason = why_no_gpu()
    if reason:
        raise _unavailable("TensorRT", reason)
    if not (reason := _why_not_cuda() or _why_not_tensorrt()):
        return ProviderChoice([TENSORRT, CUDA, CPU], TENSORRT, ["TensorRT: asked for, through ONNX Runtime"])
    if rtx := _why_not_rtx():
        raise _unavailable("TensorRT", f"{reason}; for TensorRT-RTX, {rtx}")
    steps = [f"TensorRT: not taken, through ONNX Runtime {reason}", "TensorRT-RTX: asked for, through ONNX Runtime"]
    return ProviderChoice([TENSORRT_RTX, CPU], TENSORRT_RTX, steps)


def _why_not_cuda() -> str:
    """Empty when the CUDA provider can start."""
    if reason := why_no_gpu():
        return reason
    import onnxruntime

    if CUDA not in onnxruntime.get_available_providers():
        return f"the installed onnxruntime {onnxruntime.__version__} is a build without CUDA"
    # Finds the CUDA and cuDNN wheels of `onnxruntime-gpu[cuda,cudnn]` when the system has no such libraries.
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find; the loader says it below
        onnxruntime.preload_dlls(directory="")
    return _why_not_loaded("cuda")


def _why_not_tensorrt() -> str:
    import onnxruntime

    if TENSORRT not in onnxruntime.get_available_providers():
        return f"the installed onnxruntime {onnxruntime.__version__} is a build without TensorRT"
    return _why_not_loaded("tensorrt")


def _why_not_rtx() -> str:
    if importlib.util.find_spec(RTX_PLUGIN) is None:
        return f"the package {RTX_PLUGIN.replace('_', '-')} is not installed"
    try:
        return "" if rtx_devices() else "it finds no GPU it runs on"
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        return f"its library does not load ({str(error).strip().partition(chr(10))[0]})"


def rtx_devices() -> list[Any]:
    """Devices of ONNX Runtime's TensorRT-RTX provider, which is registered first."""
    import onnxruntime

    devices = [one for one in onnxruntime.get_ep_devices() if one.ep_name == TENSORRT_RTX]
    if not devices:
        plugin = importlib.import_module(RTX_PLUGIN)
        onnxruntime.register_execution_provider_library(TENSORRT_RTX, plugin.get_library_path())
        devices = [one for one in onnxruntime.get_ep_devices() if one.ep_name == TENSORRT_RTX]
    return devices


def _why_not_loaded(provider: str) -> str:
    """Whether the provider's library and all it is linked against can be loaded; the loader's message if not."""
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
        return f"its libraries do not load ({str(error).rsplit('/', maxsplit=1)[-1]})"
    return ""


def _unavailable(name: str, reason: str) -> R2GenError:
    return R2GenError(
        "R2G-DEVICE-UNAVAILABLE",
        f"{name} is not usable: {reason}",
        "--device cpu; for a GPU: an NVIDIA driver and pip install 'onnxruntime-gpu[cuda,cudnn]'",
    )
