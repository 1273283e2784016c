"""NVIDIA's management library (NVML), asked through ctypes: no CUDA toolkit is needed, and no CUDA context is made.

It numbers GPUs as the machine has them; `system/gpu.py` asks CUDA's driver, which keeps to `CUDA_VISIBLE_DEVICES`.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from r2gen_export.system.gpu import Gpu

LIBRARY: Final = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"


class NvmlMemory(ctypes.Structure):
    """What `nvmlDeviceGetMemoryInfo` fills in, in bytes."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def open_nvml() -> Any:
    """The library, started; who calls this calls `nvmlShutdown`, or keeps it for the life of the process.

    Raises:
        OSError: when it is not there or does not start.
    """
    library = ctypes.CDLL(LIBRARY)
    if status := library.nvmlInit_v2():
        raise OSError(f"NVML does not start (status {status})")
    return library


def driver_version() -> str | None:
    """The display driver's version; None without a driver."""
    try:
        with _nvml() as library:
            return nvml_text(library.nvmlSystemGetDriverVersion)
    except OSError:
        return None


def driver_and_gpus() -> tuple[str, list[Gpu]]:
    """The display driver's version (`unknown` where it does not say), and every GPU it shows.

    Raises:
        OSError: as `open_nvml`.
    """
    with _nvml() as library:
        count = ctypes.c_uint()
        library.nvmlDeviceGetCount_v2(ctypes.byref(count))
        gpus = [gpu for index in range(count.value) if (gpu := _gpu(library, index)) is not None]
        return nvml_text(library.nvmlSystemGetDriverVersion) or "unknown", gpus


def nvml_text(function: Any, *arguments: Any) -> str | None:
    """What a function writes that takes a buffer and its length last; None when it fails."""
    buffer = ctypes.create_string_buffer(96)
    return buffer.value.decode() if function(*arguments, buffer, len(buffer)) == 0 else None


def _gpu(library: Any, index: int) -> Gpu | None:
    handle, memory, major, minor = ctypes.c_void_p(), NvmlMemory(), ctypes.c_int(), ctypes.c_int()
    if library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)):
        return None
    library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
    library.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor))
    name = nvml_text(library.nvmlDeviceGetName, handle) or "unknown"
    return Gpu(name, f"{major.value}.{minor.value}", memory=memory.total)


@contextmanager
def _nvml() -> Iterator[Any]:
    library = open_nvml()
    try:
        yield library
    finally:
        library.nvmlShutdown()
