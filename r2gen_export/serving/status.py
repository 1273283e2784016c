"""The queue of a spool as a table and as plain data: keyed hashes, states and reasons, no identifiers."""

from __future__ import annotations

import time
from typing import Any

from r2gen_export.errors import R2GenError
from r2gen_export.serving.queue import Queue

STUDY = """
SELECT s.id, s.name, s.revision, s.state, s.code, s.reason, s.attempts, s.deaths, s.conflicts, s.too_late, s.created,
    s.changed, s.purged,
    (SELECT count(*) FROM images i WHERE i.study_uid = s.study_uid AND i.revision <= s.revision) AS images,
    (SELECT count(*) FROM deliveries d WHERE d.study = s.id) AS deliveries,
    (SELECT count(*) FROM deliveries d WHERE d.study = s.id AND d.state = 'sent') AS delivered
FROM studies s
"""


def studies(queue: Queue, *, unfinished: bool = False) -> list[dict[str, Any]]:
    """The studies of a queue, the oldest first.

    Args:
        queue: the queue.
        unfinished: leave out those that were sent.
    """
    where = "WHERE s.state != 'sent'" if unfinished else ""
    return [_plain(dict(row)) for row in queue.rows(f"{STUDY} {where} ORDER BY s.id")]


def study(queue: Queue, number: int) -> dict[str, Any]:
    """One study with its deliveries.

    Raises:
        R2GenError: `R2G-NODE-SPOOL` when there is none with this number.
    """
    rows = queue.rows(f"{STUDY} WHERE s.id = ?", number)
    if not rows:
        raise no_such_study(number)
    deliveries = queue.rows(
        "SELECT r.form, d.destination, d.state, d.attempts, d.reason FROM deliveries d JOIN results r ON r.id = "
        "d.result WHERE d.study = ? ORDER BY d.id",
        number,
    )
    return {**_plain(dict(rows[0])), "sending": [dict(row) for row in deliveries]}


def no_such_study(number: int) -> R2GenError:
    """The error for a number that the queue does not have."""
    return R2GenError("R2G-NODE-SPOOL", f"the queue has no study {number}", "r2gen node status shows the numbers")


def counts(queue: Queue) -> dict[str, int]:
    """Number of studies by state, for those states that occur."""
    return {row["state"]: row["n"] for row in queue.rows("SELECT state, count(*) n FROM studies GROUP BY state")}


COLUMNS = ("id", "study", "rev", "state", "images", "delivered", "age", "reason")


def table(rows: list[dict[str, Any]]) -> str:
    """Studies as lines of text in columns, with a heading."""
    cells = [COLUMNS, *(_cells(row) for row in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(COLUMNS))]
    lines = ("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells)
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    remarks = [f"{row['code']}: {row['reason']}" if row["code"] else row["reason"]]
    remarks += [f"{row['conflicts']} images with other bytes under the same UID"] if row["conflicts"] else []
    remarks += [f"{row['too_late']} images too late for a report"] if row["too_late"] else []
    remarks += ["files removed"] if row["purged"] else []
    return (
        str(row["id"]), row["name"], str(row["revision"]), row["state"], str(row["images"]),
        f"{row['delivered']}/{row['deliveries']}", _age(row["age_s"]), "; ".join(filter(None, remarks)),
    )  # fmt: skip


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    age = max(0.0, time.time() - row.pop("created"))
    return {
        **row,
        "changed_s": round(max(0.0, time.time() - row.pop("changed")), 1),
        "age_s": round(age, 1),
        "purged": bool(row["purged"]),
    }


def _age(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
