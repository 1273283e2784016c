"""Memory of the machine and of this process, and whether a failure means that this process gets no more of it.

A container's limits count as the machine's. Where the system does not say a figure (Windows, some of them macOS),
each function says what it gives instead.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from r2gen_export.errors import R2GenError
from r2gen_export.system.cgroups import CGROUPS, OWN_GROUPS, group_folders

MACHINE: Final = Path("/proc/meminfo")
PROCESSES: Final = Path("/proc")

RESET_PEAK: Final = "5"
"""For `clear_refs` (proc(5)): resets the peak resident set size of the process."""

UNLIMITED: Final = 1 << 60
"""Version 1 of the control groups writes a number beyond this where there is no limit."""

MESSAGES: Final = (
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
    return any(part in str(error) for part in MESSAGES)


def out_of_host_memory(what: str, said: str = "") -> R2GenError:
    """The error for it: `what` says what was being done, `said` is the library's message."""
    fix = "free memory, raise the limit (ulimit -v), give a smaller --batch-size, or export a bundle of fewer bits"
    return R2GenError("R2G-RESOURCE-MEMORY", f"not enough memory: {what}" + (f" ({said})" if said else ""), fix)


def available_memory(machine: Path = MACHINE, groups: Path = CGROUPS, own: Path = OWN_GROUPS) -> float:
    """Bytes this process may still take: of the machine, and of each control group that limits it.

    A group's file cache that is not in use is not counted as taken: the system drops it when memory is needed.
    Infinity where the system does not say.
    """
    free = [_field(machine, "MemAvailable:") or float("inf")]
    for folder in group_folders("memory", groups, own):
        limit, used = _limit(folder), _number(folder, "memory.current", "memory.usage_in_bytes")
        if limit is not None and used is not None:
            statistics = folder / "memory.stat"
            # The total, of version 1, counts the groups below too, as `used` does; version 2 has no other.
            cache = _field(statistics, "total_inactive_file", unit=1) or _field(statistics, "inactive_file", unit=1)
            free.append(max(0.0, limit - used + (cache or 0)))
    return min(free)


def total_memory(machine: Path = MACHINE, groups: Path = CGROUPS, own: Path = OWN_GROUPS) -> int | None:
    """Bytes of memory this process could have if nothing else ran: the machine's, or the least limit of its groups.

    None where the system does not say.
    """
    physical = _field(machine, "MemTotal:")
    if physical is None and "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [_limit(folder) for folder in group_folders("memory", groups, own)]
    return min((size for size in (physical, *limits) if size is not None), default=None)


def reset_peak_rss() -> None:
    """Begin a new measurement of `peak_rss` where the system can (Linux); elsewhere it is over the process's life."""
    with suppress(OSError):
        (PROCESSES / "self/clear_refs").write_text(RESET_PEAK, encoding="ascii")


def peak_rss(process: int | None = None) -> int:
    """Largest resident set size in bytes, since `reset_peak_rss` where that can; 0 where the system does not say.

    Args:
        process: id of another process (Linux only); this one when None.
    """
    peak = _field(PROCESSES / str(process or "self") / "status", "VmHWM:")
    if peak is not None or process is not None or sys.platform == "win32":
        return peak or 0
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def anonymous_memory() -> int:
    """Bytes of this process's own memory, mapped files not counted; 0 where the system does not say."""
    return _field(PROCESSES / "self/status", "RssAnon:") or 0


def _limit(folder: Path) -> int | None:
    """Of one control group; None where it has none."""
    limit = _number(folder, "memory.max", "memory.limit_in_bytes")
    return None if limit is None or limit >= UNLIMITED else limit


def _number(folder: Path, *names: str) -> int | None:
    """The only number in the first file that has one (of version 2 or 1); None for another text and without a file."""
    for name in names:
        with suppress(OSError, ValueError):
            return int((folder / name).read_text(encoding="ascii"))
    return None


def _field(path: Path, name: str, unit: int = 1024) -> int | None:
    """Bytes behind a name at the beginning of a line; None where there is none."""
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
        return next((int(words[1]) * unit for words in map(str.split, lines) if words and words[0] == name), None)
    except (OSError, ValueError, IndexError):
        return None
