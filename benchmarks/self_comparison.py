"""Does `r2gen bench compare` cry wolf, and does it wake? `python -m benchmarks.self_comparison --work DIR`.

The demo bundle is measured again and again in short runs: several series of runs that nothing was done to, and one in
which every pass of an engine takes longer by a share (the process waits, busy, after each). The series' runs take
turns. Every pair of untouched series is compared, the same thing with itself, and each of them with the slowed one;
then all is done again in the next block.
"""

from __future__ import annotations

import argparse
import os
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any, Final

from benchmarks.cold_start import R2GEN
from benchmarks.latency.compare import compare_reports
from benchmarks.latency.paired_runs import LEAST_RUNS, load_runs

OPTIONS: Final = ("--devices=cpu", "--presets=fast", "--threads=1", "--processes=1", "--runs=9", "--warmup=1")

SLOWER: Final = """
import os
import sys
from time import perf_counter

def longer(call):
    def run(*args, **options):
        started = perf_counter()
        found = call(*args, **options)
        until = perf_counter() + float(os.environ["R2GEN_SLOWER_BY"]) * (perf_counter() - started)
        while perf_counter() < until:
            pass
        return found
    return run

if "benchmarks.latency.worker_process" in sys.orig_argv:
    from onnxruntime import InferenceSession

    for name in ("run", "run_with_iobinding"):
        setattr(InferenceSession, name, longer(getattr(InferenceSession, name)))
"""
"""Python imports a module of the name `sitecustomize` when it starts. The measured process alone is slowed, not the one
that measures the machine."""


def measure(out: Path, options: list[str], slower: float = 0.0) -> None:
    """One report of `r2gen bench`, in which passes take `slower` (a share) longer.

    Raises:
        subprocess.CalledProcessError: `r2gen bench` failed; it has said why.
    """
    environment = dict(os.environ)
    if slower:
        patch = out.parent.with_name("sitecustomize")
        patch.mkdir(exist_ok=True)
        (patch / "sitecustomize.py").write_text(SLOWER, encoding="utf-8")
        paths = [str(patch), environment.get("PYTHONPATH", "")]
        environment |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "R2GEN_SLOWER_BY": str(slower)}
    command = [*R2GEN, "bench", *options, "--quiet", "--out", str(out)]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)


def verdicts(a: Path, b: Path) -> dict[str, dict[str, Any]]:
    """The judged metrics of a comparison by name."""
    (configuration,) = compare_reports(load_runs(a), load_runs(b))["configurations"]
    return {one["name"]: one for one in configuration["metrics"] if one["judged"]}


def summary(title: str, found: list[dict[str, dict[str, Any]]]) -> str:
    """Counts of the verdicts, and between which bounds effect and noise lay."""
    called = sum(any(one["verdict"] in ("worse", "better") for one in pair.values()) for pair in found)
    busy = sum(pair["total"]["verdict"] == "machine was busy" for pair in found)
    lines = [f"{title}: {called} of {len(found)} pairs with a significant difference, {busy} not judged (busy machine)"]
    for name in found[0]:
        ratios, noise = ([pair[name][key] for pair in found] for key in ("ratio", "noise"))
        counts = {word: sum(pair[name]["verdict"] == word for pair in found) for word in ("worse", "better")}
        lines.append(
            f"  {name}: {counts['worse']} worse, {counts['better']} better, "
            f"B / A {min(ratios):.3f} to {max(ratios):.3f}, noise {min(noise):.1%} to {max(noise):.1%}"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the reports; must not exist")
    parser.add_argument("--blocks", type=int, default=2, help="how often everything is done")
    parser.add_argument("--series", type=int, default=5, help="series that nothing is done to, in each block")
    parser.add_argument("--runs", type=int, default=10, help=f"runs of each series, {LEAST_RUNS} or more")
    parser.add_argument(
        "--slower", type=float, default=0.1, help="how much longer passes take in the other, as a share"
    )
    parser.add_argument("bench", nargs="*", help="options of r2gen bench, after --")
    asked = parser.parse_args()
    if asked.runs < LEAST_RUNS:
        parser.error(f"--runs {asked.runs} gives no verdict, {LEAST_RUNS} do")
    if asked.work.exists():
        parser.error(f"{asked.work} exists already")
    options = [*OPTIONS, *asked.bench]
    itself, slowed = [], []
    for block in range(asked.blocks):
        names = [asked.work / f"block-{block}" / f"same-{number}" for number in range(asked.series)]
        other = asked.work / f"block-{block}" / "slowed"
        for series in (*names, other):
            series.mkdir(parents=True)
        for run in range(asked.runs):
            # There and back again: a machine that grows slower all the time slows no series more than another.
            for series in (*names, other)[:: -1 if run % 2 else 1]:
                measure(series / f"run-{run}", options, asked.slower if series is other else 0.0)
        itself += [verdicts(*pair) for pair in combinations(names, 2)]
        slowed += [verdicts(series, other) for series in names]
        print(summary("against itself", itself), flush=True)
        print(summary(f"against passes {asked.slower:.0%} longer", slowed), flush=True)


if __name__ == "__main__":
    main()
