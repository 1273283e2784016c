"""`r2gen evaluate compare`: two sides, from folders of results or from files of reports."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r2gen_export.commands.evaluate_run import context_of, image_folders, read_references
from r2gen_export.errors import R2GenError

if TYPE_CHECKING:
    from r2gen_export.commands.evaluate_options import StudyOptions
    from r2gen_export.evaluation.compare import Side


@dataclass(frozen=True)
class CompareRequest:
    """One call of `r2gen evaluate compare`; the options are described in its help."""

    first: Path
    second: Path
    studies: StudyOptions
    protocol: str
    fail_below: str | None
    replicates: int
    out: Path | None


def run_compare(request: CompareRequest) -> dict[str, Any]:
    """Compare, and write `comparison.json` and `comparison.md` where `out` asks for it.

    Raises:
        R2GenError: `R2G-EVAL-FORMAT`, `R2G-EVAL-STUDIES`, `R2G-CONFIG-VALUE`, `R2G-OUTPUT-*`.
    """
    from r2gen_export.evaluation.compare import compare
    from r2gen_export.evaluation.compare_tables import comparison_markdown
    from r2gen_export.evaluation.gates import parse_margins
    from r2gen_export.system.files import atomic_file

    margins = parse_margins(request.fail_below) if request.fail_below is not None else {}
    if request.out is not None and (request.out / "comparison.json").exists():
        raise R2GenError("R2G-OUTPUT-EXISTS", f"{request.out} holds a comparison already", "name another folder")
    sides = [_side(request, path, name) for path, name in ((request.first, "A"), (request.second, "B"))]
    comparison = compare(sides[0], sides[1], margins, replicates=request.replicates)
    if request.out is not None:
        files = {
            "comparison.md": comparison_markdown(comparison),
            "comparison.json": json.dumps(comparison, indent=1) + "\n",
        }
        for name, content in files.items():
            with atomic_file(request.out / name) as file:
                file.write_text(content, encoding="utf-8")
    return comparison


def _side(request: CompareRequest, path: Path, name: str) -> Side:
    from r2gen_export.evaluation.compare import side_of_pairs, side_of_results
    from r2gen_export.evaluation.pairs import pair
    from r2gen_export.evaluation.predictions import read_predictions
    from r2gen_export.evaluation.results_folder import PREDICTIONS, RESULTS, read_results

    if path.is_dir() or path.name == RESULTS:
        side = side_of_results(read_results(path, name))
        reports = (path if path.is_dir() else path.parent) / PREDICTIONS
        return _with_tokens(side, reports) if reports.is_file() else side
    if not path.exists():
        raise R2GenError("R2G-EVAL-FORMAT", f"{name} is not there", "name a folder of r2gen evaluate, or a file")
    references = read_references(request.studies)
    folders = image_folders(request.studies)
    pairs = pair(read_predictions(path, name), references, folders[0] if folders else None)
    return side_of_pairs(pairs, context_of(request.studies, references, request.studies.tokenizer), request.protocol)


def _with_tokens(side: Side, reports: Path) -> Side:
    """The side with the token ids of its bundle's reports; a study without a report has none."""
    from r2gen_export.evaluation.predictions import read_predictions

    tokens = {entry.number: entry.token_ids or () for entry in read_predictions(reports).entries}
    numbers = range(1, len(side.hashes) + 1)
    if not tokens.keys() >= set(numbers):
        return side
    return dataclasses.replace(side, words=[tokens[number] for number in numbers], tokens=True)
