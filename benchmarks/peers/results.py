"""The table of `benchmarks.peers` as a file, which `r2gen bench --peers FILE` shows in its report."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from r2gen_export.system.files import atomic_file

PEERS_SCHEMA: Final = "r2gen-peers/1"


class Measured(Protocol):
    """What is read of a contender. `samples`: by number of beams, what its worker answered."""

    name: str
    load_s: float
    peak_gb: float
    samples: dict[int, list[dict[str, Any]]]


def write_results(path: Path | None, contenders: Sequence[Measured], conditions: Mapping[str, Any], beams: int) -> None:
    """Write medians over the rounds, and the conditions they hold under; nothing without a path.

    Raises:
        R2GenError: `R2G-OUTPUT-WRITE`.
    """
    if path is None:
        return
    rows = [_row(one, beams) for one in contenders if one.samples.get(1)]
    with atomic_file(path) as scratch:
        text = json.dumps({"schema": PEERS_SCHEMA, **conditions, "contenders": rows}, indent=1)
        scratch.write_text(text + "\n", encoding="utf-8")


def _row(one: Measured, beams: int) -> dict[str, Any]:
    runs, wide = one.samples[1], one.samples.get(beams, []) if beams > 1 else []
    return {
        "name": one.name,
        "prefill_ms": statistics.median(run["prefill_ms"] for run in runs),
        "token_ms": statistics.median(step for run in runs for step in run["decode_ms"]),
        "total_s": statistics.median(run["total_ms"] for run in runs) / 1000,
        "beams_total_s": statistics.median(run["total_ms"] for run in wide) / 1000 if wide else None,
        "load_s": one.load_s,
        "peak_gb": one.peak_gb,
    }
