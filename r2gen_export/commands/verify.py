"""`r2gen verify`: a table, or JSON, and the exit status."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from r2gen_export.bundle import ParityCheck
from r2gen_export.commands.checks import print_checks
from r2gen_export.commands.console import say, say_passed_over, write_out
from r2gen_export.decoding import Semantics
from r2gen_export.errors import R2GenError
from r2gen_export.exporting.parity.metrics import first_divergence
from r2gen_export.exporting.verify import verify_bundle
from r2gen_export.studies.collect import collect_studies


def run_verify(
    bundle: Path,
    checkpoint: Path | None,
    vision: str | None,
    llm: str | None,
    *,
    images: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    allow_unexpected: Sequence[str] = (),
    semantics: Semantics | None = None,
    max_new_tokens: int | None = None,
    form: str = "text",
) -> None:
    """Check and print to stdout.

    Raises:
        R2GenError: what `verify_bundle` raises; `R2G-PARITY-FAILED` (exit status 3) when a check failed.
    """
    if images is not None:
        say_passed_over(collect_studies([images]))
    checks = verify_bundle(
        bundle,
        checkpoint,
        vision,
        llm,
        images=images,
        overrides=overrides,
        allow_unexpected=allow_unexpected,
        semantics=semantics,
        max_new_tokens=max_new_tokens,
        stage=lambda name: say(f"{name} ..."),
    )
    if form == "json":
        write_out(json.dumps([_fields(check) for check in checks], indent=1) + "\n")
    else:
        print_checks(checks)
    failed = [check.name for check in checks if not check.passed]
    if failed:
        message = f"{len(failed)} of {len(checks)} checks failed, first in {first_divergence(checks)}"
        raise R2GenError("R2G-PARITY-FAILED", message, "name the sources it was exported from, or export it again")


def _fields(check: ParityCheck) -> dict[str, Any]:
    """JSON has no infinity: the difference of what is not finite is null."""
    fields = dataclasses.asdict(check)
    return fields if math.isfinite(check.observed) else {**fields, "observed": None}
