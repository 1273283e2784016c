"""Several runs of one thing, made in turn with those of another: a folder of report folders, read as one report.

On a machine that drifts, one run after the other says little: the drift between them looks like an effect. With A and
B in turn, several times over, it hits both alike and cancels from the ratio of each pair of runs. So a run is then the
unit that resampling draws, and the test is one of pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any, Final

from benchmarks.latency.compare import conditions, version_changes, whole
from benchmarks.latency.report import REPORT, load_report
from benchmarks.latency.statistics import summarise
from r2gen_export.errors import R2GenError

LEAST_RUNS: Final = 8
"""Of each side: with four verdicts judged together, fewer pairs cannot be significant."""


def load_runs(path: Path, subject: str = "the report") -> dict[str, Any]:
    """A report by its folder or file; or all reports of the folder, as `merge` puts them together.

    `subject` is what errors call it; of several, the folder's name follows.

    Raises:
        R2GenError: `R2G-BENCH-FORMAT`; `R2G-BENCH-CONDITIONS` when the folder's reports are not of one thing.
    """
    if not path.is_dir() or (path / REPORT).exists():
        return load_report(path, subject)
    # A killed run leaves a hidden folder.
    folders = sorted(one.parent for one in path.glob(f"*/{REPORT}") if not one.parent.name.startswith("."))
    found = [load_report(folder, f"{subject}/{folder.name}") for folder in folders]
    return merge(found) if found else load_report(path, subject)


@whole()
def merge(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The first report with the samples of all, in their order: in each of its configurations a run is one cluster.

    Returns:
        What `compare_reports` reads, `runs`, how many there were, `turns`, when each was made, and the `commits` they
        were made at. Of the machine's load the mean of the runs counts, of its wavering the median.

    Raises:
        R2GenError: `R2G-BENCH-CONDITIONS` when conditions or versions differ among them, or one lacks a configuration;
            `R2G-BENCH-FORMAT`.
    """
    reports = sorted(reports, key=lambda one: str(one["created"]))
    first = reports[0]
    for other in reports[1:]:
        names = [[one["name"] for one in side["configurations"]] for side in (first, other)]
        differs = [*conditions(first, other), *version_changes(first, other, commits=False)]
        differs += ["configurations"] if names[0] != names[1] else []
        if differs:
            message = f"the reports of one folder are not of one thing: {'; '.join(differs)}"
            raise R2GenError("R2G-BENCH-CONDITIONS", message, "keep runs that are compared in two folders")
    moments = [one for report in reports for one in report["machine"]["moments"]]
    configurations = [_merged(each) for each in zip(*(report["configurations"] for report in reports), strict=True)]
    turns = [str(one["created"]) for one in reports]
    # Of several commits the comparison's notes tell: a file that was edited between two runs is no reason to refuse.
    commits = sorted({str(one["environment"]["git"]) for one in reports})
    machine = {**first["machine"], "moments": moments}
    added = {"runs": len(reports), "turns": turns, "commits": commits}
    return {**first, "machine": machine, "configurations": configurations, **added}


def _merged(same: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One configuration of several runs."""
    first = same[0]
    names = [name for name in first["samples"] if all(name in one["samples"] for one in same)]
    samples = {name: [_flat(one["samples"][name]) for one in same] for name in names}
    load = {
        name: fmean(one["steadiness"][name] or 0.0 for one in same) for name in ("foreign_cores", "stolen_cores")
    } | {"gemm_spread": median(one["steadiness"].get("gemm_spread", 1.0) for one in same)}
    studies = dict.fromkeys(study for one in same for study in one["words"])
    summaries = {name: summarise(lists) for name, lists in samples.items()}
    return {
        **first,
        "samples": samples,
        "sample_studies": [_flat(one["sample_studies"]) for one in same],
        "metrics": {name: found.to_dict() for name, found in summaries.items() if found is not None},
        "words": {study: _words([one["words"].get(study) for one in same]) for study in studies},
        "steadiness": {**first["steadiness"], **load},
    }


def _words(found: Sequence[str | None]) -> str:
    """What the runs wrote of one study; where they differ among each other, all of it."""
    return ", ".join(sorted({str(one) for one in found}))


def _flat(lists: Sequence[Sequence[Any]]) -> list[Any]:
    return [one for each in lists for one in each]
