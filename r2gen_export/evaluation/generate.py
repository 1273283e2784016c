"""Reports of a bundle for the studies of an annotation's split, resumable study by study.

Studies are decoded in batches that depend on their numbers only, so a run that was stopped and resumed decodes every
study together with the same others, and writes the same reports, as one that was not.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r2gen_export.errors import R2GenError
from r2gen_export.evaluation.predictions import Prediction, Predictions, read_predictions
from r2gen_export.evaluation.references import Reference
from r2gen_export.reporting.report import FAILURE_SCHEMA
from r2gen_export.reporting.results_file import result_key, results_file
from r2gen_export.studies.annotation import resolve
from r2gen_export.studies.images import content_sha256
from r2gen_export.studies.refusal import RefusedError
from r2gen_export.system.versions import VERSION

if TYPE_CHECKING:
    from r2gen_export.runtime.outcome import Outcome
    from r2gen_export.runtime.pipeline import Pipeline


@dataclass(frozen=True)
class Generation:
    """What to generate.

    Attributes:
        pipeline: the loaded bundle.
        studies: of the annotation's split.
        bases: folders that the paths of images start from.
        batch_size: studies decoded together.
        options: preset and settings, as `Pipeline.generate_many` takes them.
    """

    pipeline: Pipeline
    studies: Sequence[Reference]
    bases: Sequence[Path]
    batch_size: int = 8
    options: Mapping[str, Any] = field(default_factory=dict)

    def images(self, number: int) -> list[Path]:
        """The images of a study, whose numbers begin at 1."""
        return [resolve(path, self.bases) for path in self.studies[number - 1].paths]

    def batches(self) -> list[list[int]]:
        """Numbers of the studies that are decoded together."""
        numbers = list(range(1, len(self.studies) + 1))
        return [numbers[at : at + self.batch_size] for at in range(0, len(numbers), self.batch_size)]


def generate_predictions(
    generation: Generation, file: Path, *, advance: Callable[[int], None] = lambda studies: None
) -> Predictions:
    """Write a report, or why there is none, for every study to `file`; what an earlier run left there is kept.

    Args:
        generation: what to generate.
        file: JSON lines as of `infer`; `FILE.partial` until all studies have been tried.
        advance: called with the number of studies that are done now, those of an earlier run included.

    Returns:
        The reports in the order of the studies, with their ids.

    Raises:
        R2GenError: `R2G-EVAL-STUDIES` for a study without images, `R2G-OUTPUT-EXISTS` when `file` is of another bundle,
            settings or images, `R2G-OUTPUT-WRITE`.
    """
    for reference in generation.studies:
        if not reference.paths:
            message = f"{reference.place} has no image_path"
            raise R2GenError("R2G-EVAL-STUDIES", message, "name an annotation with images, or score --predictions")
    with results_file(file, "json", resume=True) as (append, earlier):
        done = _earlier(generation, [json.loads(entry) for entry in earlier.entries])
        todo = [batch for batch in generation.batches() if not done.issuperset(batch)]
        left = sum(map(len, todo))
        advance(len(generation.studies) - left)
        for batch in todo:
            outcomes = generation.pipeline.generate_many(
                [generation.images(number) for number in batch],
                batch_size=generation.batch_size,
                numbers=batch,
                **generation.options,
            )
            # A batch of which only a part is in the file is decoded again as a whole: as long as it is, none is done.
            lines = [_line(generation, outcome) for outcome in outcomes]
            for line in lines:
                append(line)
            advance(len(batch))
    return _read(generation, file)


def _earlier(generation: Generation, entries: Sequence[Mapping[str, Any]]) -> set[int]:
    """Numbers of the studies that an earlier run of the same bundle, settings and images has reports of."""
    done = set()
    for fields in entries:
        number = fields.get("study")
        if not isinstance(number, int) or not 1 <= number <= len(generation.studies):
            raise _foreign()
        if fields["key"] != _key(generation, _hashes(generation, number)):
            raise _foreign()
        done.add(number)
    return done


def _foreign() -> R2GenError:
    message = "the output folder has reports of another bundle, other settings or other images"
    return R2GenError("R2G-OUTPUT-EXISTS", message, "name another --out, or remove its predictions")


def _hashes(generation: Generation, number: int) -> list[str]:
    try:
        return [content_sha256(image) for image in generation.images(number)]
    except RefusedError:
        return []


def _key(generation: Generation, inputs: Sequence[str]) -> str:
    settings = generation.pipeline.settings(**generation.options)
    given = dataclasses.replace(settings.decoding, seed=generation.options.get("seed"))
    return result_key(generation.pipeline.bundle_id, settings.semantics, given, inputs)


def _line(generation: Generation, outcome: Outcome) -> str:
    if outcome.report is not None:
        fields = {**outcome.report.to_dict(), "key": _key(generation, outcome.report.inputs)}
    else:
        assert outcome.error is not None
        error = {"code": outcome.error.code, "message": outcome.error.message, "fix": outcome.error.fix}
        notice = generation.pipeline.manifest.notice
        about = {"schema": FAILURE_SCHEMA, "study": outcome.study, "r2gen_version": VERSION}
        fields = {**about, "error": error, "notice": notice}
    return json.dumps(fields) + "\n"


def _read(generation: Generation, file: Path) -> Predictions:
    """The finished file in the order of the studies; of a study that was tried again, the last entry."""
    read = read_predictions(file)
    last: dict[int, Prediction] = {}
    for entry in read.entries:
        assert entry.number is not None
        last[entry.number] = entry
    entries = [
        dataclasses.replace(last[number], id=reference.id)
        for number, reference in enumerate(generation.studies, start=1)
    ]
    return Predictions(tuple(entries), read.form, read.system)
