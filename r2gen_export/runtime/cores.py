"""Which CPUs the engines compute on: how many threads, and which logical CPUs this process may use.

Two hyper-threads of a core share its arithmetic and its caches, so engines get one thread for each physical core.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from r2gen_export.errors import R2GenError

MOST_THREADS: Final = 1024
"""Each takes memory of its own; a typing error must not take all of it."""

CPU_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")
"""Where Linux (cgroup v2) writes a container's CPU limit: `QUOTA PERIOD`, or `max PERIOD`."""

TOPOLOGY: Final = Path("/sys/devices/system/cpu")
"""Where Linux describes its CPUs: `cpuN/topology/core_cpus_list` holds those that share a core."""


def allowed_cpus() -> set[int]:
    """Logical CPUs this process may run on."""
    return set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def physical_cores(cpus: set[int], topology: Path = TOPOLOGY) -> int:
    """Cores that these logical CPUs belong to; as many as there are CPUs where the system does not say."""
    cores = set()
    for cpu in cpus:
        try:
            shared = (topology / f"cpu{cpu}/topology/core_cpus_list").read_text(encoding="ascii").strip()
        except OSError:
            shared = str(cpu)
        cores.add(shared)
    return len(cores)


def available_cores(quota: Path = CPU_QUOTA, topology: Path = TOPOLOGY) -> int:
    """Physical cores this process may keep busy: its affinity, and the container's quota where there is one."""
    cores = physical_cores(allowed_cpus(), topology)
    try:
        allowed, period = quota.read_text(encoding="ascii").split()
        return cores if allowed == "max" else max(1, min(cores, round(int(allowed) / int(period))))
    except (OSError, ValueError):
        return cores


def thread_count(threads: int | None) -> int:
    """Threads for an engine, given explicitly, because its own choice counts the machine's cores, not this process's.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE`.
    """
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise R2GenError("R2G-CONFIG-VALUE", f"{threads} threads", f"give 1 to {MOST_THREADS}")
    return threads or available_cores()


def use_cpus(listed: str) -> None:
    """Keep this process, and the threads engines will start, on some logical CPUs.

    Args:
        listed: as `taskset -c` takes them, like `0-3,8`.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE` for another form, for CPUs this process may not use, and on systems without
            CPU affinity.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise R2GenError("R2G-CONFIG-VALUE", "this system has no CPU affinity", "leave --cpus out")
    try:
        wanted = _parse(listed)
    except ValueError as error:
        raise R2GenError("R2G-CONFIG-VALUE", f"CPUs {listed!r}", "give numbers and ranges, like 0-3,8") from error
    allowed = allowed_cpus()
    if missing := sorted(wanted - allowed):
        message = f"CPU {missing[0]} is not one this process may use"
        raise R2GenError("R2G-CONFIG-VALUE", message, f"choose from {','.join(map(str, sorted(allowed)))}")
    os.sched_setaffinity(0, wanted)


def _parse(listed: str) -> set[int]:
    cpus: set[int] = set()
    for part in listed.split(","):
        low, _, high = part.partition("-")
        first, last = int(low), int(high or low)
        if not 0 <= first <= last < MOST_THREADS:
            raise ValueError(part)
        cpus.update(range(first, last + 1))
    return cpus
