"""The measured side: a process that loads one bundle, then reports whenever its stdin says so.

Protocol, one JSON object a line. In: the job `{"bundle", "device", "threads", "draft", "preset", "semantics",
"overrides", "studies": [[path, ...], ...], ...}`; then `{"studies": [index, ...]}` for one report, or for a batch.
Out: `{"load_ms", ...}`, then for each of those `{"wall_ms", "reports": [...], ...}`; `{"error": {...}}` ends it.

Times are `time.perf_counter`. ONNX Runtime returns from a pass when its results are in host memory, also on a GPU, so
device work is inside.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any, TextIO

from r2gen_export.errors import CodedError, InternalError, cause_of
from r2gen_export.system.child_process import failure, leave_signals_to_parent, open_answers, write_answer
from r2gen_export.system.memory import peak_rss

if TYPE_CHECKING:
    from r2gen_export.reporting.report import Report

Run = Callable[[list[list[str]]], list[dict[str, Any]]]
"""Studies, each a list of image files -> one object for each of their reports."""


def main() -> None:
    """Load, then answer until stdin ends."""
    leave_signals_to_parent()
    answers = open_answers()
    try:
        serve(answers)
    except CodedError as error:
        write_answer(answers, failure(error))
    except Exception as error:
        traceback.print_exc()
        write_answer(answers, failure(InternalError(f"{cause_of(error)} in a measured process")))


def serve(answers: TextIO) -> None:
    """Answer one job."""
    job = json.loads(sys.stdin.readline())
    if job["engine"] == "torch":
        from benchmarks.latency.reference import open_reference as open_engine
    else:
        open_engine = open_r2gen
    started = perf_counter()
    run, facts = open_engine(job)
    loaded = perf_counter()
    write_answer(answers, {"load_ms": (loaded - started) * 1000, "rss_mb": peak_rss() / 1e6, **facts})
    for line in sys.stdin:
        numbers = json.loads(line)["studies"]
        studies = [job["studies"][number] for number in numbers]
        cpu, started = process_time(), perf_counter()
        try:
            reports = run(studies)
        except CodedError as error:
            # The pipeline counts the studies of one call.
            shown = ", ".join(str(number + 1) for number in numbers)
            raise error.about(f"study {shown}" if len(numbers) == 1 else f"batch of studies {shown}") from error
        ended = perf_counter()
        write_answer(
            answers,
            {
                "started": started,
                "ended": ended,
                "cpu_ms": (process_time() - cpu) * 1000,
                "rss_mb": peak_rss() / 1e6,
                "reports": [{"study": number, **one} for number, one in zip(numbers, reports, strict=True)],
            },
        )


def open_r2gen(job: dict[str, Any]) -> tuple[Run, dict[str, Any]]:
    """The runtime's own pipeline: what `r2gen infer` runs."""
    from r2gen_export.runtime.pipeline import Pipeline

    # Without learning: a benchmark leaves the bundle as it was.
    options = {"preset": job["preset"], "semantics": job["semantics"], **job["overrides"]}
    pipeline = Pipeline.from_bundle(
        job["bundle"],
        device=job["device"],
        threads=job["threads"],
        draft=job["draft"],
        learn=False,
        batch=job["batch"],
        decoding=options,
    )

    def run(studies: list[list[str]]) -> list[dict[str, Any]]:
        if job["batch"] == 1:
            return [_fields(pipeline.generate(studies[0], **options))]
        outcomes = pipeline.generate_many(studies, batch_size=job["batch"], **options)
        return [_fields(outcome.unwrap()) for outcome in outcomes]

    return run, {"provider": pipeline.provider.name, "backends": [asdict(one) for one in pipeline.provider.candidates]}


def _fields(report: Report) -> dict[str, Any]:
    return {
        "timings_ms": report.timings_ms,
        "steps_ms": report.decode_steps_ms,
        "token_ids": report.token_ids,
        "drafted": report.drafted,
        "accepted": report.accepted,
    }


if __name__ == "__main__":
    main()
