"""What a report says in sentences: how long a report takes, how large the model is, how PyTorch compares."""

from __future__ import annotations

from typing import Any, Final

from benchmarks.latency.compare import was_busy
from benchmarks.latency.figures import number
from benchmarks.latency.statistics import TOO_SMALL

FEW: Final = 6
"""Reports from which a median is worth repeating: with fewer, no interval of it holds with 95 %."""

SHORT_REPORT: Final = 30
"""Tokens below which loading and prefill weigh so much that a factor says little of whole reports."""

TOY: Final = 100_000_000
"""Parameters below which a model's times say nothing about a model that reports are made with."""

WORDS: Final = (
    ("preprocess", "reading and resizing the images"),
    ("encode", "the vision encoder"),
    ("prefill", "the prompt through the LLM, up to the first token"),
    ("decode", "the other tokens, one pass of the LLM after the other"),
    ("TTFT", "time to first token"),
    ("TPOT", "time per output token after the first"),
    ("p50, p90", "half, or nine of ten, of the samples are at most this; p50 is the median"),
    ("Gop", "10^9 multiplications and additions"),
    ("MB", "10^6 bytes"),
)
"""What a reader has to know before the first table."""


def seconds(milliseconds: float) -> str:
    """A time as a person says it."""
    value = milliseconds / 1000
    if value >= 100:
        return f"{value / 60:.1f} minutes"
    return f"{value:.1f} s" if value >= 1 else f"{value:.2f} s" if value >= 0.1 else f"{milliseconds:.2g} ms"


def about(value: float) -> str:
    """A count with two significant digits."""
    return f"{float(f'{value:.2g}'):,.0f}"


def headline(one: dict[str, Any]) -> str:
    """What a configuration's reports cost, for somebody who plans with it; empty where a figure is missing."""
    metrics = one["metrics"]
    if not {"total", "load", "first_report", "reports_per_s", "peak_rss", "tokens"} <= metrics.keys():
        return ""
    what = f"A batch of {one['batch']} reports" if one["batch"] > 1 else "A report"
    total = metrics["total"]
    most = "" if total["p90"] == TOO_SMALL else f" (nine of ten take at most {seconds(total['p90'])})"
    together = f", with {one['concurrency']} processes at once," if one["concurrency"] > 1 else ""
    load, first = metrics["load"]["p50"], metrics["first_report"]["p50"]
    memory = metrics["peak_rss"]["p50"]
    return (
        f"{what} of about {about(metrics['tokens']['p50'])} tokens{together} takes {seconds(total['p50'])}{most} once "
        f"the bundle is loaded. After a start the first one is there after {seconds(load + first)}. "
        f"That is about {about(metrics['reports_per_s']['p50'] * 3600)} reports an hour, with "
        f"{about(memory)} MB of memory."
    )


def caveats(report: dict[str, Any], one: dict[str, Any]) -> list[str]:
    """Why a configuration's figures must not be repeated as they are."""
    lines = []
    if was_busy(one, report["environment"]["cores"]):
        lines.append("Measured while the machine was busy: do not plan with these figures.")
    if (n := one["metrics"]["total"]["n"]) < FEW:
        lines.append(f"From {n} timed reports only.")
    if (most := report["settings"]["overrides"].get("max_new_tokens")) is not None:
        lines.append(f"Reports were cut at {most} tokens (--max-new-tokens): whole ones take longer.")
    return lines


def model_text(report: dict[str, Any]) -> str:
    """How large the model is."""
    what = report["bundle"]
    size = sum(entry["size"] for entry in what["files"].values()) / 1e6
    parts = []
    if parameters := what.get("parameters"):
        total = sum(parameters.values())
        listed = ", ".join(f"{name.replace('_', ' ')} {millions(value)}" for name, value in parameters.items())
        parts.append(f"{millions(total)} parameters ({listed})")
    parts.append(", ".join(f"{name} {value}" for name, value in what["precision"].items()))
    parts.append(f"{number(size)} MB on disk")
    text = f"Model {what['model_id']}: {'; '.join(parts)}."
    if parameters and total < TOY:
        text += (
            " A model this small is for trying r2gen out: its times say nothing about one of billions of parameters."
        )
    return text


def millions(count: float) -> str:
    """A number of parameters."""
    return f"{count / 1e9:.2g} billion" if count >= 1e9 else f"{count / 1e6:.2g} million"


def sums_text(one: dict[str, Any], stages: list[tuple[str, float]]) -> str:
    """Why the medians of the stages are not the median of the whole."""
    total = one["metrics"]["total"]["p50"]
    return (
        f"The stages of each single report add up to its time, their medians need not: they add up to "
        f"{number(sum(value for _, value in stages))} ms, and half of the reports took at most {number(total)} ms."
    )


FLOOR: Final = (
    "The floor of a stage is the shortest time in which this machine could read the stage's bytes and do its "
    "multiplications, at the best rates measured in this run; at 1 x no program could be faster here."
)

SMALL_MODEL: Final = (
    "Weights that fit into the processor's cache, as here, are read so fast that a pass is mostly the cost of starting "
    "many small operations: large factors are normal, and shrink as a model grows."
)

ITL: Final = (
    "TPOT and inter-token latency differ: TPOT is the mean over a report's passes, and of these means the median is "
    "shown; inter-token latency is the median of all single passes, which a few slow ones do not move."
)


def floor_text(one: dict[str, Any]) -> str:
    """What the factors are multiples of, before the first of them."""
    return f"{FLOOR} {SMALL_MODEL}" if one["roofline"]["decode"]["in_cache"] else FLOOR


def reference_lines(report: dict[str, Any]) -> list[tuple[str, bool]]:
    """(sentence, whether it may be quoted) about PyTorch beside each configuration."""
    rows = report["reference"]["rows"]
    if not rows:
        return [("PyTorch made one report at a time, and no configuration did: nothing to compare.", False)]
    lines = [_reference_line(one) for one in rows]
    precision = report["reference"]["precision"]["decoder"]
    if precision != "fp32":
        text = f"PyTorch ran the unrounded weights, the bundle has them in {precision}: what rounding changes is "
        lines.append((f"{text}measured at export, see the parity checks of the bundle.", False))
    return lines


def _reference_line(row: dict[str, Any]) -> tuple[str, bool]:
    same = f"{row['same']} of {row['studies']} studies"
    words = f"same words in {same}" if row["same"] == row["studies"] else f"same words in only {same}"
    times = row["times"]["total"]
    doubts = []
    if min(row["reports"]) < FEW:
        doubts.append(f"only {min(row['reports'])} reports of each were timed")
    if row["tokens"] < SHORT_REPORT:
        doubts.append(f"reports of {about(row['tokens'])} tokens are too short")
    if row["busy"]:
        doubts.append("the machine was busy")
    if doubts:
        text = f"{row['ours']}: {row['engine']} took {number(times)} times as long, {words}. "
        return f"{text}Not a figure to quote: {', '.join(doubts)}.", False
    low, high = row["ci95"] if times >= 1 else [1 / bound for bound in reversed(row["ci95"])]
    faster = f"{number(times)} times faster" if times >= 1 else f"{number(1 / times)} times slower"
    interval = f"95 % interval {number(low)} to {number(high)}"
    about_reports = f"medians of {min(row['reports'])} reports of {about(row['tokens'])} tokens"
    return f"{row['ours']}: {faster} than {row['engine']} ({interval}, {about_reports}), {words}.", True
