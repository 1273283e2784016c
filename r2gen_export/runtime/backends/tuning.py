"""The record of `r2gen tune`: how long each CPU backend takes to decode a bundle on this machine, and the choice.

Kept in the user's cache folder, one file for a bundle and a machine. Whatever opens a bundle reads it and measures
nothing; without a record ONNX Runtime decodes, with one thread for each physical core.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from r2gen_export.bundle import Manifest, bundle_id
from r2gen_export.system.cache_folder import cache_folder
from r2gen_export.system.cores import available_cores, cpu_facts, processor_name
from r2gen_export.system.files import atomic_file
from r2gen_export.system.versions import installed_version

SCHEMA: Final = "r2gen-tuning/2"
"""Version 1 timed batches that are not decoded together any more (`row_check`)."""

Backend = Literal["ONNX Runtime", "OpenVINO"]
ONNX_RUNTIME: Final[Backend] = "ONNX Runtime"
OPENVINO: Final[Backend] = "OpenVINO"

REPORT: Final = 100
"""Tokens of the report whose time decides."""

MARGIN: Final = 0.9
"""Another setting is taken below this part of the default's time: shared machines drift by less."""


@dataclass(frozen=True)
class Workload:
    """What is decoded together: `studies` prompts, each with `beams` rows. `title` is what people read."""

    name: str
    title: str
    studies: int
    beams: int

    @property
    def rows(self) -> int:
        """Rows of one pass of the decoder."""
        return self.studies * self.beams


SINGLE: Final = Workload("single", "single reports", 1, 1)
BEAM: Final = Workload("beam", "single reports with beam 3", 1, 3)
BATCH: Final = Workload("batch", "batches of 8", 8, 1)
WORKLOADS: Final = (SINGLE, BEAM, BATCH)


def workload_of(studies: int, beams: int) -> Workload:
    """The measured workload that is most like `studies` decoded together, each with `beams` rows."""
    if studies * beams == 1:
        return SINGLE
    return BEAM if studies == 1 else BATCH


@dataclass(frozen=True)
class TunedMachine:
    """What a measurement depends on beside the bundle. `cores`: physical ones this process may use."""

    cpu: str
    features: str
    cores: int
    versions: dict[str, str]


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one workload: reading the prompts, and the median pass of one position in every row."""

    workload: str
    backend: str
    threads: int
    prefill_ms: float
    step_ms: float

    @property
    def report_ms(self) -> float:
        """Of a report of `REPORT` tokens, or of a batch of them."""
        return self.prefill_ms + REPORT * self.step_ms


@dataclass(frozen=True)
class Tuning:
    """A record. `skipped`: by backend, why it was not measured."""

    bundle_id: str
    machine: TunedMachine
    timings: tuple[Timing, ...]
    skipped: dict[str, str]

    def of(self, workload: Workload) -> list[Timing]:
        """The timings of a workload, in the order they were measured: ONNX Runtime with every core first."""
        return [timing for timing in self.timings if timing.workload == workload.name]

    def best(self, workload: Workload, backends: Sequence[Backend] = (ONNX_RUNTIME, OPENVINO)) -> Timing | None:
        """The setting to take: the first one measured, unless another needs less than `MARGIN` of its time."""
        timings = [timing for timing in self.of(workload) if timing.backend in backends]
        if not timings:
            return None
        fastest = min(timings, key=lambda timing: timing.report_ms)
        return fastest if fastest.report_ms < MARGIN * timings[0].report_ms else timings[0]

    def to_dict(self) -> dict[str, Any]:
        """JSON form, with the choice for each workload."""
        chosen = {workload.name: self.best(workload) for workload in WORKLOADS}
        choices = {name: {"backend": best.backend, "threads": best.threads} for name, best in chosen.items() if best}
        return {"schema": SCHEMA, **dataclasses.asdict(self), "choices": choices}


def this_machine() -> TunedMachine:
    """The machine this process runs on, as records name it."""
    facts, features = cpu_facts(), ""
    if flags := facts.get("flags") or facts.get("Features"):
        features = hashlib.sha256(" ".join(sorted(flags.split())).encode()).hexdigest()[:12]
    names = ("openvino", "onnxruntime-gpu", "onnxruntime")
    versions = {name: version for name in names if (version := installed_version(name)) is not None}
    return TunedMachine(processor_name(facts), features, available_cores(), versions)


def record_path(manifest: Manifest, machine: TunedMachine) -> Path:
    """Where the record of a bundle and a machine lies."""
    facts = json.dumps(dataclasses.asdict(machine), sort_keys=True)
    digest = hashlib.sha256(facts.encode()).hexdigest()[:12]
    return cache_folder() / "tuning" / f"{bundle_id(manifest)}-{digest}.json"


def read_tuning(manifest: Manifest) -> Tuning | None:
    """The record of a bundle on this machine; None when there is none that can be read."""
    machine = this_machine()
    try:
        fields = json.loads(record_path(manifest, machine).read_text(encoding="utf-8"))
        timings = tuple(Timing(**timing) for timing in fields["timings"])
        record = Tuning(fields["bundle_id"], TunedMachine(**fields["machine"]), timings, dict(fields["skipped"]))
        usable = all(timing.threads >= 1 and 0 < timing.report_ms < float("inf") for timing in timings)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    matches = fields.get("schema") == SCHEMA and (record.bundle_id, record.machine) == (bundle_id(manifest), machine)
    return record if matches and usable and record.best(SINGLE) else None


def write_tuning(manifest: Manifest, record: Tuning) -> Path:
    """Keep a record, whole or not at all.

    Returns:
        Its file.

    Raises:
        R2GenError: `R2G-OUTPUT-WRITE` when the cache folder cannot be written.
    """
    path = record_path(manifest, record.machine)
    with atomic_file(path) as scratch:
        scratch.write_text(json.dumps(record.to_dict(), indent=1) + "\n", encoding="utf-8")
    return path
