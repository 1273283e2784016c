"""Which CPUs the engines compute on: how many threads, and which logical CPUs this process may use.

Two hyper-threads of a core share its arithmetic and its caches, so engines get one thread for each physical core.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from r2gen_export.errors import R2GenError
from r2gen_export.system.cgroups import CGROUPS, OWN_GROUPS, group_folders

MOST_CPUS: Final = 8192
"""A range like 0-999999999 must not take all memory."""

TOPOLOGY: Final = Path("/sys/devices/system/cpu")
"""Where Linux describes its CPUs: `cpuN/topology/core_cpus_list` holds those that share a core."""

CPU_FACTS: Final = Path("/proc/cpuinfo")


def allowed_cpus() -> set[int]:
    """Logical CPUs this process may run on."""
    return set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def cpu_facts() -> dict[str, str]:
    """What Linux says of the last of the CPUs (`/proc/cpuinfo`), by name; empty where it says nothing."""
    try:
        lines = CPU_FACTS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def processor_name(facts: Mapping[str, str] | None = None) -> str:
    """The CPU's name. `facts`: from `cpu_facts`, read when None."""
    known = cpu_facts() if facts is None else facts
    return known.get("model name") or platform.processor() or platform.machine()


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


def available_cores(groups: Path = CGROUPS, own: Path = OWN_GROUPS, topology: Path = TOPOLOGY) -> int:
    """Physical cores this process may keep busy: its affinity, and the least quota of its control groups."""
    cores = physical_cores(allowed_cpus(), topology)
    return max(1, min([cores, *(round(quota) for quota in cpu_quotas(groups, own))]))


def cpu_quotas(groups: Path = CGROUPS, own: Path = OWN_GROUPS) -> list[float]:
    """CPUs' worth of time that each control group of this process may use, from its own up to the root.

    Version 2 writes `QUOTA PERIOD` or `max PERIOD` into `cpu.max`; version 1 has a file for each, -1 for no limit.
    """
    quotas = (_quota(folder) for folder in group_folders("cpu", groups, own))
    return [quota for quota in quotas if quota is not None]


def _quota(folder: Path) -> float | None:
    try:
        if (limit := folder / "cpu.max").is_file():
            allowed, period = limit.read_text(encoding="ascii").split()
        else:
            allowed, period = (
                (folder / f"cpu.cfs_{part}_us").read_text(encoding="ascii").strip() for part in ("quota", "period")
            )
        return None if allowed in ("max", "-1") else int(allowed) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def thread_count(threads: int | None) -> int:
    """Threads for an engine, given explicitly, because its own choice counts the machine's cores, not this process's.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE` for more threads than logical CPUs: they would wait for each other, for minutes.
    """
    most = len(allowed_cpus())
    if threads is not None and not 1 <= threads <= most:
        raise R2GenError("R2G-CONFIG-VALUE", f"{threads} threads on {most} CPUs", f"give 1 to {most}")
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
        if not 0 <= first <= last < MOST_CPUS:
            raise ValueError(part)
        cpus.update(range(first, last + 1))
    return cpus
