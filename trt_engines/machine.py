"""What this machine is to an engine: platform, GPU, driver. Asks the driver alone, no TensorRT, no CUDA toolkit."""

from __future__ import annotations

import ctypes
import platform
import sys
from dataclasses import dataclass
from typing import Any, Final

COMPUTE_CAPABILITY_MAJOR: Final = 75  # CUdevice_attribute, cuda.h
COMPUTE_CAPABILITY_MINOR: Final = 76


@dataclass(frozen=True)
class Gpu:
    """A GPU CUDA shows. `driver`: the display driver's version, None when NVML does not say it."""

    name: str
    compute_capability: str
    driver: str | None


def platform_name() -> str:
    """Operating system and processor an engine is tied to: `linux-x86_64`, `windows-x86_64`."""
    system = {"win32": "windows"}.get(sys.platform, sys.platform)
    return f"{system}-{platform.machine().lower().replace('amd64', 'x86_64')}"


def gpu(device_id: int = 0) -> Gpu | None:
    """The GPU engines run on here, None without a driver or without a GPU of that number (as CUDA counts them)."""
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), device_id):
        return None
    name = ctypes.create_string_buffer(256)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), COMPUTE_CAPABILITY_MAJOR, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), COMPUTE_CAPABILITY_MINOR, device)
    return Gpu(name.value.decode(), f"{major.value}.{minor.value}", _driver_version())


def _driver_version() -> str | None:
    try:
        nvml: Any = ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
    except OSError:
        return None
    if nvml.nvmlInit_v2():
        return None
    text = ctypes.create_string_buffer(96)
    status = nvml.nvmlSystemGetDriverVersion(text, len(text))
    nvml.nvmlShutdown()
    return None if status else text.value.decode()
