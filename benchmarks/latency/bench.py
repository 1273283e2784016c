"""One call of `r2gen bench`: check, measure, judge, write a folder that is whole or not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.latency.compare import compare_reports
from benchmarks.latency.environment import bundle_facts, environment
from benchmarks.latency.html import to_html
from benchmarks.latency.markdown import to_markdown
from benchmarks.latency.measure import measure, studies
from benchmarks.latency.peers import load_peers
from benchmarks.latency.reference import verdict
from benchmarks.latency.report import REPORT, assemble, load_report, write_json, write_samples
from benchmarks.latency.roofline import count_work
from benchmarks.latency.settings import BenchSettings, Configuration, plan
from r2gen_export.atomic import atomic_dir
from r2gen_export.bundle import Manifest, open_bundle
from r2gen_export.errors import R2GenError


def run_benchmark(settings: BenchSettings, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Measure a bundle and write `report.json`, `report.md`, `report.html` and `samples.csv` into `settings.out`.

    Args:
        settings: of the call.
        say: told what is being done.

    Returns:
        The report, as it was written.

    Raises:
        R2GenError: before measuring: `R2G-BUNDLE-*`, `R2G-CONFIG-VALUE`, `R2G-DEVICE-UNAVAILABLE`, `R2G-DATA-*`,
            `R2G-OUTPUT-*`, and `R2G-BENCH-*` for a baseline or peers that cannot be used; while measuring, what the
            pipeline raises. Nothing is left in `settings.out` then.
    """
    manifest = open_bundle(settings.bundle)
    configurations = plan(settings, manifest)
    baseline = load_report(settings.baseline) if settings.baseline else None
    peers = load_peers(settings.peers) if settings.peers else None
    with atomic_dir(settings.out) as folder:
        if baseline is not None:
            _require_comparable(baseline, manifest, configurations)
        say("counting the bundle's bytes and operations")
        work = count_work(settings.bundle, manifest)
        with studies(settings, configurations) as pictures:
            measured, machine = measure(settings, configurations, pictures, say)
            report = assemble(settings, manifest, measured, machine, work=work, pictures=pictures)
        report["peers"] = peers
        if settings.sources is not None:
            report["reference"] = verdict(measured, report)
        if baseline is not None:
            report["comparison"] = compare_reports(baseline, report)
        say("writing the report")
        write_json(folder / REPORT, report)
        (folder / "report.md").write_text(to_markdown(report), encoding="utf-8")
        (folder / "report.html").write_text(to_html(report), encoding="utf-8")
        write_samples(folder / "samples.csv", measured)
    return report


def _require_comparable(baseline: dict[str, Any], manifest: Manifest, configurations: list[Configuration]) -> None:
    """Refuse a baseline from elsewhere before minutes are spent; the rest is checked after them."""
    here, there = environment()["host"], baseline["environment"].get("host")
    theirs, ours = baseline["bundle"].get("id"), bundle_facts(manifest)["id"]
    names = {one.get("name") for one in baseline["configurations"] if isinstance(one, dict)}
    differs = [f"host ({there} against {here})"] if here != there else []
    differs += [f"bundle ({theirs} against {ours})"] if ours != theirs else []
    differs += [] if names & {one.name for one in configurations} else ["every configuration"]
    if differs:
        message = f"the baseline is not comparable: {', '.join(differs)}"
        fix = "measure without --baseline; r2gen bench compare --force compares all the same"
        raise R2GenError("R2G-BENCH-CONDITIONS", message, fix)


def default_out(now: str) -> Path:
    """Where a report goes when nobody says: a folder named by the time."""
    return Path(f"bench-{now}")
