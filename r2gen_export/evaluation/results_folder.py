"""The folder that an evaluation writes: `results.json`, `table.md`, `table.tex`, `report.html`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from r2gen_export.errors import R2GenError
from r2gen_export.evaluation.evaluate import RESULTS_SCHEMA
from r2gen_export.evaluation.page import Texts, to_html
from r2gen_export.evaluation.tables import to_latex, to_markdown
from r2gen_export.studies.annotation import read_text
from r2gen_export.system.files import atomic_file

RESULTS: Final = "results.json"
PREDICTIONS: Final = "predictions.jsonl"
"""Reports of a bundle, as `infer --format json` writes them; they are patient data."""


def write_results(folder: Path, results: Mapping[str, Any], texts: Texts | None = None) -> None:
    """Write the four files, `results.json` last: it is there when all of them are.

    Raises:
        R2GenError: `R2G-OUTPUT-WRITE`.
    """
    files = {
        "table.md": to_markdown(results),
        "table.tex": to_latex(results),
        "report.html": to_html(results, texts),
        RESULTS: json.dumps(results, indent=1, allow_nan=False) + "\n",
    }
    for name, content in files.items():
        with atomic_file(folder / name) as file:
            file.write_text(content, encoding="utf-8")


def read_results(path: Path, subject: str) -> dict[str, Any]:
    """The results in a folder, or in its `results.json`.

    Raises:
        R2GenError: `R2G-EVAL-FORMAT`.
    """
    file = path / RESULTS if path.is_dir() else path
    fix = "name a folder that r2gen evaluate --out wrote"
    try:
        results = json.loads(read_text(file, subject))
    except R2GenError as error:
        raise R2GenError("R2G-EVAL-FORMAT", error.message, fix) from error
    except (ValueError, RecursionError) as error:
        raise R2GenError("R2G-EVAL-FORMAT", f"{subject} is not JSON", fix) from error
    if not isinstance(results, dict) or results.get("schema") != RESULTS_SCHEMA:
        raise R2GenError("R2G-EVAL-FORMAT", f"{subject} has no results of schema {RESULTS_SCHEMA}", fix)
    return results
