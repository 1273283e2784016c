"""`report.json`: what a run found, as data. `REPORT.md` beside this file describes every field."""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from time import get_clock_info
from typing import Any, Final

import numpy as np

from benchmarks.latency.environment import bundle_facts, environment, without_folders
from benchmarks.latency.measure import Measured
from benchmarks.latency.metrics import answer_sample, clusters, definitions, steps
from benchmarks.latency.roofline import Work, floors
from benchmarks.latency.settings import BenchSettings, Configuration
from benchmarks.latency.stability import steadiness
from benchmarks.latency.statistics import INTERVAL, METHOD, RESAMPLES, summarise
from benchmarks.machine_rates import Machine
from r2gen_export.bundle import Manifest
from r2gen_export.candidates import ENGINE, Candidate, render
from r2gen_export.errors import R2GenError, cause_of
from r2gen_export.runtime.backends.ort_providers import CPU
from r2gen_export.runtime.backends.tuning import OPENVINO

SCHEMA: Final = "r2gen-bench/1"
"""Changes its number when a field changes its meaning or goes."""

REPORT: Final = "report.json"

NEEDED: Final = {
    "environment": dict,
    "bundle": dict,
    "settings": dict,
    "machine": dict,
    "definitions": dict,
    "configurations": list,
}

MOST_POSITIONS: Final = 500
"""Points of the per-token line."""


def assemble(
    settings: BenchSettings,
    manifest: Manifest,
    measured: Sequence[Measured],
    machine: Machine,
    *,
    work: Work,
    pictures: Sequence[Sequence[Path]],
) -> dict[str, Any]:
    """The report of a run, without comparison, reference verdict and peers."""
    where = environment()
    clock = get_clock_info("perf_counter")
    return {
        "schema": SCHEMA,
        "notice": manifest.notice,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": settings.command,
        "environment": where,
        "bundle": {
            **bundle_facts(manifest),
            "parameters": {"LLM": work.weights + work.table, "vision": work.vision_weights},
        },
        "settings": {
            "runs": settings.runs,
            "processes": settings.processes,
            "rounds_per_process": settings.rounds,
            "warmup": settings.warmup,
            "studies": len(pictures),
            "views": fmean(map(len, pictures)),
            "pictures": "given" if settings.images else "phantoms",
            "images_digest": images_digest(pictures),
            "draft": settings.draft,
            "overrides": settings.overrides,
        },
        "method": {
            "clock": f"time.perf_counter ({clock.implementation}), resolution {clock.resolution:g} s",
            "synchronised": "a stage ends when its result is in host memory, so work of a device is inside its time",
            "percentiles": METHOD,
            "intervals": f"{INTERVAL:.0%} bootstrap, {RESAMPLES} times: processes with replacement, then runs of each",
        },
        "definitions": definitions(),
        "machine": machine.to_dict(),
        "configurations": [
            _configuration(one, machine, work, where["cores"], pictures=pictures, bundle=settings.bundle)
            for one in measured
        ],
        "comparison": None,
        "reference": None,
        "peers": None,
    }


def _configuration(
    measured: Measured, machine: Machine, work: Work, cores: int, *, pictures: Sequence[Sequence[Path]], bundle: Path
) -> dict[str, Any]:
    one = measured.configuration
    samples = clusters(measured.starts)
    loaded = [facts for start in measured.starts for facts in start["loaded"]]
    candidates = [_shown(Candidate.from_fields(fields), bundle) for fields in loaded[0]["backends"]]
    summaries = {name: found.to_dict() for name, lists in samples.items() if (found := summarise(lists)) is not None}
    return {
        "name": one.name,
        "engine": one.engine,
        "device": one.device,
        "provider": loaded[0]["provider"],
        "provider_steps": [render(candidate) for candidate in candidates],
        "backends": [asdict(candidate) for candidate in candidates],
        "preset": one.settings.preset,
        "semantics": one.settings.semantics,
        "decoding": asdict(one.settings.decoding),
        "batch": one.batch,
        "concurrency": one.concurrency,
        "threads": one.threads,
        "metrics": summaries,
        "samples": samples,
        "sample_studies": _sample_studies(measured),
        "warm_up_ms": [
            [[answer_sample(answer)["total"] for answer in round_["answers"]] for round_ in start["warm_up"]]
            for start in measured.starts
        ],
        "memory_mb": _memory(measured),
        "per_token": per_token(measured),
        "words": _words(measured),
        "steadiness": steadiness(measured, machine, cores),
        "roofline": _roofline(
            one,
            loaded[0]["provider"],
            candidates,
            summaries,
            machine=machine,
            work=work,
            views=_views(measured, pictures),
        ),
        "unavailable": {"energy_cpu": measured.watch.rapl.reason, "energy_gpu": measured.watch.nvml.reason},
    }


def _shown(candidate: Candidate, bundle: Path) -> Candidate:
    """A record as reports have it: a library's message may name a folder, and a folder a user."""
    message, fix = (without_folders(text, bundle) for text in (candidate.message, candidate.fix))
    return replace(candidate, message=message, fix=fix)


def _sample_studies(measured: Measured) -> list[list[str]]:
    """Which studies each end-to-end sample is about: those of equal ones may be compared."""
    return [
        [
            "+".join(str(report["study"]) for report in answer["reports"])
            for round_ in start["rounds"]
            for answer in round_["answers"]
        ]
        for start in measured.starts
    ]


def _views(measured: Measured, pictures: Sequence[Sequence[Path]]) -> float:
    numbers = {
        report["study"]
        for start in measured.starts
        for round_ in start["rounds"]
        for answer in round_["answers"]
        for report in answer["reports"]
    }
    return fmean(len(pictures[number]) for number in numbers)


def _memory(measured: Measured) -> dict[str, float]:
    """Peak resident memory in MB after each step of life, the largest of the starts."""
    return {
        "loaded": max(sum(one["rss_mb"] for one in start["loaded"]) for start in measured.starts),
        "first_report": max(sum(one["rss_mb"] for one in start["warm_up"][0]["answers"]) for start in measured.starts),
        "last_report": max(sum(one["rss_mb"] for one in start["rounds"][-1]["answers"]) for start in measured.starts),
    }


def per_token(measured: Measured) -> list[dict[str, float]]:
    """Milliseconds of the passes of a report by their place, counted from 1, over all reports that have one there."""
    passes = [
        max((report["steps_ms"] for report in answer["reports"]), key=len)
        for start in measured.starts
        for round_ in start["rounds"]
        for answer in round_["answers"]
    ]
    found = []
    for place in range(min(MOST_POSITIONS, max(map(len, passes), default=0))):
        values = [one[place] for one in passes if len(one) > place]
        low, middle, high = np.percentile(values, [10, 50, 90]).tolist()
        found.append({"position": place + 1, "n": len(values), "p10": low, "p50": middle, "p90": high})
    return found


def _words(measured: Measured) -> dict[str, str]:
    """Per study a hash over the token ids of its report: two runs wrote the same words where it is equal."""
    found: dict[str, str] = {}
    for start in measured.starts:
        for round_ in [*start["warm_up"], *start["rounds"]]:
            for answer in round_["answers"]:
                for report in answer["reports"]:
                    digest = hashlib.sha256(json.dumps(list(report["token_ids"])).encode()).hexdigest()[:12]
                    earlier = found.setdefault(str(report["study"]), digest)
                    if earlier != digest:
                        found[str(report["study"])] = "differs between processes"
    return found


def _roofline(
    one: Configuration,
    provider: str,
    candidates: Sequence[Candidate],
    summaries: dict[str, Any],
    *,
    machine: Machine,
    work: Work,
    views: float,
) -> dict[str, Any]:
    """Floors and how many times above them the medians are; a reason instead, where there are no floors.

    `provider` is the decoder's, as a process said when it had loaded; the vision encoder alone may have an engine.
    """
    if one.engine != "r2gen":
        return {"reason": "the floors are those of the bundle; the reference runs other weights"}
    engines = any(candidate.taken and candidate.name == ENGINE for candidate in candidates)
    if provider not in (CPU, OPENVINO) or engines:
        return {"reason": "rates were measured on the CPU only"}
    if one.concurrency > 1:
        return {"reason": "processes at once share the bandwidth and the cores the floors are computed from"}
    tokens = summaries["tokens"]["p50"]
    found = floors(work, machine, tokens=tokens, views=views, batch=one.batch, beams=one.settings.decoding.num_beams)
    for stage, metric in (("encode", "encode"), ("prefill", "prefill"), ("decode", "tpot")):
        if metric in summaries:
            found[stage]["measured_ms"] = summaries[metric]["p50"]
            found[stage]["times_floor"] = summaries[metric]["p50"] / found[stage]["floor_ms"]
    per_pass = summaries.get("per_pass", {}).get("p50", 1.0)
    found["drafting"] = "acceptance" in summaries
    found["tokens_per_pass"] = per_pass
    return found


def images_digest(pictures: Sequence[Sequence[Path]]) -> str:
    """12 hex digits over the contents of all pictures: equal for two runs about the same studies."""
    digest = hashlib.sha256()
    for study in pictures:
        digest.update(b"study")
        for image in study:
            try:
                digest.update(hashlib.sha256(image.read_bytes()).digest())
            except OSError:
                digest.update(b"unreadable")  # the pipeline says which and why
    return digest.hexdigest()[:12]


def write_json(path: Path, report: dict[str, Any]) -> None:
    """Write a report, numbers with seven digits."""
    path.write_text(json.dumps(_rounded(report), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return value


def write_samples(path: Path, measured: Sequence[Measured]) -> None:
    """Every report of the run, warm-ups included, as CSV: one line for each answer of a process."""
    names = ["configuration", "process", "round", "worker", "warm_up", "studies"]
    rows = []
    for one in measured:
        for process, start in enumerate(one.starts, start=1):
            rounds = [(True, round_) for round_ in start["warm_up"]] + [(False, round_) for round_ in start["rounds"]]
            for number, (warm, round_) in enumerate(rounds, start=1):
                for worker, answer in enumerate(round_["answers"], start=1):
                    place = (one.configuration.name, process, number, worker, int(warm))
                    studies = " ".join(str(report["study"] + 1) for report in answer["reports"])
                    sample = {name: f"{value:.7g}" for name, value in answer_sample(answer).items()}
                    times = " ".join(f"{step:.4g}" for step in steps({"answers": [answer]}))
                    rows.append(dict(zip(names, [*place, studies], strict=True)) | sample | {"steps_ms": times})
    columns = names + [name for name in definitions() if any(name in row for row in rows)] + ["steps_ms"]
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, columns, restval="")
        table.writeheader()
        table.writerows(rows)


def load_report(path: Path, subject: str = "the report") -> dict[str, Any]:
    """A report by its folder or file; `subject` is what errors call it ("report A", "--baseline").

    Raises:
        R2GenError: `R2G-BENCH-FORMAT` when it is not one, or of another schema.
    """
    fix = "name a folder that r2gen bench wrote"
    report = read_json(path / REPORT if path.is_dir() else path, subject, fix)
    schema = report.get("schema") if isinstance(report, dict) else None
    if schema != SCHEMA:
        raise R2GenError("R2G-BENCH-FORMAT", f"{subject} has schema {schema!r}, this release reads {SCHEMA!r}", fix)
    for name, kind in NEEDED.items():
        if not isinstance(report.get(name), kind):
            raise R2GenError("R2G-BENCH-FORMAT", f"{subject}: {name} is missing or not of its type", fix)
    return dict(report)


def read_json(file: Path, subject: str, fix: str) -> Any:
    """What a JSON file holds; `fix` is what mends one that is none.

    Raises:
        R2GenError: `R2G-BENCH-FORMAT`.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise R2GenError("R2G-BENCH-FORMAT", f"{subject} cannot be read: {cause_of(error)}", fix) from error
    except (ValueError, RecursionError) as error:
        raise R2GenError("R2G-BENCH-FORMAT", f"{subject} is not JSON", fix) from error
