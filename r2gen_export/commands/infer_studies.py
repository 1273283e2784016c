"""`r2gen infer`: one study streamed, or many with a progress bar and failures kept apart.

Names of studies and images, which may identify patients, are added here and only with `--names`.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from r2gen_export.commands.console import check_output, output, progress_bar, say, say_passed_over, write_out
from r2gen_export.commands.infer_documents import Documents, check_request, written_form
from r2gen_export.commands.infer_results import (
    InferRequest,
    Work,
    as_json,
    entry,
    message_of,
    on_one_line,
    remaining,
    results,
)
from r2gen_export.errors import CodedError, InternalError, R2GenError
from r2gen_export.system.files import partial_path

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from r2gen_export.bundle import Bundle
    from r2gen_export.reporting.report import Report
    from r2gen_export.reporting.writers import Form
    from r2gen_export.runtime.pipeline import Pipeline
    from r2gen_export.studies.archives import Archives
    from r2gen_export.studies.study import Study, StudyList

UNFINISHED = "[unfinished draft: the generation stopped here]"

BACKENDS: Final = {
    "CPUExecutionProvider": "CPU (ONNX Runtime)",
    "CUDAExecutionProvider": "GPU (ONNX Runtime, CUDA)",
    "TensorrtExecutionProvider": "GPU (ONNX Runtime, TensorRT)",
    "NvTensorRTRTXExecutionProvider": "GPU (ONNX Runtime, TensorRT-RTX)",
    "OpenVINO": "CPU (OpenVINO)",
}
"""What stderr calls the names in reports; those of TensorRT engines are shown as they are."""


def run_infer(request: InferRequest) -> None:
    """Write the reports of a call to stdout or `out`; everything else goes to stderr.

    Raises:
        R2GenError: what the single study raises; `R2G-STUDIES-FAILED` after many when some could not be reported;
            `R2G-OUTPUT-EXISTS` before any work.
        KeyboardInterrupt, Terminated: by a signal; reports that were finished are kept, and stderr says where.
    """
    from r2gen_export.bundle import Bundle
    from r2gen_export.runtime.backends.decoders import is_large
    from r2gen_export.studies.archives import Archives
    from r2gen_export.system.cores import thread_count, use_cpus
    from r2gen_export.system.gpu import decodes_on_cpu
    from r2gen_export.system.huge_pages import restart_with_huge_pages

    form = written_form(request)
    if form is not None:
        check_request(request, form)
    elif request.replaces is not None:
        message = "--replaces goes with --format sr, dicom-pdf or kos"
        raise R2GenError("R2G-CONFIG-VALUE", message, "add the --format, or leave --replaces out")
    if request.resume and (request.out is None or request.overwrite):
        message = "--resume goes on with the file of --out" if request.out is None else "--resume and --overwrite"
        raise R2GenError("R2G-CONFIG-VALUE", message, "give --resume and --out FILE, without --overwrite")
    if form is None:
        check_output(request.out, overwrite=request.overwrite or request.resume)
    bundle = Bundle(request.bundle)
    if decodes_on_cpu(request.device) and is_large(bundle.manifest):
        restart_with_huge_pages()
    if request.cpus is not None:
        use_cpus(request.cpus)
    thread_count(request.threads)
    with Archives() as archives:
        _report(request, bundle, _collect(request, archives), form)


def _report(request: InferRequest, bundle: Bundle, studies: StudyList, form: Form | None) -> None:
    from r2gen_export.bundle.manifest import DEMO_NOTICE
    from r2gen_export.candidates import Reason, render
    from r2gen_export.runtime.pipeline import Pipeline

    documents = Documents.of(request, studies, form) if form is not None else None
    pipeline = Pipeline.from_bundle(
        bundle,
        device=request.device,
        threads=request.threads,
        draft=request.draft,
        learn=request.learn,
        batch=request.batch_size if studies.many else 1,
        decoding=request.options,
        dicom=request.dicom,
    )
    if not request.quiet:
        name = pipeline.provider.name
        say(f"{pipeline.manifest.model_id} ({pipeline.bundle_id}) on {BACKENDS.get(name, name)}")
        for candidate in pipeline.provider.candidates:
            if request.verbose or candidate.reason is Reason.not_exact:
                say(f"  {render(candidate)}")
        if documents is not None and pipeline.manifest.synthetic:  # text and JSON show it beside each report
            say(f"WARNING {DEMO_NOTICE} --bundle names another bundle")
    if studies.many or request.resume:
        _many(request, pipeline, studies, documents)
    else:
        _one(request, pipeline, studies.studies[0], documents)


def _collect(request: InferRequest, archives: Archives) -> StudyList:
    """The studies of the call, with a progress bar over the headers of DICOM files; what was passed over goes to
    stderr."""
    from r2gen_export.studies.collect import collect_studies

    try:
        with _header_progress(quiet=request.quiet) as advance:
            studies = collect_studies(
                request.images,
                together=request.together,
                dicom=request.dicom,
                archives=archives,
                progress=advance,
                split=request.split,
            )
    except R2GenError as error:
        if not request.names:
            raise
        listed = ", ".join(f"{number}: {on_one_line(path)}" for number, path in enumerate(request.images[:10], start=1))
        raise error.with_message(f"{error.message} (arguments: {listed})") from error
    say_passed_over(studies, quiet=request.quiet)
    return studies


@contextmanager
def _header_progress(*, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar that begins with the first header: one without a task leaves an empty line."""
    with ExitStack() as stack:
        shown: list[tuple[Bar, TaskID]] = []

        def advance(done: int, total: int) -> None:
            if not quiet and not shown:
                bar = stack.enter_context(progress_bar())
                shown.append((bar, bar.add_task("DICOM headers", total=total)))
            for bar, task in shown:
                bar.update(task, completed=done)

        yield advance


def _one(request: InferRequest, pipeline: Pipeline, study: Study, documents: Documents | None) -> None:
    if documents is not None:
        report = _generate(request, pipeline, study)
        for warning in report.warnings:
            say(f"WARNING {warning}")
        documents.write_single(pipeline, study, report)
        return
    parts = [f"{len(study.images)} views"] if len(study.images) > 1 else []
    title = ": ".join([*parts, on_one_line(study.name)] if request.names else parts)
    title = f"== {title} ==\n" if title else ""
    with output(request.out) as write:
        if request.format == "text" and request.out is None and _streams(request):
            _stream(request, pipeline, study, title)
            return
        report = _generate(request, pipeline, study)
        for warning in report.warnings:
            say(f"WARNING {warning}")
        report = dataclasses.replace(report, name=study.name if request.names else None)
        write((as_json(report.to_dict()) if request.format == "json" else title + report.to_text()) + "\n")


def _generate(
    request: InferRequest, pipeline: Pipeline, study: Study, on_text: Callable[[str], None] | None = None
) -> Report:
    """The report of the only study; its errors number the images, and with `--names` say which those are."""
    try:
        return pipeline.generate(study, on_text=on_text, **request.options)
    except CodedError as error:
        if not request.names:
            raise
        listed = ", ".join(f"view {number}: {on_one_line(path)}" for number, path in enumerate(study.images, start=1))
        raise error.with_message(f"{error.message} ({listed})") from error


def _streams(request: InferRequest) -> bool:
    return sys.stdout.isatty() if request.stream is None else request.stream


def _stream(request: InferRequest, pipeline: Pipeline, study: Study, title: str) -> None:
    from r2gen_export.reporting.report import closing

    begun = False

    def show(piece: str) -> None:
        nonlocal begun
        first, begun = not begun, True
        write_out(title + piece if first else piece)

    notice = pipeline.manifest.notice
    try:
        report = _generate(request, pipeline, study, on_text=show)
    except BrokenPipeError:
        raise
    except BaseException:
        # What was shown stays on the screen: it must not stand there without the notice.
        if begun:
            write_out(f"\n{UNFINISHED}{closing((), notice)}\n")
        raise
    write_out(f"{closing(report.warnings, notice)}\n")


def _many(request: InferRequest, pipeline: Pipeline, studies: StudyList, documents: Documents | None) -> None:
    total = len(studies.studies)
    progress = _Progress()
    started = perf_counter()
    try:
        with results(request) as (write, earlier), progress_bar() as bar:
            work = remaining(request, pipeline, studies, earlier)
            progress.earlier = total - len(work.pending)
            if documents is not None:
                documents.clear()
            _write_all(request, pipeline, work, _Screen(request, bar, write, documents), progress)
    except BrokenPipeError:
        raise
    except BaseException:
        if finished := progress.written + progress.earlier:
            resumable = request.out is not None and documents is None
            where = partial_path(request.out) if request.out and resumable else request.out or "stdout"
            again = "; the same command with --resume does the rest" if resumable else ""
            say(f"{where} has the {finished} of {total} studies that were finished{again}")
        raise
    if not request.quiet:
        say(_summary(request, progress, perf_counter() - started))
    if progress.failed:
        shown = ", ".join(map(str, progress.failed[:10])) + (", ..." if len(progress.failed) > 10 else "")
        raise R2GenError(
            "R2G-STUDIES-FAILED",
            f"{len(progress.failed)} of {total} studies have no report: {shown}",
            "see the lines above; --names shows which files they are",
        )


@dataclass
class _Progress:
    """How far a call with many studies is: entries written, and the numbers of studies without a report.

    `earlier`: reports that an earlier run had written.
    """

    written: int = 0
    earlier: int = 0
    failed: list[int] = field(default_factory=list)


def _summary(request: InferRequest, progress: _Progress, seconds: float) -> str:
    """`60 reports in reports.jsonl, 2 studies without one, 14.2 reports/s`; loading the bundle does not count."""
    failed = len(progress.failed)
    reports = progress.written - failed
    parts = [f"{reports} report{'s' * (reports != 1)}" + (f" in {request.out.name}" if request.out else "")]
    if progress.earlier:
        parts.append(f"{progress.earlier} there already")
    if failed:
        parts.append(f"{failed} {'study' if failed == 1 else 'studies'} without one")
    return ", ".join([*parts, f"{reports / max(seconds, 1e-9):.1f} reports/s"])


class _Screen:
    """stdout or a file, and stderr with its progress bar, which may be one terminal. Documents are written beside."""

    def __init__(
        self, request: InferRequest, bar: Bar, write: Callable[[str], Any], documents: Documents | None
    ) -> None:
        self.bar, self._write, self.documents = bar, write, documents
        self._shared = request.out is None and sys.stdout.isatty() and bar.console.is_terminal

    def say(self, line: str) -> None:
        """A line on stderr."""
        self._show(line, say)

    def write(self, text: str) -> None:
        """An entry on stdout or in the file."""
        self._show(text, self._write)

    def _show(self, text: str, to: Callable[[str], Any]) -> None:
        if self._shared:
            self.bar.stop()
        to(text)
        if self._shared:
            self.bar.start()


def _write_all(request: InferRequest, pipeline: Pipeline, work: Work, screen: _Screen, progress: _Progress) -> None:
    pending, total = work.pending, work.total
    steps = len(pipeline.provider.steps)  # those that follow are said below
    outcomes = pipeline.generate_many(
        (study for _, study in pending),
        batch_size=min(request.batch_size, max(1, len(pending))),
        numbers=[number for number, _ in pending],
        **request.options,
    )
    if request.quiet:
        steps = len(pipeline.provider.steps)  # that studies are decoded one at a time is no warning
    task = screen.bar.add_task("studies", total=total, completed=progress.earlier, visible=not request.quiet)
    for (number, study), generated in zip(pending, outcomes, strict=True):
        if generated.study != number:
            raise InternalError(f"study {generated.study} came in the place of study {number}")
        outcome = generated if screen.documents is None else screen.documents.write(pipeline, study, generated)
        for step in pipeline.provider.steps[steps:]:
            screen.say(step)
        steps = len(pipeline.provider.steps)
        if outcome.error is not None:
            progress.failed.append(outcome.study)
            screen.say(f"{outcome.error.code}: {message_of(request, study, outcome.error)}")
        for warning in outcome.report.warnings if outcome.report is not None else ():
            screen.say(f"WARNING study {outcome.study}, {warning}")
        if screen.documents is None:
            screen.write(entry(request, pipeline, study, outcome, total))
        elif request.names and outcome.report is not None:
            screen.say(f"{screen.documents.name(outcome.study)}: {study.name}")
        progress.written += 1
        screen.bar.advance(task)
