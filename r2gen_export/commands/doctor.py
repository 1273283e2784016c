"""`r2gen doctor`: its options, and the checks as text or JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from r2gen_export.commands.console import guarded, write_out
from r2gen_export.commands.help_page import HelpCommand, command_app, examples
from r2gen_export.commands.options import BundleOption, DeviceOption, Format
from r2gen_export.errors import R2GenError

if TYPE_CHECKING:
    from r2gen_export.candidates import Candidate
    from r2gen_export.runtime.doctor import Check

DOCTOR_SCHEMA: Final = "r2gen-doctor/1"
MARKS: Final = {"ok": "ok", "info": "-", "fail": "FAIL"}

app = command_app()


@app.command(cls=HelpCommand, epilog=examples("r2gen doctor", "r2gen doctor --bundle my-bundle --device cuda"))
@guarded
def doctor(
    bundle: BundleOption = None,
    device: DeviceOption = "auto",
    form: Annotated[
        Format,
        typer.Option("--format", help="Form of the result: text, or json with one object that lists all checks."),
    ] = Format.text,
) -> None:
    """Check whether this machine can run infer, and by which backend.

    Shows versions, backends and why a faster one is not used, the GPU, and the health of the bundle. The exit status is
    not 0 when infer could not run.
    """
    run_doctor(bundle, device, form.value)


def run_doctor(bundle: Path | None, device: str, form: Literal["text", "json"]) -> None:
    """Write the state of this installation to stdout.

    Raises:
        R2GenError: the first check that keeps `infer` from running, under that check's code.
    """
    from r2gen_export.bundle import Bundle
    from r2gen_export.runtime import doctor

    opened = Bundle(bundle)
    chosen, candidates = doctor.backend_checks(device, opened)
    checks = [
        *doctor.system_checks(),
        *doctor.package_checks(),
        *doctor.gpu_checks(),
        *chosen,
        *tensorrt_checks(),
        *doctor.bundle_checks(opened, device),
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
