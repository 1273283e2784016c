"""Was the run steady? Trend, outliers, foreign load, clocks: a plain warning for each that makes numbers doubtful."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any, Final

from benchmarks.latency.measure import Measured
from benchmarks.latency.metrics import answer_sample
from benchmarks.latency.statistics import outliers, trend
from benchmarks.machine_rates import Machine

TREND, TREND_Z = 0.05, 2.6
OUTLIERS: Final = 0.05
FOREIGN: Final = 0.1
STOLEN: Final = 0.02
"""Shares of the machine's cores."""

CLOCK: Final = 1.05
BANDWIDTH: Final = 1.25
WAVERED: Final = 1.5
"""Largest of a run's rates divided by its smallest."""


def steadiness(measured: Measured, machine: Machine, cores: int) -> dict[str, Any]:
    """Figures, and `warnings` in plain words."""
    times = detrended(measured.starts)
    change, z = trend(times)
    far = outliers(times)
    load = measured.watch.load()
    found: dict[str, Any] = {
        "trend": change,
        "trend_z": z,
        "outliers": far,
        "n": len(times),
        **load,
        "scalar_spread": machine.spread("scalar_mops"),
        "gemm_spread": machine.spread("gemm_fp32_gops"),
        "read_spread": machine.spread("read_gb_s"),
    }
    return {**found, "warnings": [*_warnings(found, cores), *_seen_before(measured.starts)]}


def detrended(starts: Sequence[dict[str, Any]]) -> list[float]:
    """End-to-end times in the order they were taken, each divided by the median of its studies': the rest is noise."""
    samples = [
        (tuple(report["study"] for report in one["reports"]), answer_sample(one)["total"])
        for start in starts
        for round_ in start["rounds"]
        for one in round_["answers"]
    ]
    by_study: dict[tuple[int, ...], list[float]] = {}
    for study, total in samples:
        by_study.setdefault(study, []).append(total)
    typical = {study: median(totals) for study, totals in by_study.items()}
    return [total / typical[study] for study, total in samples]


def _seen_before(starts: Sequence[dict[str, Any]]) -> list[str]:
    """Drafts come from the model's own earlier reports too: a study that comes twice is drafted from its own."""
    for start in starts:
        reports = [
            report
            for round_ in [*start["warm_up"], *start["rounds"]]
            for answer in round_["answers"]
            for report in answer["reports"]
        ]
        numbers = [report["study"] for report in reports]
        if any(report["drafted"] for report in reports) and len(set(numbers)) < len(numbers):
            return ["studies came more than once, so drafts had seen their reports: give more --images or fewer --runs"]
    return []


def _warnings(found: dict[str, Any], cores: int) -> list[str]:
    lines = []
    if abs(found["trend"]) > TREND and abs(found["trend_z"]) > TREND_Z:
        lines.append(f"times drifted by {found['trend']:+.0%} from the first report to the last")
    if found["n"] and found["outliers"] / found["n"] > OUTLIERS:
        lines.append(f"{found['outliers']} of {found['n']} reports were far slower than the rest")
    if (foreign := found["foreign_cores"]) is None:
        lines.append("what else ran on this machine could not be read")
    elif foreign > FOREIGN * cores:
        lines.append(f"other programs kept {foreign:.1f} of {cores} cores busy during the timed reports")
    if (stolen := found["stolen_cores"]) is not None and stolen > STOLEN * cores:
        lines.append(f"the hypervisor took {stolen:.2f} of {cores} cores away during the timed reports")
    if found["throttle_events"]:
        lines.append(f"the processor was slowed down for heat {found['throttle_events']} times")
    if found["gpu_throttle_reasons"]:
        lines.append(f"the GPU's clocks were lowered (NVML reasons {found['gpu_throttle_reasons']:#x})")
    if found["scalar_spread"] > CLOCK:
        lines.append(f"a fixed loop on one core took up to {found['scalar_spread']:.2f} times its shortest time")
    if found["gemm_spread"] > WAVERED:
        lines.append(f"a fixed matrix product took up to {found['gemm_spread']:.2f} times its shortest time")
    if found["read_spread"] > BANDWIDTH:
        lines.append(f"memory bandwidth varied by a factor of {found['read_spread']:.2f} during the run")
    return lines
