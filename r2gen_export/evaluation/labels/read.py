"""Reports to label, from JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from r2gen_export.errors import R2GenError
from r2gen_export.reporting.report import FAILURE_SCHEMA, REPORT_SCHEMA
from r2gen_export.system.json_fields import unique_fields

FORM = 'a line is {"id": "...", "report": "..."}, or a line of r2gen infer --format json'


class Text(NamedTuple):
    """A report and its id, as the line has it."""

    id: str | int
    report: str


def read_reports(lines: Iterable[str]) -> Iterator[Text]:
    """The reports of JSON lines; blank lines and studies without a report are left out.

    Raises:
        R2GenError: `R2G-EVAL-FORMAT` with the number of the line; `R2G-EVAL-STUDIES` when an id comes twice.
    """
    seen: set[str | int] = set()
    for number, line in enumerate(lines, start=1):
        text = line.lstrip("\ufeff").strip()
        if not text:
            continue
        try:
            fields = json.loads(text, object_pairs_hook=unique_fields)
        except (ValueError, RecursionError) as error:
            raise R2GenError("R2G-EVAL-FORMAT", f"line {number} is not JSON", FORM) from error
        if isinstance(fields, dict) and fields.get("schema") == FAILURE_SCHEMA:
            continue
        report = _report(fields, number)
        if report.id in seen:
            raise R2GenError("R2G-EVAL-STUDIES", f"line {number} has the id of an earlier line", "give every id once")
        seen.add(report.id)
        yield report


def _report(fields: Any, number: int) -> Text:
    names = (
        ("study", "text") if isinstance(fields, dict) and fields.get("schema") == REPORT_SCHEMA else ("id", "report")
    )
    if not isinstance(fields, dict) or any(name not in fields for name in names):
        raise R2GenError("R2G-EVAL-FORMAT", f"line {number} lacks {' or '.join(names)}", FORM)
    study, report = (fields[name] for name in names)
    if isinstance(study, bool) or not isinstance(study, str | int) or not isinstance(report, str):
        raise R2GenError("R2G-EVAL-FORMAT", f"line {number}: id or report is not text", FORM)
    return Text(study, report)
