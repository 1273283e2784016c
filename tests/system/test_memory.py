"""Memory that is free and that was taken, from folders that look like the kernel's; a container's limits hold."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from r2gen_export.system.memory import (
    anonymous_memory,
    available_memory,
    peak_rss,
    reset_peak_rss,
    total_memory,
)

needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc")


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """100 MB, of which 80 are available."""
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:      100000 kB\nMemFree:  1 kB\nMemAvailable:   80000 kB\n")
    return path


def group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def test_without_a_limit_the_machine_counts(tmp_path: Path, machine: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/\n")
    group(tmp_path / "groups", memory__max="max", memory__current=7)
    assert available_memory(machine, tmp_path / "groups", own) == 80000 * 1024
    assert total_memory(machine, tmp_path / "groups", own) == 100000 * 1024
    assert available_memory(tmp_path / "none", tmp_path / "none", own) == float("inf")


def test_the_least_of_nested_groups_holds_and_idle_file_cache_is_free(tmp_path: Path, machine: Path) -> None:
    """Version 2: the limit is that of the job, whose process has read a checkpoint through the file cache."""
    own, groups = tmp_path / "own", tmp_path / "groups"
    own.write_text("0::/slice/job\n")
    group(groups / "slice", memory__max=60_000_000, memory__current=10_000_000)
    statistics = "anon 1\ninactive_file 15000000\nactive_file 2"
    group(groups / "slice/job", memory__max=30_000_000, memory__current=20_000_000, memory__stat=statistics)
    assert available_memory(machine, groups, own) == 25_000_000
    assert total_memory(machine, groups, own) == 30_000_000
    (groups / "slice/memory.current").write_text("55000000\n")
    assert available_memory(machine, groups, own) == 5_000_000


def test_limits_of_version_1(tmp_path: Path, machine: Path) -> None:
    own, groups = tmp_path / "own", tmp_path / "groups"
    own.write_text("9:cpu:/docker/abc\n4:memory:/docker/abc\n")
    group(groups / "memory", memory__limit_in_bytes=9223372036854771712, memory__usage_in_bytes=1)
    statistics = "inactive_file 1\ntotal_inactive_file 3000000"
    files = {"memory__limit_in_bytes": 40_000_000, "memory__usage_in_bytes": 20_000_000, "memory__stat": statistics}
    group(groups / "memory/docker/abc", **files)
    group(groups / "cpu/docker/abc", memory__limit_in_bytes=1, memory__usage_in_bytes=1)
    assert available_memory(machine, groups, own) == 23_000_000
    assert total_memory(machine, groups, own) == 40_000_000


@needs_linux
def test_this_machine_says_how_much_it_has() -> None:
    total = total_memory()
    assert total is not None and 0 < available_memory() <= total <= os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE


@needs_linux
def test_a_process_and_its_peak() -> None:
    """64 MB that are written count at once, in the peak after they went too, and not after a reset."""
    before = anonymous_memory()
    memory = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.write(b"1" * (64 << 20))
    assert anonymous_memory() - before > 60 << 20
    held = peak_rss()
    memory.close()
    assert peak_rss() >= held
    reset_peak_rss()
    assert peak_rss() < held - (32 << 20)


@needs_linux
def test_the_peak_of_another_process() -> None:
    code = "held = b'1' * (96 << 20); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert peak_rss(child.pid) > 96 << 20
        child.communicate(b"\n")
    assert peak_rss(child.pid) == 0
