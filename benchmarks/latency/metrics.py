"""What is read off a run: every metric with its unit and formula, as the report prints them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from r2gen_export.reporting.report import STAGES

Round = dict[str, Any]
"""One round of one configuration: `answers` of its processes (see `worker_process.py`), and `cost` of the round."""


@dataclass(frozen=True)
class Metric:
    """`better`: the direction that is an improvement. `judged`: `compare` gives a verdict on it; each further verdict
    makes all of them less certain, so the others are shown with their intervals only.
    """

    title: str
    unit: str
    formula: str
    better: Literal["lower", "higher", "neither"] = "lower"
    judged: bool = False


METRICS: Final[dict[str, Metric]] = {
    "load": Metric("load", "ms", "bundle opened: hashes checked, graphs loaded; one sample a process"),
    "first_report": Metric("first report", "ms", "end to end of the first report of a process, which warms it up"),
    "total": Metric("end to end", "ms", "from the image files to the text of the report, or of the batch", judged=True),
    "ttft": Metric("TTFT", "ms", "time to first token = preprocess + encode + prefill", judged=True),
    "tpot": Metric("TPOT", "ms", "time per output token = decode / (tokens - 1)", judged=True),
    "itl": Metric(
        "inter-token latency", "ms", "each pass of the decoder after the prefill, all reports' passes pooled"
    ),
    "preprocess": Metric("preprocess", "ms", "image files read, resized, normalised"),
    "encode": Metric("encode", "ms", "vision encoder, projector: pixels to image tokens"),
    "prefill": Metric("prefill", "ms", "the prompt through the LLM, up to the first token's logits"),
    "decode": Metric("decode", "ms", "every further pass of the LLM, choosing tokens included"),
    "detokenize": Metric("detokenize", "ms", "token ids to text"),
    "other": Metric("other", "ms", "end to end - (preprocess + encode + prefill + decode + detokenize)"),
    "tokens": Metric("tokens", "", "tokens of a report, the closing one included", "neither"),
    "tokens_per_s": Metric("tokens per second", "1/s", "tokens of all reports of a round / its time", "higher"),
    "reports_per_s": Metric("reports per second", "1/s", "reports of a round / its time", "higher"),
    "acceptance": Metric("draft acceptance", "", "drafted tokens that held / drafted tokens", "higher"),
    "per_pass": Metric("tokens per pass", "", "(tokens - 1) / passes of the decoder", "higher"),
    "cpu": Metric("CPU time per report", "ms", "user and system time of the process, all threads", "lower"),
    "cores_busy": Metric("cores busy", "", "CPU time / time of the round", "neither"),
    "peak_rss": Metric("peak memory", "MB", "peak resident memory of the processes, one sample a start", judged=True),
    "gpu_memory": Metric("GPU memory", "MB", "in use on the GPU after a report, everybody's (NVML)"),
    "energy_cpu": Metric("CPU energy per report", "J", "RAPL package energy of a round / reports, idle draw included"),
    "energy_gpu": Metric("GPU energy per report", "J", "NVML energy of a round / reports, idle draw included"),
}
"""All of them, in the order reports show them."""


def definitions() -> dict[str, dict[str, Any]]:
    """The table of `METRICS` as JSON."""
    return {name: asdict(one) for name, one in METRICS.items()}


def answer_sample(answer: dict[str, Any]) -> dict[str, float]:
    """Metrics of one process's report, or batch.

    Of a batch, `preprocess`, `encode` and `detokenize` are sums over its studies, which are worked on one after the
    other; `prefill` and `decode` are those of the batch. Studies of a running batch have their prompts read one by one:
    their times of `prefill` differ, and their sum is the batch's.
    """
    reports = answer["reports"]
    total = (answer["ended"] - answer["started"]) * 1000
    found: dict[str, float] = {"total": total}
    for stage in STAGES:
        times = [report["timings_ms"][stage] for report in reports]
        shared = stage == "decode" or (stage == "prefill" and len(set(times)) == 1)
        found[stage] = max(times) if shared else sum(times)
    found["ttft"] = found["preprocess"] + found["encode"] + found["prefill"]
    found["other"] = total - sum(found[stage] for stage in STAGES)
    longest = max(len(report["token_ids"]) for report in reports)
    if longest > 1:
        found["tpot"] = found["decode"] / (longest - 1)
    if passes := max(len(report["steps_ms"]) for report in reports):
        found["per_pass"] = (longest - 1) / passes
    found["tokens"] = sum(len(report["token_ids"]) for report in reports) / len(reports)
    if drafted := sum(report["drafted"] for report in reports):
        found["acceptance"] = sum(report["accepted"] for report in reports) / drafted
    found["cpu"] = answer["cpu_ms"] / len(reports)
    return found


def round_sample(round_: Round) -> dict[str, float]:
    """Metrics of a whole round: throughput, and what the machine spent."""
    answers = round_["answers"]
    seconds = max(one["ended"] for one in answers) - min(one["started"] for one in answers)
    reports = [report for one in answers for report in one["reports"]]
    found = {
        "tokens_per_s": sum(len(report["token_ids"]) for report in reports) / seconds,
        "reports_per_s": len(reports) / seconds,
        "cores_busy": sum(one["cpu_ms"] for one in answers) / 1000 / seconds,
    }
    cost = round_["cost"]
    for name, key, share in (
        ("energy_cpu", "cpu_j", len(reports)),
        ("energy_gpu", "gpu_j", len(reports)),
        ("gpu_memory", "gpu_mb", 1),
    ):
        if cost.get(key) is not None:
            found[name] = cost[key] / share
    return found


def process_sample(start: dict[str, Any]) -> dict[str, float]:
    """Metrics there is one of for each start of a configuration: of its processes, the slowest and all their memory."""
    warm = start["warm_up"][0]["answers"]
    last = [*start["warm_up"], *start["rounds"]][-1]["answers"]
    return {
        "load": max(one["load_ms"] for one in start["loaded"]),
        "first_report": max((one["ended"] - one["started"]) * 1000 for one in warm),
        "peak_rss": sum(one["rss_mb"] for one in last),
    }


def clusters(starts: Sequence[dict[str, Any]]) -> dict[str, list[list[float]]]:
    """Samples of each metric, a list for each start; metrics without a sample are left out."""
    read = [_all_samples(start) for start in starts]
    return {
        name: lists for name in METRICS if any(lists := [[one[name] for one in start if name in one] for start in read])
    }


def _all_samples(start: dict[str, Any]) -> list[dict[str, float]]:
    found = [process_sample(start)]
    for round_ in start["rounds"]:
        found += [answer_sample(one) for one in round_["answers"]]
        found.append(round_sample(round_))
        found += [{"itl": step} for step in steps(round_)]
    return found


def steps(round_: Round) -> list[float]:
    """Milliseconds of every pass of a round. A batch's rows share theirs, so the longest report's stand for all."""
    return [
        step for one in round_["answers"] for step in max((r["steps_ms"] for r in one["reports"]), key=len, default=[])
    ]
