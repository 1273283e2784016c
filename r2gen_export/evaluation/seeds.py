"""Several runs of one system, trained or decoded with different seeds: mean and standard deviation of each metric."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Final

from r2gen_export.bundle import NOTICE
from r2gen_export.errors import R2GenError
from r2gen_export.evaluation.label_scores import labels_of_letters
from r2gen_export.evaluation.tables import LABELS, WORDS, markdown_table
from r2gen_export.system.versions import VERSION

SEEDS_SCHEMA: Final = "r2gen-seeds/1"


def summarise(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and sample standard deviation over the results of runs on the same studies, under the same protocol.

    The deviation says how much a new training changes a score. The studies are the same in every run, so it says
    nothing of other studies: that is what the intervals of each run are for.

    Returns:
        `metrics`, rows with `metric, values, mean, deviation, lowest, highest`; `findings`, rows with `finding`, and of
        how many studies name it the `mean` and `deviation`.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE` for fewer than two runs, another protocol, or a run that is there twice;
            `R2G-EVAL-STUDIES` for other studies; `R2G-EVAL-FORMAT` when results lack a field.
    """
    if len(runs) < 2:
        raise R2GenError("R2G-CONFIG-VALUE", "one run has no deviation", "name the folders of two runs or more")
    try:
        return _summary(runs)
    except (KeyError, TypeError, ValueError) as error:
        message = "the results of a run lack a field, or it is of another type"
        raise R2GenError("R2G-EVAL-FORMAT", message, "write them again with r2gen evaluate") from error


def _summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first = runs[0]
    hashes = [tuple(study["text_sha256"] for study in run["studies"]) for run in runs]
    for number, run in enumerate(runs[1:], start=2):
        if run["data"]["studies_sha256"] != first["data"]["studies_sha256"]:
            message = f"run {number} is not of the same studies and references as run 1"
            raise R2GenError("R2G-EVAL-STUDIES", message, "evaluate all on the same annotation, split and section")
        if run["protocol"] != first["protocol"]:
            message = f"run {number} was scored by protocol {run['protocol']}, run 1 by {first['protocol']}"
            raise R2GenError("R2G-CONFIG-VALUE", message, "evaluate all with the same --protocol")
        if hashes[number - 1] in hashes[: number - 1]:
            message = f"run {number} has the reports of run {hashes.index(hashes[number - 1]) + 1}, all of them"
            raise R2GenError("R2G-CONFIG-VALUE", message, "name each run once")
    scores = [_scores(run) for run in runs]
    names = [name for name in (*WORDS, *LABELS) if all(name in part for part in scores)]
    return {
        "schema": SEEDS_SCHEMA,
        "r2gen_version": VERSION,
        "notice": NOTICE,
        "protocol": first["protocol"],
        "runs": len(runs),
        "studies": len(first["studies"]),
        "metrics": [_row(name, [part[name] for part in scores]) for name in names],
        "findings": _findings(runs),
    }


def _scores(run: Mapping[str, Any]) -> dict[str, float]:
    rows = (row for row in run["scores"] if row["system"] == "model" and row["subset"] == "all")
    return {row["metric"]: row["value"] for row in rows if row["protocol"] in (run["protocol"], run["labeller"])}


def _row(name: str, values: list[float]) -> dict[str, Any]:
    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    return {
        **{"metric": name, "values": values, "mean": mean, "deviation": deviation},
        **{"lowest": min(values), "highest": max(values)},
    }


def _findings(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    names = runs[0]["findings"]
    letters = [[study["labels"] for study in run["studies"]] for run in runs]
    counts = [labels_of_letters(part, names).present("u1").sum(axis=0).tolist() for part in letters]
    columns = zip(names, zip(*counts, strict=True), strict=True)
    return [
        {"finding": name, "mean": statistics.fmean(values), "deviation": statistics.stdev(values)}
        for name, values in columns
    ]


def seeds_markdown(summary: Mapping[str, Any]) -> str:
    """The summary as Markdown, with `mean ± deviation` as papers print it."""
    rows = [
        [row["metric"], f"{row['mean']:.4f} ± {row['deviation']:.4f}", f"{row['lowest']:.4f}", f"{row['highest']:.4f}"]
        for row in summary["metrics"]
    ]
    findings = [
        [row["finding"], f"{row['mean']:.1f} ± {row['deviation']:.1f}"] for row in summary["findings"] if row["mean"]
    ]
    parts = [
        f"# {summary['runs']} runs",
        f"> {summary['notice']}",
        f"{summary['studies']} studies, protocol {summary['protocol']}. Mean and sample standard deviation over the "
        "runs: what another training changes, not what other studies would.",
        markdown_table(("metric", "mean ± deviation", "lowest", "highest"), rows),
        "## Reports that name a finding (uncertain counted as positive)",
        markdown_table(("finding", "reports, mean ± deviation"), findings),
    ]
    return "\n\n".join(parts) + "\n"
