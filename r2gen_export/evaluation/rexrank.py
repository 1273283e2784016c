"""ReXrank's form of inference: a JSON of studies in, the same JSON with `model_prediction` out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from r2gen_export.errors import R2GenError
from r2gen_export.evaluation.generate import Generation, generate_predictions
from r2gen_export.evaluation.predictions import wrong_form
from r2gen_export.evaluation.references import Reference
from r2gen_export.runtime.pipeline import Pipeline
from r2gen_export.studies.annotation import read_text
from r2gen_export.system.files import atomic_file

FORM = 'expected {ID: {"image_path": [...], ...}}'


def read_studies(path: Path) -> tuple[dict[str, Any], list[Reference]]:
    """The JSON of studies, and each one's images.

    Raises:
        R2GenError: `R2G-EVAL-FORMAT` with the place of a study, `R2G-DATA-EMPTY`.
    """
    subject = "the input"
    try:
        record = json.loads(read_text(path, subject))
    except R2GenError as error:
        raise R2GenError("R2G-EVAL-FORMAT", error.message, error.fix) from error
    except (ValueError, RecursionError) as error:
        raise wrong_form(f"{subject} is not JSON", FORM) from error
    if not isinstance(record, dict):
        raise wrong_form(f"{subject} is no object", FORM)
    studies = []
    for number, (identity, fields) in enumerate(record.items(), start=1):
        paths = fields.get("image_path") if isinstance(fields, dict) else None
        paths = [paths] if isinstance(paths, str) else paths
        if not isinstance(paths, list) or not paths or not all(isinstance(part, str) and part for part in paths):
            raise wrong_form(f"entry {number} of {subject} has no image_path", FORM)
        studies.append(Reference(f"entry {number} of {subject}", identity, "", tuple(paths)))
    if not studies:
        raise R2GenError("R2G-DATA-EMPTY", f"{subject} holds no study", "name another file")
    return record, studies


def write_predictions(
    pipeline: Pipeline,
    source: Path,
    target: Path,
    images: Path,
    *,
    batch_size: int = 8,
    options: Mapping[str, Any] | None = None,
    advance: Callable[[int], None] = lambda studies: None,
) -> int:
    """Write `target`: every study of `source` with its `model_prediction`, empty where no report could be made.

    Reports are kept in `TARGET.jsonl` until all are there, so a run that was stopped goes on.

    Args:
        pipeline: the loaded bundle.
        source, target: JSON files.
        images: folder that the paths of images start from.
        batch_size: studies decoded together.
        options: as `Pipeline.generate_many` takes them.
        advance: called with the number of studies that are done now.

    Returns:
        How many studies have no report.

    Raises:
        R2GenError: of `read_studies` and `generate_predictions`.
    """
    record, studies = read_studies(source)
    generation = Generation(pipeline, studies, [images], batch_size, options or {})
    scratch = target.with_name(target.name + ".jsonl")
    predictions = generate_predictions(generation, scratch, advance=advance)
    for entry in predictions.entries:
        assert entry.id is not None
        record[entry.id] = {**record[entry.id], "model_prediction": entry.text}
    with atomic_file(target) as file:
        file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    scratch.unlink()
    return sum(entry.failed for entry in predictions.entries)
