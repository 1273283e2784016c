"""Weights in pages of 2 MB: a decoder reads all of them for every token, and looks 512 times fewer addresses up.

Linux gives huge pages only where they are asked for (`madvise`). ONNX Runtime does not ask; this collapses what it has
allocated, once, after loading (about a second for a gigabyte), so it pays for many reports, not for one.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Final

PAGE: Final = 2 << 20

MADV_COLLAPSE: Final = 25
"""Linux 6.1 and newer."""

LEAST: Final = 8 << 20
"""Bytes of a mapping worth the call."""


def use_huge_pages() -> int:
    """Put this process's large allocations into huge pages; how many bytes were, 0 where that cannot be done."""
    if not sys.platform.startswith("linux"):
        return 0
    try:
        maps = Path("/proc/self/maps").read_text(encoding="ascii", errors="replace").splitlines()
        madvise = ctypes.CDLL(None, use_errno=True).madvise
    except (OSError, AttributeError):
        return 0
    done = 0
    for line in maps:
        span, mode, _, _, inode, *name = line.split(maxsplit=5)
        if mode != "rw-p" or inode != "0" or (name and name[0] != "[heap]"):
            continue
        low, high = (int(end, 16) for end in span.split("-"))
        low, high = -(-low // PAGE) * PAGE, high // PAGE * PAGE
        if high - low < LEAST:
            continue
        if madvise(ctypes.c_void_p(low), ctypes.c_size_t(high - low), MADV_COLLAPSE) == 0:
            done += high - low
    return done
