"""`r2gen infer`: one study streamed, or many with a progress bar and failures kept apart."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from r2gen_export.commands.console import output, progress_bar, say, write_out
from r2gen_export.errors import R2GenError

if TYPE_CHECKING:
    from r2gen_export.runtime.pipeline import Outcome, Pipeline
    from r2gen_export.runtime.report import Report
    from r2gen_export.runtime.studies import Study, StudyList

UNFINISHED = "[unfinished draft: the generation stopped here]"


@dataclass(frozen=True)
class InferRequest:
    """One call of `r2gen infer`. `options` go to `Pipeline.generate`; `stream` None: on a terminal."""

    images: tuple[Path, ...]
    bundle: Path | None = None
    format: Literal["text", "json"] = "text"
    out: Path | None = None
    device: str = "auto"
    threads: int | None = None
    cpus: str | None = None
    batch_size: int = 8
    names: bool = False
    stream: bool | None = None
    quiet: bool = False
    draft: bool | None = None
    learn: bool = True
    options: dict[str, Any] = field(default_factory=dict)


def run_infer(request: InferRequest) -> None:
    """Write the reports of a call to stdout or `out`; everything else goes to stderr.

    Raises:
        R2GenError: what the single study raises; `R2G-STUDIES-FAILED` after many when some could not be reported.
    """
    from r2gen_export.bundle import load_manifest
    from r2gen_export.runtime.cores import use_cpus
    from r2gen_export.runtime.engines import is_large
    from r2gen_export.runtime.hugepages import restart_with_huge_pages
    from r2gen_export.runtime.pipeline import Pipeline, bundle_path
    from r2gen_export.runtime.studies import collect_studies

    if _decodes_on_cpu(request.device) and is_large(load_manifest(bundle_path(request.bundle))):
        restart_with_huge_pages()
    if request.cpus is not None:
        use_cpus(request.cpus)
    studies = collect_studies(request.images)
    pipeline = Pipeline.from_bundle(
        request.bundle, device=request.device, threads=request.threads, draft=request.draft, learn=request.learn
    )
    if not request.quiet:
        say(f"{pipeline.manifest.model_id} ({pipeline.bundle_id}) on {pipeline.provider.name}")
        for step in pipeline.provider.steps:
            say(f"  {step}")
    if studies.many:
        _many(request, pipeline, studies)
    else:
        _one(request, pipeline, studies.studies[0])


def _decodes_on_cpu(device: str) -> bool:
    """Whether weights will be in this process's memory, as far as that is known before anything is loaded."""
    from r2gen_export.runtime.gpu import why_no_gpu

    return device in ("cpu", "openvino") or (device == "auto" and bool(why_no_gpu()))


def _one(request: InferRequest, pipeline: Pipeline, study: Study) -> None:
    with output(request.out) as write:
        if request.format == "text" and request.out is None and _streams(request):
            _stream(request, pipeline, study)
            return
        report = _generate(request, pipeline, study)
        for warning in report.warnings:
            say(f"WARNING {warning}")
        report = dataclasses.replace(report, name=study.name if request.names else None)
        write((_json(report.to_dict()) if request.format == "json" else report.to_text()) + "\n")


def _generate(
    request: InferRequest, pipeline: Pipeline, study: Study, on_text: Callable[[str], None] | None = None
) -> Report:
    """The report of the only study; its errors name its images by number unless `--names` was given."""
    from r2gen_export.runtime.studies import without_names

    try:
        return pipeline.generate(study.images, on_text=on_text, **request.options)
    except R2GenError as error:
        if request.names:
            raise
        raise R2GenError(error.code, without_names(error, study, 1), error.fix) from error


def _streams(request: InferRequest) -> bool:
    return sys.stdout.isatty() if request.stream is None else request.stream


def _stream(request: InferRequest, pipeline: Pipeline, study: Study) -> None:
    from r2gen_export.runtime.report import notice_block, warning_block

    begun = False

    def show(piece: str) -> None:
        nonlocal begun
        begun = True
        write_out(piece)

    notice = f"\n\n{notice_block(pipeline.manifest.notice)}\n"
    try:
        report = _generate(request, pipeline, study, on_text=show)
    except BrokenPipeError:
        raise
    except BaseException:
        # What was shown stays on the screen: it must not stand there without the notice.
        if begun:
            write_out(f"\n{UNFINISHED}{notice}")
        raise
    warnings = warning_block(report.warnings)
    write_out(f"\n\n{warnings}{notice}" if warnings else notice)


def _many(request: InferRequest, pipeline: Pipeline, studies: StudyList) -> None:
    failed: list[int] = []
    total = len(studies.studies)
    outcomes = pipeline.generate_many(
        (study.images for study in studies.studies), batch_size=request.batch_size, **request.options
    )
    with output(request.out) as write, progress_bar() as bar:
        task = bar.add_task("studies", total=total, visible=not request.quiet)
        shared_screen = request.out is None and sys.stdout.isatty() and bar.console.is_terminal

        def show(text: str, to: Callable[[str], Any]) -> None:
            if shared_screen:
                bar.stop()
            to(text)
            if shared_screen:
                bar.start()

        steps = len(pipeline.provider.steps)
        for study, outcome in zip(studies.studies, outcomes, strict=True):
            for step in pipeline.provider.steps[steps:]:
                show(step, say)
            steps = len(pipeline.provider.steps)
            if outcome.error is not None:
                failed.append(outcome.study)
                show(f"study {outcome.study}: {outcome.error.code}: {_message(request, study, outcome)}", say)
            for warning in outcome.report.warnings if outcome.report is not None else ():
                show(f"WARNING study {outcome.study}, {warning}", say)
            show(_entry(request, pipeline, study, outcome, total), write)
            bar.advance(task)
    if failed:
        shown = ", ".join(map(str, failed[:10])) + (", ..." if len(failed) > 10 else "")
        raise R2GenError(
            "R2G-STUDIES-FAILED",
            f"{len(failed)} of {total} studies have no report: {shown}",
            "see the lines above; --names shows which files they are",
        )


def _message(request: InferRequest, study: Study, outcome: Outcome) -> str:
    from r2gen_export.runtime.studies import without_names

    assert outcome.error is not None
    if request.names:
        return f"{outcome.error.message} ({study.name})"
    return without_names(outcome.error, study, outcome.study)


def _entry(request: InferRequest, pipeline: Pipeline, study: Study, outcome: Outcome, total: int) -> str:
    """One study's line of JSON, or its block of text."""
    name = study.name if request.names else None
    if outcome.report is not None:
        report = dataclasses.replace(outcome.report, name=name)
        if request.format == "json":
            return _json(report.to_dict()) + "\n"
        body = report.to_text()
    else:
        assert outcome.error is not None
        message = _message(request, study, outcome)
        if request.format == "json":
            return _json(_failure(outcome, message, name, pipeline.manifest.notice)) + "\n"
        body = f"no report: {outcome.error.code}: {message}"
    title = f"study {outcome.study} of {total}" + (f": {name}" if name else "")
    return f"== {title} ==\n{body}\n\n"


def _failure(outcome: Outcome, message: str, name: str | None, notice: str) -> dict[str, Any]:
    from r2gen_export.runtime.report import FAILURE_SCHEMA

    assert outcome.error is not None
    fields: dict[str, Any] = {"schema": FAILURE_SCHEMA, "study": outcome.study}
    if name is not None:
        fields["name"] = name
    error = {"code": outcome.error.code, "message": message, "fix": outcome.error.fix}
    return {**fields, "error": error, "notice": notice}


def _json(fields: dict[str, Any]) -> str:
    return json.dumps(fields)
