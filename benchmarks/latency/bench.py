"""One call of `r2gen bench`: check, measure, judge, write a folder that is whole or not there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.latency.compare import compare_reports, require_conditions
from benchmarks.latency.environment import bundle_facts, environment
from benchmarks.latency.html import to_html
from benchmarks.latency.markdown import to_markdown
from benchmarks.latency.measure import measure, studies
from benchmarks.latency.peers import load_peers
from benchmarks.latency.reference import verdict
from benchmarks.latency.report import REPORT, assemble, images_digest, load_report, write_json, write_samples
from benchmarks.latency.roofline import count_work
from benchmarks.latency.settings import BenchSettings, Configuration, plan
from r2gen_export.bundle import Manifest, open_bundle
from r2gen_export.errors import R2GenError
from r2gen_export.system.files import atomic_dir


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
            pipeline raises. Nothing is left in `settings.out` then. `R2G-BENCH-*` also at the end, when only the
            measured run showed that the baseline is not comparable: the report is written then, without comparison.
    """
    manifest = open_bundle(settings.bundle)
    configurations = plan(settings, manifest)
    baseline = load_report(settings.baseline, "the report of --baseline") if settings.baseline else None
    peers = load_peers(settings.peers) if settings.peers else None
    refused: R2GenError | None = None
    with atomic_dir(settings.out) as folder:
        with studies(settings, configurations) as pictures:
            if baseline is not None:
                require_conditions(baseline, _expected(settings, manifest, configurations, pictures, baseline))
            say("counting the bundle's bytes and operations")
            work = count_work(settings.bundle, manifest)
            measured, machine = measure(settings, configurations, pictures, say)
            report = assemble(settings, manifest, measured, machine, work=work, pictures=pictures)
        report["peers"] = peers
        if settings.sources is not None:
            report["reference"] = verdict(measured, report)
        if baseline is not None:
            try:
                report["comparison"] = compare_reports(baseline, report)
            except R2GenError as error:
                refused = error  # what was measured is kept
        say("writing the report")
        write_json(folder / REPORT, report)
        (folder / "report.md").write_text(to_markdown(report), encoding="utf-8")
        (folder / "report.html").write_text(to_html(report), encoding="utf-8")
        write_samples(folder / "samples.csv", measured)
    if refused is not None:
        message = f"{refused.message}; the report is written, without a comparison"
        raise R2GenError(refused.code, message, "r2gen bench compare --force compares all the same") from refused
    return report


def _expected(
    settings: BenchSettings,
    manifest: Manifest,
    configurations: Sequence[Configuration],
    pictures: Sequence[Sequence[Path]],
    baseline: dict[str, Any],
) -> dict[str, Any]:
    """The conditions of the run to come, as its report will have them."""
    # What runs a configuration shows when it has loaded: taken for the baseline's until then.
    providers = {one.get("name"): one.get("provider") for one in baseline["configurations"] if isinstance(one, dict)}
    return {
        "environment": environment(),
        "bundle": bundle_facts(manifest),
        "settings": {"images_digest": images_digest(pictures), "draft": settings.draft},
        "configurations": [
            {
                "name": one.name,
                "decoding": asdict(one.settings.decoding),
                "semantics": one.settings.semantics,
                "provider": providers.get(one.name),
                "threads": one.threads,
            }
            for one in configurations
        ],
    }


def default_out(now: str) -> Path:
    """Where a report goes when nobody says: a folder named by the time."""
    return Path(f"bench-{now}")
