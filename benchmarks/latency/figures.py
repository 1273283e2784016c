"""Numbers as reports write them, in Markdown and HTML alike."""

from __future__ import annotations

from math import floor, log10
from typing import Any

from benchmarks.latency.metrics import METRICS
from r2gen_export.precision import PRECISIONS
from r2gen_export.reporting.report import STAGES

Row = list[str]


def number(value: Any, unit: str = "") -> str:
    """Three significant digits, all of a whole number, with a unit behind; a dash for what is not there."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        text = f"{value:,}"
    else:
        size = abs(value)
        digits = 0 if size >= 100 or size == 0 else 2 - floor(log10(size))
        text = f"{value:,.{digits}f}"
    return f"{text} {unit}" if unit else text


def share(value: float | None) -> str:
    """A share as a percentage."""
    return "–" if value is None else f"{value:.1%}" if abs(value) < 0.1 else f"{value:.0%}"


def metric_rows(configuration: dict[str, Any]) -> list[Row]:
    """Metric, unit, n, p50 with its interval, p90, p95, p99, least and most."""
    rows = []
    for name, found in configuration["metrics"].items():
        low, high = found["ci95"].get("p50", (None, None))
        interval = f"{number(low)} to {number(high)}" if low is not None else "–"
        rest = [number(found[key]) for key in ("p90", "p95", "p99", "min", "max")]
        rows.append([METRICS[name].title, METRICS[name].unit, str(found["n"]), number(found["p50"]), interval, *rest])
    return rows


METRIC_HEAD = ["metric", "unit", "n", "p50", "95 % interval", "p90", "p95", "p99", "min", "max"]


def warnings(report: dict[str, Any]) -> list[tuple[str, str]]:
    """(configurations, warning): what makes a run doubtful; one that holds for all is said once."""
    found: dict[str, list[str]] = {}
    for one in report["configurations"]:
        for warning in one["steadiness"]["warnings"]:
            found.setdefault(warning, []).append(one["name"])
    every = len(report["configurations"])
    return [("all" if len(names) == every > 1 else "; ".join(names), warning) for warning, names in found.items()]


def unavailable_lines(configuration: dict[str, Any]) -> list[str]:
    """Why a metric has no row."""
    lines = []
    if "energy_cpu" not in configuration["metrics"] and (why := configuration["unavailable"]["energy_cpu"]):
        lines.append(f"CPU energy: {why}")
    if "energy_gpu" not in configuration["metrics"] and (why := configuration["unavailable"]["energy_gpu"]):
        lines.append(f"GPU energy and memory: {why}")
    if "acceptance" not in configuration["metrics"]:
        lines.append("draft acceptance: nothing was drafted")
    return lines


def roofline_rows(configuration: dict[str, Any]) -> list[Row]:
    """Stage, what it reads and computes, its floor, what was measured."""
    found = configuration["roofline"]
    if "reason" in found:
        return []
    titles = {"encode": "encode", "prefill": "prefill", "decode": "decode, one token"}
    return [
        [
            title,
            number(found[stage]["bytes"] / 1e6, "MB"),
            number(found[stage]["ops"] / 1e9, "Gop"),
            number(found[stage]["memory_ms"]),
            number(found[stage]["compute_ms"]),
            f"{number(found[stage]['floor_ms'])} ({found[stage]['bound']})",
            number(found[stage].get("measured_ms")),
            times_text(found[stage]),
        ]
        for stage, title in titles.items()
    ]


def times_text(stage: dict[str, Any]) -> str:
    """How many times its floor a stage took; no factor below 1, which `roofline_notes` explains."""
    times = stage.get("times_floor")
    return "–" if times is None else "below, see note" if times < 1 else f"{number(times)} x"


ROOFLINE_HEAD = [
    "stage",
    "reads",
    "computes",
    "memory ms",
    "arithmetic ms",
    "floor ms",
    "measured ms",
    "times the floor",
]


def roofline_notes(configuration: dict[str, Any]) -> list[str]:
    """What one has to know to read the floors."""
    found = configuration["roofline"]
    if "reason" in found:
        return [f"No floors: {found['reason']}."]
    notes = []
    stored = PRECISIONS[found["work"]["precision"]]
    if stored.half and stored.block is None:
        notes.append("ONNX Runtime widens fp16 weights on a CPU: it reads twice the bytes counted here.")
    if found["drafting"]:
        notes.append(
            f"Drafts were verified, {number(found['tokens_per_pass'])} tokens a pass: time per token may lie below the "
            "floor, which is that of one pass for each token."
        )
    for stage in ("encode", "prefill", "decode"):
        if found[stage].get("times_floor", 1.0) < 1 and not (stage == "decode" and found["drafting"]):
            measured, least = number(found[stage]["measured_ms"]), number(found[stage]["floor_ms"])
            notes.append(
                f"{stage}: {measured} ms is below the computed floor of {least} ms, which cannot be: the machine's "
                "rates were measured at a slower moment than the stage, as on a busy machine, so this floor is too "
                "high. Read it as: close to the floor."
            )
    return notes


def rate_rows(configuration: dict[str, Any]) -> list[Row]:
    """The rates that each stage's floor was computed with, and where its bytes are read from."""
    found = configuration["roofline"]
    return [
        [
            stage,
            number(found[stage]["bandwidth_gb_s"]),
            "cache" if found[stage]["in_cache"] else "memory (DRAM)",
            number(found[stage]["rate_gops"]),
        ]
        for stage in ("encode", "prefill", "decode")
    ]


RATE_HEAD = ["stage", "read GB/s", "read from", "matrix Gop/s"]


def stage_medians(configuration: dict[str, Any]) -> list[tuple[str, float]]:
    """Median milliseconds of each stage in the order of the flow, what is left over last."""
    names = [*STAGES, "other"]
    return [
        (name, max(0.0, configuration["metrics"][name]["p50"])) for name in names if name in configuration["metrics"]
    ]


def environment_rows(report: dict[str, Any]) -> list[Row]:
    """Fact and value, for the conditions of a run."""
    where, what, how = report["environment"], report["bundle"], report["settings"]
    gpu = where["gpu"]
    rates = report["machine"]["best"]
    gops = f"fp32 {number(rates['gemm_fp32_gops'])}, int8 {number(rates['gemm_int8_gops'])} Gop/s"
    kind = "phantom" if how["pictures"] == "phantoms" else "given"
    views = f", {number(how['views'])} views each" if how.get("views", 1) != 1 else ", 1 view each"
    runs = f"{how['rounds_per_process']} in each of {how['processes']} processes, behind {how['warmup']} to warm up"
    name = f"{what['model_id']} ({what['id']}), dialect {what['dialect']}, {what['prompt_tokens']} prompt tokens"
    packages = ", ".join(f"{name} {version}" for name, version in where["packages"].items())
    rows = [
        ["CPU", f"{where['cpu']}, {where['cores']} cores used" + (", virtual" if where["virtual_machine"] else "")],
        ["clock", f"{number(where['clock_mhz'], 'MHz')}, governor {where['governor'] or 'not shown'}"],
        ["memory", f"{number(where['memory_gb'], 'GB')}, huge pages: {where['huge_pages'] or 'unknown'}"],
        ["GPU", _gpu(gpu)],
        ["system", f"{where['kernel']}, {where['machine']}"],
        ["versions", f"r2gen {where['r2gen']}, Python {where['python']}, {packages}"],
        ["git commit", where["git"] or "not in a working tree"],
        ["host fingerprint", f"{where['host']} (hash over hardware facts, names no machine)"],
        ["memory read rate (DRAM)", f"{number(rates['read_gb_s'], 'GB/s')}, {report['machine']['threads']} threads"],
        ["measured matrix rates", gops],
        ["bundle", name],
        ["precision", ", ".join(f"{name} {value}" for name, value in what["precision"].items())],
        ["pictures", f"{how['studies']} {kind} studies{views} ({how['images_digest']})"],
        ["runs", runs],
        ["command", report["command"]],
        ["created", report["created"]],
    ]
    return [row for row in rows if row[1]]


def _gpu(gpu: dict[str, Any] | None) -> str:
    if not gpu:
        return "none"
    clocks = ", ".join(f"{name} {value} MHz" for name, value in gpu["clocks_mhz"].items())
    return f"{gpu['name']}, driver {gpu['driver']}, {clocks}, power limit {number(gpu['power_limit_w'], 'W')}"


def decoding_text(configuration: dict[str, Any]) -> str:
    """Decoding settings in one line."""
    return f"{configuration['semantics']}; " + ", ".join(
        f"{name} {value}" for name, value in configuration["decoding"].items() if value is not None
    )


COMPARE_HEAD = ["metric", "unit", "A", "B", "B / A", "95 % interval", "noise", "p", "verdict"]


def compare_rows(configuration: dict[str, Any]) -> list[Row]:
    """One row for each metric of a comparison."""
    return [
        [
            one["title"],
            one["unit"],
            number(one["a"]),
            number(one["b"]),
            f"{one['ratio']:.3f}",
            f"{one['ci95'][0]:.3f} to {one['ci95'][1]:.3f}",
            share(one["noise"]),
            "–" if one["p"] is None else f"{one['p']:.2g}",
            one["verdict"] or "not judged",
        ]
        for one in configuration["metrics"]
    ]


def label_text(side: dict[str, Any]) -> str:
    """Which run, or which runs, were one side of a comparison."""
    others = f" and {side['runs'] - 1} more runs" if side["runs"] > 1 else ""
    return f"{side['command']} ({side['created']}){others}"


def compare_notes(comparison: dict[str, Any]) -> list[str]:
    """Conditions that differ, and what else changed."""
    notes = [f"CONDITIONS DIFFER, compared by force: {one}" for one in comparison["differs"]]
    notes += [f"changed: {one}" for one in comparison["notes"]]
    if drift := comparison["drift"]:
        notes.append(f"The machine's own measured rates may have changed by up to {share(drift)} between the two runs.")
    return notes


def words_text(words: dict[str, int]) -> str:
    """Did both runs write the same?"""
    return f"same token ids in {words['same']} of {words['studies']} studies"


def reference_rows(report: dict[str, Any]) -> list[Row]:
    """PyTorch beside each configuration of the bundle."""
    rows = []
    for one in report["reference"]["rows"]:
        parted = one["first_divergence"]
        same = f"{one['same']} of {one['studies']} studies" + (
            f", first difference at token {parted}" if parted else ""
        )
        times = one["times"]
        rows.append([one["ours"], one["engine"], same, *(f"{number(times.get(key))} x" for key in REFERENCE_TIMES)])
    return rows


REFERENCE_TIMES = ("total", "ttft", "tpot", "peak_rss")
REFERENCE_HEAD = ["r2gen", "PyTorch", "same words", "end to end", "TTFT", "TPOT", "memory"]
