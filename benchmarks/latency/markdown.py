"""`report.md`: the same report for a terminal, a pull request or a wiki."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from benchmarks.latency import figures, sentences
from benchmarks.latency.metrics import METRICS
from benchmarks.latency.peers import COLUMNS, conditions


def to_markdown(report: dict[str, Any]) -> str:
    """The whole report."""
    parts = [
        f"# Latency of {report['bundle']['model_id']} ({report['bundle']['id']})",
        sentences.model_text(report),
        f"> {report['notice']}",
        *answers(report),
        *_warnings(report),
        "## At a glance",
        table(GLANCE_HEAD, glance(report)),
        "; ".join(f"**{word}**: {meaning}" for word, meaning in sentences.WORDS) + ".",
        "## Conditions",
        table(["what", "value"], figures.environment_rows(report)),
    ]
    for one in report["configurations"]:
        parts += _configuration(one)
    if report["reference"]:
        parts += ["## PyTorch beside it", *(text for text, _ in sentences.reference_lines(report))]
        parts.append(table(figures.REFERENCE_HEAD, figures.reference_rows(report)))
    if report["comparison"]:
        parts += ["## Against the baseline", comparison_text(report["comparison"])]
    if report["peers"]:
        parts += ["## Other engines", f"Measured by `benchmarks.peers`: {conditions(report['peers'])}."]
        parts.append(table(list(COLUMNS.values()), peer_rows(report["peers"])))
    parts += ["## Definitions", table(["metric", "unit", "formula"], definition_rows())]
    parts.append("\n".join(f"- {name}: {text}" for name, text in report["method"].items()))
    return "\n\n".join(parts) + "\n"


GLANCE_HEAD: Final = ["configuration", "end to end ms", "TTFT ms", "TPOT ms", "reports/s", "peak MB"]


def answers(report: dict[str, Any]) -> list[str]:
    """For each configuration of the bundle what may be repeated of it, and why not to where that is so."""
    several = len(report["configurations"]) > 1
    return [
        " ".join([f"{one['name']}: {text}" if several else text, *sentences.caveats(report, one)])
        for one in report["configurations"]
        if one["engine"] == "r2gen" and (text := sentences.headline(one))
    ]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [list(head), ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def glance(report: dict[str, Any]) -> list[list[str]]:
    """One row for each configuration: the medians people quote."""
    names = ("total", "ttft", "tpot", "reports_per_s", "peak_rss")
    return [
        [one["name"], *(figures.number(one["metrics"].get(name, {}).get("p50")) for name in names)]
        for one in report["configurations"]
    ]


def definition_rows() -> list[list[str]]:
    """Title, unit and formula of every metric."""
    return [[one.title, one.unit, one.formula] for one in METRICS.values()]


def peer_rows(found: dict[str, Any]) -> list[list[str]]:
    """One row for each engine of the peers' file."""
    return [[figures.number(one.get(name)) for name in COLUMNS] for one in found["contenders"]]


def comparison_text(comparison: dict[str, Any]) -> str:
    """A comparison by itself: `r2gen bench compare` prints it."""
    parts = ["  \n".join(f"{side.upper()}: {figures.label_text(comparison[side])}" for side in ("a", "b"))]
    parts.append("\n".join(f"- {note}" for note in figures.compare_notes(comparison)))
    for one in comparison["configurations"]:
        parts.append(f"### {one['name']}: {figures.words_text(one['words'])}")
        parts.append(table(figures.COMPARE_HEAD, figures.compare_rows(one)))
    parts.append(
        "Noise: smaller differences are what one thing differs from itself by. A verdict needs p, interval and noise "
        "to agree, all verdicts judged together."
    )
    return "\n\n".join(parts)


def _warnings(report: dict[str, Any]) -> list[str]:
    lines = [f"- **{names}**: {warning}" for names, warning in figures.warnings(report)]
    return ["## Not steady", "\n".join(lines)] if lines else []


def _configuration(one: dict[str, Any]) -> list[str]:
    found = one["roofline"]
    parts = [
        f"## {one['name']}",
        f"Runs on {one['provider']}, {one['threads']} threads. Decoding: {figures.decoding_text(one)}.",
        table(figures.METRIC_HEAD, figures.metric_rows(one)),
        sentences.sums_text(one, figures.stage_medians(one)),
        sentences.ITL,
        "\n".join(f"- {line}" for line in figures.unavailable_lines(one)),
    ]
    if "reason" not in found:
        parts += ["### How many times the floor each stage takes", sentences.floor_text(one)]
        parts.append(table(figures.ROOFLINE_HEAD, figures.roofline_rows(one)))
        parts.append(table(figures.RATE_HEAD, figures.rate_rows(one)))
    parts += figures.roofline_notes(one)
    return [part for part in parts if part]
