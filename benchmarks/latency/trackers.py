"""What a run cost beside time: energy, GPU memory, and what else this machine was doing meanwhile."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from r2gen_export.system.nvml import NvmlMemory, nvml_text, open_nvml

RAPL: Final = Path("/sys/class/powercap")
STAT: Final = Path("/proc/stat")
CORES: Final = Path("/sys/devices/system/cpu")


class Rapl:
    """Energy of the processor packages, from Linux's powercap (Intel and AMD); on most systems only root may read it.

    `reason` says why there is nothing to read, else it is empty.
    """

    def __init__(self, folder: Path = RAPL) -> None:
        self._packages: list[tuple[Path, int]] = []
        self.reason = ""
        for domain in sorted(folder.glob("intel-rapl:[0-9]")):  # subdomains have a second colon
            try:
                int((domain / "energy_uj").read_text(encoding="ascii"))
                wraps = int((domain / "max_energy_range_uj").read_text(encoding="ascii"))
                self._packages.append((domain / "energy_uj", wraps))
            except PermissionError:
                self.reason = "the RAPL counters are readable by root only"
            except (OSError, ValueError):
                continue
        if not self._packages and not self.reason:
            self.reason = "this system shows no RAPL counters"

    def read(self) -> list[int]:
        """Microjoules of each package, counted from some moment."""
        return [int(path.read_text(encoding="ascii")) for path, _ in self._packages]

    def joules(self, before: list[int], after: list[int]) -> float | None:
        """Energy between two readings; counters wrap around."""
        if not self._packages:
            return None
        pairs = zip(before, after, self._packages, strict=True)
        return sum((late - early) % (wraps + 1) for early, late, (_, wraps) in pairs) / 1e6


class Nvml:
    """The first NVIDIA GPU, asked through its driver. `reason` says why there is none, else it is empty."""

    def __init__(self) -> None:
        self.reason = ""
        self._device = ctypes.c_void_p()
        try:
            self._nvml = open_nvml()
        except OSError:
            self.reason = "no NVIDIA driver on this machine"
            return
        if self._nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(self._device)):
            self.reason = "the NVIDIA driver shows no GPU"

    def energy_mj(self) -> int | None:
        """Millijoules since the driver was loaded."""
        value = ctypes.c_ulonglong()
        return int(value.value) if self._ask("nvmlDeviceGetTotalEnergyConsumption", value) else None

    def memory_mb(self) -> float | None:
        """Memory in use on the GPU, everybody's, in MB."""
        value = NvmlMemory()
        return value.used / 1e6 if self._ask("nvmlDeviceGetMemoryInfo", value) else None

    def throttle_reasons(self) -> int:
        """NVML's bit mask of why clocks are lowered (`nvmlClocksThrottleReason*`), without idle and user settings."""
        value = ctypes.c_ulonglong()
        settings = 0x1 | 0x2 | 0x100
        asked = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", value)
        return value.value & ~settings if asked else 0

    def facts(self) -> dict[str, Any] | None:
        """Name, driver, memory, clocks in MHz, power limit in W; None without a GPU."""
        if self.reason:
            return None
        clocks = {}
        for kind, number in (("graphics", 0), ("sm", 1), ("memory", 2)):
            value = ctypes.c_uint()
            if self._nvml.nvmlDeviceGetClockInfo(self._device, number, ctypes.byref(value)) == 0:
                clocks[kind] = int(value.value)
        limit, memory = ctypes.c_uint(), NvmlMemory()
        limited = self._ask("nvmlDeviceGetPowerManagementLimit", limit)
        sized = self._ask("nvmlDeviceGetMemoryInfo", memory)
        return {
            "name": nvml_text(self._nvml.nvmlDeviceGetName, self._device),
            "driver": nvml_text(self._nvml.nvmlSystemGetDriverVersion),
            "memory_mb": round(memory.total / 1e6) if sized else None,
            "clocks_mhz": clocks,
            "power_limit_w": limit.value / 1000 if limited else None,
        }

    def _ask(self, function: str, value: Any) -> bool:
        return not self.reason and getattr(self._nvml, function)(self._device, ctypes.byref(value)) == 0


def processor_seconds(stat: Path = STAT) -> tuple[float, float] | None:
    """(busy, stolen) seconds of all cores since boot; stolen ones the hypervisor gave to others. None off Linux."""
    try:
        fields = [int(field) for field in stat.read_text(encoding="ascii").split("\n", 1)[0].split()[1:]]
    except (OSError, ValueError):
        return None
    tick = os.sysconf("SC_CLK_TCK")
    user, nice, system, _, _, irq, softirq, *more = fields
    return (user + nice + system + irq + softirq) / tick, (more[0] if more else 0) / tick


def throttle_count() -> int | None:
    """How often the cores were slowed down for heat since boot; None where the system does not say."""
    counts = []
    for path in CORES.glob("cpu[0-9]*/thermal_throttle/core_throttle_count"):
        try:
            counts.append(int(path.read_text(encoding="ascii")))
        except (OSError, ValueError):
            continue
    return sum(counts) if counts else None


@dataclass
class Watch:
    """What the timed rounds of one configuration cost and met, summed; readings in between do not count.

    `own_s`: CPU seconds of the measured processes, which are told by `round_ended`.
    """

    rapl: Rapl
    nvml: Nvml
    wall_s: float = 0.0
    own_s: float = 0.0
    busy_s: float = 0.0
    stolen_s: float = 0.0
    throttled: int = 0
    gpu_throttle: int = 0
    readable: bool = True
    _before: dict[str, Any] = field(default_factory=dict)

    def round_begins(self) -> None:
        """Take the first readings."""
        self._before = {
            "rapl": self.rapl.read(),
            "gpu": self.nvml.energy_mj(),
            "cpu": processor_seconds(),
            "throttle": throttle_count(),
            "clock": perf_counter(),
        }

    def round_ended(self, own_cpu_ms: float) -> dict[str, float | None]:
        """Take the second ones: energy in joules of this round, GPU memory in MB after it, None: not readable."""
        before, after = self._before, processor_seconds()
        self.wall_s += perf_counter() - before["clock"]
        self.own_s += own_cpu_ms / 1000
        if after is None or before["cpu"] is None:
            self.readable = False
        else:
            self.busy_s += after[0] - before["cpu"][0]
            self.stolen_s += after[1] - before["cpu"][1]
        self.throttled += (throttle_count() or 0) - (before["throttle"] or 0)
        self.gpu_throttle |= self.nvml.throttle_reasons()
        gpu = self.nvml.energy_mj()
        return {
            "cpu_j": self.rapl.joules(before["rapl"], self.rapl.read()),
            "gpu_j": (gpu - before["gpu"]) / 1000 if gpu is not None and before["gpu"] is not None else None,
            "gpu_mb": self.nvml.memory_mb(),
        }

    def load(self) -> dict[str, Any]:
        """Cores that others kept busy and that the hypervisor took, on average over the timed rounds."""
        return {
            "foreign_cores": max(0.0, self.busy_s - self.own_s) / self.wall_s
            if self.readable and self.wall_s
            else None,
            "stolen_cores": self.stolen_s / self.wall_s if self.readable and self.wall_s else None,
            "throttle_events": self.throttled if throttle_count() is not None else None,
            "gpu_throttle_reasons": self.gpu_throttle,
        }
