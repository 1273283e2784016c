"""A table of parity checks, for `r2gen export` and `r2gen verify`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from r2gen_export.bundle import ParityCheck


def print_checks(checks: Sequence[ParityCheck], *, to_stderr: bool = False) -> None:
    """One row per check: verdict, the smallest tolerance that would pass, the tolerance that was set."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("check", "verdict", "found", "allowed", ""):
        table.add_column(title, overflow="fold")
    for check in checks:
        verdict = ("passed" if check.passed else "FAILED") if check.gate else "measured"
        allowed = f"{check.tolerance:.3g}" if check.gate else ""
        table.add_row(check.name, verdict, f"{check.observed:.3g}", allowed, check.detail)
    Console(file=sys.stderr if to_stderr else sys.stdout, highlight=False, markup=False).print(table)
