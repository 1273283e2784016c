"""`r2gen doctor`: gather the checks and show them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from r2gen_export.commands.console import write_out
from r2gen_export.errors import R2GenError

if TYPE_CHECKING:
    from r2gen_export.candidates import Candidate
    from r2gen_export.runtime.doctor import Check

DOCTOR_SCHEMA: Final = "r2gen-doctor/1"
MARKS: Final = {"ok": "ok", "info": "-", "fail": "FAIL"}


def run_doctor(bundle: Path | None, device: str, form: Literal["text", "json"]) -> None:
    """Write the state of this installation to stdout.

    Raises:
        R2GenError: the first check that keeps `infer` from running, under that check's code.
    """
    from r2gen_export.runtime import doctor

    chosen, candidates = doctor.backend_checks(device, bundle)
    checks = [
        *doctor.system_checks(),
        *doctor.package_checks(),
        *doctor.gpu_checks(),
        *chosen,
        *tensorrt_checks(),
        *doctor.bundle_checks(bundle, device),
    ]
    failures = [check for check in checks if check.status == "fail"]
    if form == "json":
        fields = [dataclasses.asdict(check) for check in checks]
        backends = [dataclasses.asdict(candidate) for candidate in candidates]
        state = {"schema": DOCTOR_SCHEMA, "infer_runs": not failures, "checks": fields, "backends": backends}
        write_out(json.dumps(state, indent=1) + "\n")
    else:
        write_out(as_text(checks) + backend_table(candidates))
    if failures:
        first = failures[0]
        raise R2GenError(first.code, f"infer cannot run here: {first.name}: {first.detail}", first.fix)


def tensorrt_checks() -> list[Check]:
    """TensorRT and TensorRT-RTX bindings as checks; `infer` runs without them."""
    from r2gen_export.runtime.doctor import Check
    from trt_engines.probe import probe_bindings

    return [
        Check("tensorrt", probe.product, "ok", f"{probe.module} {probe.version}")
        if probe.usable
        else Check("tensorrt", probe.product, "info", probe.reason)
        for probe in probe_bindings()
    ]


def as_text(checks: Sequence[Check]) -> str:
    """One line per check: area (where it changes), name, mark, detail."""
    width = max(len(check.name) for check in checks)
    lines, area = [], ""
    for check in checks:
        heading = check.area if check.area != area else ""
        area = check.area
        lines.append(f"{heading:<10} {check.name:<{width}}  {MARKS[check.status]:<4}  {check.detail}")
    return "\n".join(lines) + "\n"


def backend_table(candidates: Sequence[Candidate]) -> str:
    """One line per backend that was considered: name, part of the bundle, whether it is taken, why; else nothing."""
    rows = [("backend", "part", "", "why")]
    for candidate in candidates:
        fix = f" ({candidate.fix})" if candidate.fix else ""
        why = candidate.message or candidate.reason.value.replace("-", " ")
        rows.append((candidate.name, candidate.part, "taken" if candidate.taken else "not taken", f"{why}{fix}"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in rows
    ]
    return "\n" + "\n".join(lines) + "\n" if candidates else ""
