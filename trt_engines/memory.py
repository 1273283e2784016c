"""The process's peak memory, asked of the operating system."""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from pathlib import Path

CLEAR: str = "5"  # proc(5): resets the peak resident set size of the process


def reset_peak_rss() -> None:
    """Begin a new measurement where the system can (Linux); elsewhere the peak is that of the process's whole life."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text(CLEAR, encoding="ascii")


def peak_rss() -> int:
    """Largest resident set size in bytes since `reset_peak_rss`; 0 where the system does not say it (Windows)."""
    with suppress(OSError):
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    if sys.platform == "win32":
        return 0
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
