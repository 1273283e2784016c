"""Weights in pages of 2 MB: a decoder reads all of them for every token, and looks 512 times fewer addresses up.

Linux gives huge pages only where they are asked for (`madvise`). ONNX Runtime does not ask. glibc's allocator does when
it is told so before the process starts: `restart_with_huge_pages`, for commands. `use_huge_pages` collapses what was
allocated without (about a second for a gigabyte), which pays for many reports, not for one.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

TUNABLES: Final = "GLIBC_TUNABLES"

HUGE: Final = "glibc.malloc.hugetlb"
"""glibc 2.35 and newer: 1 asks for transparent huge pages (glibc manual, "Memory Allocation Tunables")."""

MODE: Final = Path("/sys/kernel/mm/transparent_hugepage/enabled")
"""`always [madvise] never`, the one in brackets holds."""

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


def huge_page_environment(mode: Path = MODE) -> dict[str, str]:
    """Variables with which a process starts that is to have its allocations in huge pages.

    Empty where that changes nothing: not Linux with glibc 2.35, or a kernel that gives such pages always or never; and
    where the user has set it.
    """
    set_already = os.environ.get(TUNABLES, "")
    if not sys.platform.startswith("linux") or HUGE in set_already:
        return {}
    library, version = platform.libc_ver()
    try:
        old = library != "glibc" or tuple(map(int, version.split("."))) < (2, 35)
        if old or "[madvise]" not in mode.read_text(encoding="ascii"):
            return {}
    except (OSError, ValueError):
        return {}
    return {TUNABLES: ":".join(filter(None, (set_already, f"{HUGE}=1")))}


def restart_with_huge_pages() -> None:
    """Replace this process by the same one with its allocations in huge pages, where that can be had; once."""
    if variables := huge_page_environment():
        with suppress(OSError):  # then it goes on as it is, only slower
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **variables})
