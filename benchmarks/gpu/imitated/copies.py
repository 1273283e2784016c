"""What was copied between host and device, asked of the imitated runtime in this process."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from r2gen_export.errors import R2GenError

UP, DOWN, WITHIN = 1, 2, 3
"""`cudaMemcpyKind`: host to device, device to host, device to device."""


@dataclass(frozen=True)
class Copy:
    """One call of `cudaMemcpy` or its kin. `kind`: `cudaMemcpyKind`."""

    kind: int
    bytes: int


class CopyLog:
    """The log of copies of this process, which must run with `LD_LIBRARY_PATH` on the imitated libraries.

    Raises:
        R2GenError: `R2G-DEVICE-UNAVAILABLE` when the process has another CUDA runtime, or none.
    """

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL("libcudart.so.13")
            self._library.r2g_log.restype = ctypes.c_longlong
        except (OSError, AttributeError) as error:
            message = "this process does not run on the imitated CUDA runtime"
            fix = "start it with LD_LIBRARY_PATH on the folder that benchmarks.gpu.imitated.build made"
            raise R2GenError("R2G-DEVICE-UNAVAILABLE", message, fix) from error

    def reset(self) -> None:
        """Forget the copies so far."""
        self._library.r2g_reset()

    def copies(self) -> list[Copy]:
        """Copies since the last reset, in the order they were made."""
        length = self._library.r2g_log(None, None, ctypes.c_longlong(0))
        kinds, sizes = (ctypes.c_int * length)(), (ctypes.c_longlong * length)()
        self._library.r2g_log(kinds, sizes, ctypes.c_longlong(length))
        return [Copy(kind, size) for kind, size in zip(kinds, sizes, strict=True)]

    def counter(self, name: str) -> int:
        """A counter of `cudart.c`: `launches`, `syncs`, `allocs`, `captures`, `graphs`, `live_bytes`."""
        return int(ctypes.c_longlong.in_dll(self._library, f"r2g_{name}").value)
