"""Does `r2gen bench compare` cry wolf, and does it wake? `python -m benchmarks.self_comparison --work DIR`.

The demo bundle is measured several times over, and every pair of those runs is compared: the same thing with itself.
Then again with every pass of an engine made longer by a share (the process waits, busy, after each), and every run
is compared with these. The runs of both kinds alternate.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from itertools import combinations, product
from pathlib import Path
from typing import Any, Final

from benchmarks.latency.compare import compare_reports
from benchmarks.latency.report import load_report

R2GEN: Final = (sys.executable, "-c", "from cli import main; main()")

SLOWER: Final = """
import os
from time import perf_counter

import onnxruntime

def longer(call):
    def run(*args, **options):
        started = perf_counter()
        found = call(*args, **options)
        until = perf_counter() + float(os.environ["R2GEN_SLOWER_BY"]) * (perf_counter() - started)
        while perf_counter() < until:
            pass
        return found
    return run

for name in ("run", "run_with_iobinding"):
    setattr(onnxruntime.InferenceSession, name, longer(getattr(onnxruntime.InferenceSession, name)))
"""
"""Python imports a module of the name `sitecustomize` when it starts."""


def measure(out: Path, options: list[str], slower: float = 0.0) -> dict[str, Any]:
    """One report of `r2gen bench`, in which passes take `slower` (a share) longer.

    Raises:
        subprocess.CalledProcessError: `r2gen bench` failed; it has said why.
    """
    environment = dict(os.environ)
    if slower:
        patch = out.with_name("slower")
        patch.mkdir(exist_ok=True)
        (patch / "sitecustomize.py").write_text(SLOWER, encoding="utf-8")
        paths = [str(patch), environment.get("PYTHONPATH", "")]
        environment |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "R2GEN_SLOWER_BY": str(slower)}
    subprocess.run(
        [*R2GEN, "bench", *options, "--quiet", "--out", str(out)],
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return load_report(out)


def verdicts(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[dict[str, dict[str, Any]]]:
    """For each pair of reports its judged metrics by name. A busy machine is judged too."""
    found = []
    for a, b in pairs:
        (configuration,) = compare_reports(a, b, force=True)["configurations"]
        found.append({one["name"]: one for one in configuration["metrics"] if one["judged"]})
    return found


def summary(title: str, found: list[dict[str, dict[str, Any]]]) -> str:
    """Counts of the verdicts, and between which bounds effect and noise lay."""
    called = sum(any(one["verdict"] in ("worse", "better") for one in pair.values()) for pair in found)
    lines = [f"{title}: {called} of {len(found)} pairs with a significant difference"]
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
    parser.add_argument("--same", type=int, default=7, help="runs that nothing was done to")
    parser.add_argument("--slowed", type=int, default=3, help="runs with longer passes")
    parser.add_argument("--slower", type=float, default=0.1, help="by how much, as a share")
    parser.add_argument("bench", nargs="*", help="options of r2gen bench, after --")
    asked = parser.parse_args()
    asked.work.mkdir(parents=True)
    options = ["--devices", "cpu", "--presets", "fast", *asked.bench]
    same, slowed = [], []
    for number in range(max(asked.same, asked.slowed)):
        if number < asked.same:
            same.append(measure(asked.work / f"same-{number}", options))
        if number < asked.slowed:
            slowed.append(measure(asked.work / f"slowed-{number}", options, asked.slower))
    print(summary("against itself", verdicts(list(combinations(same, 2)))))
    print(summary(f"against passes {asked.slower:.0%} longer", verdicts(list(product(same, slowed)))))


if __name__ == "__main__":
    main()
