"""Results of `python -m benchmarks.peers --json FILE`, to be shown in a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from benchmarks.latency.report import read_json
from benchmarks.peers.results import PEERS_SCHEMA
from r2gen_export.errors import R2GenError

COLUMNS: Final = {
    "name": "engine",
    "prefill_ms": "prefill ms",
    "token_ms": "ms per token",
    "total_s": "total s",
    "beams_total_s": "with beams, total s",
    "load_s": "load s",
    "peak_gb": "peak GB",
}
"""Fields of a contender, and their titles."""


def load_peers(path: Path) -> dict[str, Any]:
    """The peers' results as they were written: conditions, and a list of `contenders`.

    Raises:
        R2GenError: `R2G-BENCH-FORMAT`.
    """
    fix = "write it with python -m benchmarks.peers --json FILE"
    found = read_json(path, "the file of --peers", fix)
    schema = found.get("schema") if isinstance(found, dict) else None
    contenders = found.get("contenders") if isinstance(found, dict) else None
    if schema != PEERS_SCHEMA or not isinstance(contenders, list):
        raise R2GenError(
            "R2G-BENCH-FORMAT", f"the file of --peers has schema {schema!r}, expected {PEERS_SCHEMA!r}", fix
        )
    if not all(isinstance(one, dict) and isinstance(one.get("name"), str) for one in contenders):
        raise R2GenError("R2G-BENCH-FORMAT", "the file of --peers: a contender has no name", fix)
    return dict(found)


def conditions(found: dict[str, Any]) -> str:
    """The conditions of the peers' run in one line."""
    named = ("shape", "threads", "prompt", "new_tokens", "rounds", "beams", "read_gb_s")
    return ", ".join(f"{name.replace('_', ' ')} {found[name]}" for name in named if name in found)
