"""Numbers that papers print, from a data file with the source of each row. Rows without a source are not shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("published.json")


def published_rows(dataset: str | None) -> list[dict[str, Any]]:
    """The rows of a data set that were read somewhere: `model, data, metrics, remark`."""
    rows = json.loads(FILE.read_text(encoding="utf-8"))["rows"]
    shown = [row for row in rows if row["dataset"] == dataset and row["verified"] in ("paper", "other")]
    return [{key: row[key] for key in ("model", "data", "metrics")} | {"remark": _remark(row)} for row in shown]


def _remark(row: dict[str, Any]) -> str:
    return row["source"] if row["verified"] == "paper" else f"from {row['source']}, not checked against the paper"
