"""What `r2gen infer` is told, and its results: entries of a file or of stdout, and what an earlier run left to do."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from r2gen_export.commands.console import write_out
from r2gen_export.errors import CodedError, R2GenError
from r2gen_export.system.versions import VERSION

if TYPE_CHECKING:
    from r2gen_export.decoding import Decoding, Semantics
    from r2gen_export.reporting.results_file import Numbered
    from r2gen_export.runtime.outcome import Outcome
    from r2gen_export.runtime.pipeline import Pipeline
    from r2gen_export.studies.dicom.types import DicomSettings, Polarity
    from r2gen_export.studies.study import Study, StudyList


@dataclass(frozen=True)
class InferRequest:
    """One call of `r2gen infer`. `options` go to `Pipeline.generate`; `stream` None: on a terminal.

    `together`: the images are the views of one study. `polarity`, `force`: of `DicomSettings`. `resume`: studies whose
    report is in `out` already are left out. `split`: the only split of annotations that is taken.
    `format` is one of `ReportFormat` in `commands/options.py`; `replaces`: the file of an earlier result of the study.
    """

    images: tuple[Path, ...]
    together: bool = False
    polarity: Polarity = "auto"
    force: bool = False
    bundle: Path | None = None
    format: str = "text"
    fhir_version: Literal["R4", "R5"] = "R4"
    replaces: Path | None = None
    out: Path | None = None
    overwrite: bool = False
    resume: bool = False
    split: str | None = None
    device: str = "auto"
    threads: int | None = None
    cpus: str | None = None
    batch_size: int = 8
    names: bool = False
    stream: bool | None = None
    quiet: bool = False
    verbose: bool = False
    draft: bool | None = None
    learn: bool = True
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def dicom(self) -> DicomSettings:
        """How DICOM files are read."""
        from r2gen_export.studies.dicom.types import DicomSettings

        return DicomSettings(self.polarity, self.force)


@contextmanager
def results(request: InferRequest) -> Iterator[tuple[Callable[[str], Any], Counter[Numbered]]]:
    """What writes an entry to stdout or the file, and what an earlier run left there (`Earlier.keys`)."""
    if request.out is None or request.format not in ("text", "json"):
        yield write_out, Counter()
        return
    from r2gen_export.reporting.results_file import results_file

    with results_file(request.out, "json" if request.format == "json" else "text", resume=request.resume) as (
        append,
        earlier,
    ):
        yield append, earlier.keys


@dataclass(frozen=True)
class Work:
    """The studies of a call that have no report yet, with their numbers; `total` counts all of the call."""

    pending: tuple[tuple[int, Study], ...]
    total: int


def remaining(request: InferRequest, pipeline: Pipeline, studies: StudyList, earlier: Counter[Numbered]) -> Work:
    """What an earlier run left to do.

    Args:
        earlier: numbers and keys of the reports it wrote. An image that cannot be read counts as not reported: it fails
            later, with its own error.

    Raises:
        R2GenError: `R2G-OUTPUT-EXISTS` when it has a study of this call under another number: its report would stand
            in the file as that of another study.
    """
    numbered = tuple(enumerate(studies.studies, start=1))
    if not earlier:
        return Work(numbered, len(numbered))
    from r2gen_export.studies.images import content_sha256
    from r2gen_export.studies.refusal import RefusedError

    settings = pipeline.settings(**request.options)
    left = earlier.copy()
    pending, missing = [], []
    for number, study in numbered:
        try:
            inputs = [content_sha256(image) for image in study.images]
        except (RefusedError, MemoryError):
            inputs = []
        key = _key(request, pipeline.bundle_id, settings.semantics, settings.decoding, inputs)
        if left[number, key] > 0:
            left[number, key] -= 1
        else:
            pending.append((number, study))
            missing.append(key)
    if moved := {key for _, key in +left}.intersection(missing):
        message = f"the file has reports of {len(moved)} of the call's studies under other numbers"
        fix = "name the studies as in the run that was stopped, or take another --out for these"
        raise R2GenError("R2G-OUTPUT-EXISTS", message, fix)
    return Work(tuple(pending), len(numbered))


def _key(request: InferRequest, bundle_id: str, semantics: Semantics, decoding: Decoding, inputs: Sequence[str]) -> str:
    """What a report is made from; a seed that was drawn for one call is not part of it."""
    from r2gen_export.reporting.results_file import result_key
    from r2gen_export.studies.dicom.types import DicomSettings

    given = dataclasses.replace(decoding, seed=request.options.get("seed"))
    reading = [] if request.dicom == DicomSettings() else [f"polarity {request.polarity}, force {request.force}"]
    return result_key(bundle_id, semantics, given, [*inputs, *reading])


def on_one_line(name: str | Path) -> str:
    """A name as text may show it: a line break in a file's name would begin the entry of another study."""
    return "".join(part if part.isprintable() else part.encode("unicode_escape").decode() for part in str(name))


def message_of(request: InferRequest, study: Study, error: CodedError) -> str:
    """The error's message, which begins with the study's number; with `--names`, its name behind it."""
    return f"{error.message} ({on_one_line(study.name)})" if request.names else error.message


def entry(request: InferRequest, pipeline: Pipeline, study: Study, outcome: Outcome, total: int) -> str:
    """One study's line of JSON, or its block of text."""
    name = study.name if request.names else None
    key = ""
    if outcome.report is not None:
        report = dataclasses.replace(outcome.report, name=name)
        key = _key(request, report.bundle_id, report.semantics, report.decoding, report.inputs)
        if request.format == "json":
            return as_json({**report.to_dict(), "key": key}) + "\n"
        body = report.to_text()
    else:
        assert outcome.error is not None
        message = message_of(request, study, outcome.error)
        if request.format == "json":
            return as_json(_failure(outcome, message, name, pipeline.manifest.notice)) + "\n"
        body = f"no report: {outcome.error.code}: {message}"
    views = f", {len(study.images)} views" if len(study.images) > 1 else ""
    title = f"study {outcome.study} of {total}{views}" + (f": {on_one_line(name)}" if name else "")
    # Without a file there is nothing to go on with, and nobody needs the key.
    mark = f" [{key}]" if key and request.out else ""
    return f"== {title}{mark} ==\n{body}\n\n"


def _failure(outcome: Outcome, message: str, name: str | None, notice: str) -> dict[str, Any]:
    from r2gen_export.reporting.report import FAILURE_SCHEMA

    assert outcome.error is not None
    created = datetime.now(UTC).isoformat(timespec="milliseconds")
    fields: dict[str, Any] = {"schema": FAILURE_SCHEMA, "study": outcome.study, "created": created}
    fields["r2gen_version"] = VERSION
    if name is not None:
        fields["name"] = name
    error = {"code": outcome.error.code, "message": message, "fix": outcome.error.fix}
    return {**fields, "error": error, "notice": notice}


def as_json(fields: dict[str, Any]) -> str:
    return json.dumps(fields)
