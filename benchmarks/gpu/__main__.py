"""The GPU check: everything r2gen does on an NVIDIA GPU, in one command.

`python -m benchmarks.gpu --out DIR` writes `gpu.json` (all numbers), `table.md` and `log.txt` into DIR. Small bundles
and large graphs are made first, in a work folder that is kept for the next time. A second call with the same DIR runs
what is missing or failed. See benchmarks/gpu/README.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.gpu import imitated
from benchmarks.gpu.plan import FULL, WITHOUT_GPU, Step, bundles_of, recipes_of
from benchmarks.gpu.runner import Machine, Results, code_version, digest, run_steps, succeeded, write_json
from benchmarks.gpu.steps import STEPS
from benchmarks.gpu.table import placement_json, render
from r2gen_export.errors import R2GenError
from r2gen_export.system.cache_folder import cache_folder

MAKING_S: Final = 1800
"""Seconds the bundles may take, and the recipes."""

MEANINGFUL: Final = ("binding", "providers", "placement")
"""Steps whose answers mean something on the imitated runtime."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder for gpu.json, table.md and log.txt")
    parser.add_argument("--json", type=Path, help="file for the answers of binding and placement alone")
    parser.add_argument("--work", type=Path, help="folder for bundles and recipes (default: in the user's cache)")
    parser.add_argument("--minutes", type=float, default=60, help="after that no further step is begun (default: 60)")
    parser.add_argument("--only", help=f"steps, separated by commas, of: {', '.join(STEPS)}; they are run again")
    device = parser.add_mutually_exclusive_group()
    device.add_argument("--cpu", action="store_true", help="try the check without a GPU: both sides are the CPU")
    device.add_argument("--imitated", type=Path, metavar="DIR", help="an imitated CUDA runtime, compiled into DIR")
    options = parser.parse_args(arguments)
    if not options.out and not options.json:
        parser.error("give --out DIR, or --json FILE, or both")
    options.only = options.only.split(",") if options.only else []
    if unknown := set(options.only) - STEPS.keys():
        parser.error(f"no step is called {', '.join(sorted(unknown))}")
    return options


def main(arguments: Sequence[str] | None = None, *, packed: Path | None = None, packages: Path | None = None) -> None:
    """Run the check.

    Args:
        arguments: of the command line.
        packed: folder with bundles and recipes that is used as it is.
        packages: folder of packages that come before all others.
    """
    deadline, options = time.monotonic(), parse(arguments)
    try:
        _check(options, packed, packages, deadline + options.minutes * 60)
    except R2GenError as error:
        print(error.render(), file=sys.stderr)
        sys.exit(error.exit_status)


def _check(options: argparse.Namespace, packed: Path | None, packages: Path | None, deadline: float) -> None:
    libraries = imitated.build(options.imitated) if options.imitated else None
    steps = chosen_steps(options.only, without_gpu=options.cpu, imitated_runtime=libraries is not None)
    work = (packed or options.work or cache_folder() / "gpu-check").resolve()
    if packed is None:
        make(work, bundles_of(steps), recipes_of(steps))
    with tempfile.TemporaryDirectory() as temporary:
        out = options.out or Path(temporary)
        out.mkdir(parents=True, exist_ok=True)
        machine = Machine("cpu" if options.cpu else "cuda", work, libraries, packages)
        results = run_steps(
            machine,
            steps,
            out,
            deadline=deadline,
            earlier=_earlier(out, options.only, machine.kind),
            report=lambda line: print(line, flush=True),
        )
        text = render(results)
        (out / "table.md").write_text(text, encoding="utf-8")
    if options.json:
        write_json(options.json, placement_json(results))
    print(text)


def chosen_steps(only: Sequence[str], *, without_gpu: bool, imitated_runtime: bool) -> tuple[Step, ...]:
    """The steps to run: those of `only`, else all that mean something."""
    plan = WITHOUT_GPU if without_gpu or imitated_runtime else FULL
    if only:
        return tuple(step for step in plan if step.name in only)
    if imitated_runtime:
        return tuple(step for step in plan if step.name in MEANINGFUL)
    return tuple(step for step in plan if not (without_gpu and step.name == "placement"))


def _earlier(out: Path, only: Sequence[str], device: str) -> Results:
    """Answers of an earlier call of this code on this kind of device that need not be asked for again."""
    path = out / "gpu.json"
    if not path.exists():
        return {}
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if (results.get("device"), results.get("code")) != (device, code_version()):
        return {}
    return {key: value for key, value in succeeded(results).items() if key.partition(" ")[0] not in only}


def make(work: Path, bundles: Sequence[str], recipes: Sequence[str]) -> None:
    """Bundles and recipes in `work`, those that are missing; all of them anew when the exporter has changed."""
    mark, version = work / "made-by.txt", _exporter_version()
    if mark.exists() and mark.read_text(encoding="utf-8") != version:
        for part in ("bundles", "recipes"):
            shutil.rmtree(work / part, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    mark.write_text(version, encoding="utf-8")
    for module, names in (("bundles", bundles), ("recipes", recipes)):
        missing = [name for name in names if not (work / module / name).exists()]
        if not missing:
            continue
        print(f"making {module}: {', '.join(missing)}", flush=True)
        # In a process of its own: torch and what it holds are gone before the first step.
        command = [sys.executable, "-m", f"benchmarks.gpu.{module}", str(work / module), *missing]
        if status := subprocess.run(command, timeout=MAKING_S, check=False).returncode:
            print(f"making {module} ended with status {status}; steps that need them will fail", flush=True)


def _exporter_version() -> str:
    """Names the code that writes bundles and recipes."""
    import r2gen_export

    package, here = Path(r2gen_export.__file__).parent, Path(__file__).parent
    files = [*(package / "bundle").rglob("*.py"), package / "precision.py", here / "bundles.py", here / "recipes.py"]
    return digest([*files, *(package / "exporting").rglob("*.py")])


if __name__ == "__main__":
    main()
