"""What one call of `r2gen bench` measures: settings, and the configurations that compete."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Final

from r2gen_export.bundle import Manifest
from r2gen_export.errors import R2GenError
from r2gen_export.runtime.backends.select import EngineCandidates
from r2gen_export.runtime.settings import Settings, resolve_settings
from r2gen_export.system.cores import available_cores, thread_count

MOST_RUNS: Final = 100_000


@dataclass(frozen=True)
class Sources:
    """What the bundle was exported from, for the PyTorch reference."""

    checkpoint: Path
    vision: str
    llm: str
    dtype: str = "fp32"


@dataclass(frozen=True)
class BenchSettings:
    """One call.

    Attributes:
        bundle: the folder.
        out: the folder to write.
        images: folder, list or annotation of studies; drawn phantoms when None.
        runs: timed reports of each configuration (batches, where `batch` is above 1), spread over the processes.
        processes: fresh processes of each configuration, one after the other. Two runs of one process resemble each
            other more than those of two processes, so only the latter can tell chance from change.
        warmup: reports before the timed ones in each process, the first of them included.
        devices, presets, batches, concurrencies: a configuration for each combination.
        threads: CPU threads of each process; the usable cores, divided by the concurrency, when None.
        draft: as `infer` takes it.
        overrides: fields of `Decoding`.
        sources: measure the PyTorch model beside the bundle.
        peers: file of `benchmarks.peers --json` to show.
        baseline: an earlier report to compare with.
        command: the command line as the report shows it.
    """

    bundle: Path
    out: Path
    images: Path | None = None
    runs: int = 24
    processes: int = 6
    warmup: int = 2
    devices: tuple[str, ...] = ("auto",)
    presets: tuple[str, ...] = ()
    batches: tuple[int, ...] = (1,)
    concurrencies: tuple[int, ...] = (1,)
    threads: int | None = None
    draft: bool | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    sources: Sources | None = None
    peers: Path | None = None
    baseline: Path | None = None
    command: str = "r2gen bench"

    @property
    def rounds(self) -> int:
        """Timed reports (or batches) of one process."""
        return -(-self.runs // self.processes)


@dataclass(frozen=True)
class Configuration:
    """One contender: `concurrency` processes which report at the same time, `batch` studies decoded together in each.

    `engine` is `r2gen`, or `torch` for the PyTorch reference. `threads`: of one graph; with `own_threads` a process
    chooses them itself, as `infer` does: the decoder's by the record of `r2gen tune`, and else this number.
    """

    device: str
    settings: Settings
    batch: int
    concurrency: int
    threads: int
    engine: str = "r2gen"
    own_threads: bool = False

    @property
    def requested_threads(self) -> int | None:
        """Threads that a process is told to take; None where it chooses itself."""
        return None if self.own_threads else self.threads

    @property
    def name(self) -> str:
        """What reports call it, and what `compare` finds it by."""
        parts = [self.engine] if self.engine != "r2gen" else []
        parts += [self.device, self.settings.preset]
        parts += [f"batch {self.batch}"] if self.batch > 1 else []
        return ", ".join(parts + ([f"{self.concurrency} at once"] if self.concurrency > 1 else []))


def plan(settings: BenchSettings, manifest: Manifest) -> list[Configuration]:
    """The configurations of a call, the PyTorch reference last.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE` for a setting out of range; `R2G-DEVICE-UNAVAILABLE` when a device asked for is
            not usable, before anything is measured.
    """
    for name, value, least in (
        ("runs", settings.runs, 1),
        ("processes", settings.processes, 1),
        ("warmup", settings.warmup, 1),
    ):
        if not least <= value <= MOST_RUNS:
            raise R2GenError("R2G-CONFIG-VALUE", f"--{name} {value}", f"give {least} to {MOST_RUNS}")
    if settings.runs < settings.processes:
        message = f"{settings.runs} runs cannot be spread over {settings.processes} processes"
        raise R2GenError("R2G-CONFIG-VALUE", message, f"--runs {settings.processes} or more, or fewer --processes")
    for name, values in (("batch", settings.batches), ("concurrency", settings.concurrencies)):
        if wrong := [value for value in values if not 1 <= value <= 1024]:
            raise R2GenError("R2G-CONFIG-VALUE", f"--{name} {wrong[0]}", "give 1 to 1024")
    thread_count(settings.threads)  # refused before anything is measured
    for device in settings.devices:
        EngineCandidates(settings.bundle, manifest, device).choose(device)
    presets = settings.presets or (manifest.default_preset,)
    resolved = [resolve_settings(manifest, preset=preset, overrides=settings.overrides) for preset in presets]
    cores = available_cores()
    contenders = [
        Configuration(
            device,
            decoding,
            batch,
            together,
            settings.threads or max(1, cores // together),
            own_threads=settings.threads is None and together == 1,
        )
        for device, decoding, batch, together in product(
            settings.devices, resolved, settings.batches, settings.concurrencies
        )
    ]
    if settings.sources is not None:
        contenders += [
            Configuration("cpu", decoding, 1, 1, settings.threads or cores, "torch") for decoding in resolved
        ]
    return list({one.name: one for one in contenders}.values())  # `--devices cpu,cpu` is one contender
