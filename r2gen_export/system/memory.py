"""Whether a failure means that this process gets no more memory, and the error it becomes."""

from __future__ import annotations

import errno
from typing import Final

from r2gen_export.errors import R2GenError

PARTS: Final = (
    "bad_alloc",
    "Cannot allocate memory",
    "Failed to allocate memory",
    "can't start new thread",
    "failed to map segment",
)
"""Parts of what C++, the system, ONNX Runtime, Python and the dynamic linker say then."""


def is_out_of_host_memory(error: BaseException) -> bool:
    """Whether an exception says that this process gets no more memory. ONNX Runtime passes C++'s `bad_alloc` on."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return any(part in str(error) for part in PARTS)


def out_of_host_memory(what: str, said: str = "") -> R2GenError:
    """The error for it: `what` says what was being done, `said` is the library's message."""
    fix = "free memory, raise the limit (ulimit -v), give a smaller --batch-size, or export a bundle of fewer bits"
    return R2GenError("R2G-RESOURCE-MEMORY", f"not enough memory: {what}" + (f" ({said})" if said else ""), fix)
