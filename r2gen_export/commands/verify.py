"""`r2gen verify`: a table, or JSON, and the exit status."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from r2gen_export.bundle import Semantics
from r2gen_export.commands.checks import print_checks
from r2gen_export.commands.console import say, write_out
from r2gen_export.errors import R2GenError
from r2gen_export.exporting.verify import verify_bundle


def run_verify(
    bundle: Path,
    checkpoint: Path | None,
    vision: str | None,
    llm: str | None,
    *,
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
    checks = verify_bundle(
        bundle,
        checkpoint,
        vision,
        llm,
        overrides=overrides,
        allow_unexpected=allow_unexpected,
        semantics=semantics,
        max_new_tokens=max_new_tokens,
        stage=lambda name: say(f"{name} ..."),
    )
    if form == "json":
        write_out(json.dumps([dataclasses.asdict(check) for check in checks], indent=1) + "\n")
    else:
        print_checks(checks)
    failed = [check.name for check in checks if not check.passed]
    if failed:
        message = f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}"
        raise R2GenError("R2G-PARITY-FAILED", message, "name the sources it was exported from, or export it again")
