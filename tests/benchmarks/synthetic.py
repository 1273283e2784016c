"""Measurements made by a clock that is told what to say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.latency.compare import ARITHMETIC, MEMORY
from benchmarks.latency.metrics import clusters
from benchmarks.latency.statistics import summarise


def answer(total_ms: float, study: int = 0, *, steps: int = 10, started: float = 100.0) -> dict[str, Any]:
    """What a process says after a report that took `total_ms`: a tenth each for pictures, encoder and prompt."""
    tenth = total_ms / 10
    decode = total_ms - 3 * tenth
    return {
        "started": started,
        "ended": started + total_ms / 1000,
        "cpu_ms": total_ms,
        "rss_mb": 100.0,
        "reports": [
            {
                "study": study,
                "timings_ms": {
                    "preprocess": tenth,
                    "encode": tenth,
                    "prefill": tenth,
                    "decode": decode,
                    "detokenize": 0.0,
                    "total": total_ms,
                },
                "steps_ms": [decode / steps] * steps,
                "token_ids": list(range(steps + 1)),
                "drafted": 0,
                "accepted": 0,
            }
        ],
    }


def starts(totals: Sequence[Sequence[float]], studies: int = 1) -> list[dict[str, Any]]:
    """Processes whose timed reports took these times, through `studies` studies in turn."""
    return [
        {
            "loaded": [{"load_ms": 50.0, "rss_mb": 80.0}],
            "warm_up": [{"answers": [answer(99.0)], "cost": {}}],
            "rounds": [
                {"answers": [answer(total, number % studies)], "cost": {}} for number, total in enumerate(process)
            ],
        }
        for process in totals
    ]


def report(
    totals: Sequence[Sequence[float]], *, studies: int = 1, rate: float = 1.0, wavers: float = 0.0, foreign: float = 0.0
) -> dict[str, Any]:
    """The parts of a `report.json` that `compare` reads. `rate`: how fast the machine itself was, give
    or take `wavers`, a share."""
    samples = clusters(starts(totals, studies))
    return {
        "schema": "r2gen-bench/1",
        "created": "2026-01-01T00:00:00+00:00",
        "command": "r2gen bench",
        "environment": {
            "cpu": "CPU", "cores": 2, "memory_gb": 8.0, "gpu_name": None, "host": "abc", "packages": {},
            "python": "3.11", "r2gen": "0.1.0", "git": None, "virtual_machine": False,
        },
        "bundle": {"id": "b", "precision": {"decoder": "fp32"}},
        "settings": {"images_digest": "d", "draft": None},
        "definitions": {},
        "machine": {
            "moments": [
                dict.fromkeys((ARITHMETIC, MEMORY), rate * one) for one in (1.0, 1.0 - wavers, 1.0 + wavers) * 2
            ]
        },
        "configurations": [
            {
                "name": "cpu, fast", "decoding": {"num_beams": 1}, "semantics": "hf-current", "provider": "CPU",
                "threads": 2, "samples": samples, "words": {"0": "w"},
                "steadiness": {"foreign_cores": foreign, "stolen_cores": None, "gemm_spread": 1.0},
                "roofline": {"decode": {"in_cache": True}},
                "sample_studies": [[str(number % studies) for number in range(len(process))] for process in totals],
                "metrics": {name: summarise(lists).to_dict() for name, lists in samples.items()},  # type: ignore[union-attr]
            }
        ],
    }  # fmt: skip


def noisy(
    rng: np.random.Generator, *, processes: int = 6, rounds: int = 4, between: float = 0.02, within: float = 0.05,
    factor: float = 1.0, studies: int = 1,
) -> list[list[float]]:  # fmt: skip
    """Times around 100 ms: processes scatter among each other, reports within them, now and then one far out."""
    found = []
    for _ in range(processes):
        middle = 100.0 * factor * np.exp(rng.normal(0, between))
        noise = np.exp(rng.normal(0, within, rounds)) * np.where(rng.random(rounds) < 0.05, 1.5, 1.0)
        found.append([float(middle * (1 + number % studies) * one) for number, one in enumerate(noise)])
    return found
