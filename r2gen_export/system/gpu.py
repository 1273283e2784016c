"""NVIDIA's driver, asked through ctypes: whether there is a GPU, how many, and how much of one's memory is free."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from typing import Any, Final

LIBRARY: Final = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"

OUT_OF_MEMORY: Final = ("out of memory", "Failed to allocate memory", "ALLOC_FAILED", "OUT_OF_MEMORY")
"""Parts of what ONNX Runtime, CUDA, cuBLAS and cuDNN say when the memory of the GPU does not suffice."""

COMPUTE_CAPABILITY: Final = (75, 76)
"""Major and minor: `CUdevice_attribute` of cuda.h."""


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU as its driver describes it. `compute_capability` is like `8.9`, `memory` is the total in bytes."""

    name: str
    compute_capability: str
    memory: int | None = None


def why_no_gpu() -> str:
    """Empty when there is an NVIDIA GPU. Asks the driver: most machines without a GPU end there, quickly."""
    driver = _driver()
    if driver is None:
        return "no NVIDIA driver on this machine"
    return "" if _count(driver) else "the NVIDIA driver shows no GPU"


def decodes_on_cpu(device: str) -> bool:
    """Whether weights will be in the memory of the process that runs on this device (as `--device` names it), as far as
    that is known before anything is loaded."""
    return device in ("cpu", "openvino") or (device == "auto" and bool(why_no_gpu()))


def why_no_such_gpu(index: int) -> str:
    """Empty when a GPU of this index is there, as CUDA counts them (`CUDA_VISIBLE_DEVICES` holds)."""
    driver = _driver()
    count = 0 if driver is None else _count(driver)
    return "" if index < count else f"GPU {index} is not there, the driver shows {count}, numbered from 0"


def why_old_driver(release: int) -> str:
    """Empty when the driver runs programs of this CUDA release (13), or does not say; it runs those of older ones."""
    driver, version = _driver(), ctypes.c_int()
    try:
        if driver is None or driver.cuDriverGetVersion(ctypes.byref(version)) or not version.value:
            return ""
    except AttributeError:
        return ""
    major, minor = version.value // 1000, version.value % 1000 // 10
    if major >= release:
        return ""
    return (
        f"the NVIDIA driver is for CUDA {major}.{minor}, the installed ONNX Runtime needs {release}: update the driver"
    )


def gpu(index: int = 0) -> Gpu | None:
    """A GPU, numbered as CUDA counts them; None without a driver or without a GPU of that number."""
    driver = _driver()
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    if driver is None or driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), index):
        return None
    driver.cuDeviceGetName(name, len(name), device)
    numbers = [ctypes.c_int(), ctypes.c_int()]
    for number, attribute in zip(numbers, COMPUTE_CAPABILITY, strict=True):
        driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
    return Gpu(name.value.decode(), ".".join(str(number.value) for number in numbers))


def free_memory(index: int) -> tuple[int, int] | None:
    """Bytes free and in all of a GPU; None where the driver does not say.

    It is asked in the primary context, which ONNX Runtime uses too and which stays, so that it is made once.
    """
    driver = _driver()
    if driver is None or not _count(driver):
        return None
    device, context = ctypes.c_int(), ctypes.c_void_p()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    try:
        if driver.cuDeviceGet(ctypes.byref(device), index):
            return None
        if driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) or driver.cuCtxPushCurrent_v2(context):
            return None
        status = driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        driver.cuCtxPopCurrent_v2(ctypes.byref(context))
    except AttributeError:  # a driver library without one of these
        return None
    return None if status else (free.value, total.value)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a library's exception says that the GPU's memory does not suffice."""
    return any(part in str(error) for part in OUT_OF_MEMORY)


def _driver() -> Any:
    """The driver's library; None when there is none."""
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError:
        return None


def _count(driver: Any) -> int:
    """GPUs the driver shows; where there are none, it does not even start."""
    count = ctypes.c_int()
    return 0 if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) else count.value
