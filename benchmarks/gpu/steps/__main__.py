"""One step: `python -m benchmarks.gpu.steps NAME [ARGUMENT] --device D --work W --scratch S --answer FILE`."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.gpu.steps import STEPS, Context, run


def main() -> None:
    """Run it and write its answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=STEPS)
    parser.add_argument("argument", nargs="?", default="")
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--answer", type=Path, required=True)
    parser.add_argument("--imitated", action="store_true")
    options = parser.parse_args()
    options.scratch.mkdir(parents=True, exist_ok=True)
    context = Context(options.device, options.work, options.scratch, options.imitated, options.answer)
    context.keep(run(options.name, options.argument, context))


if __name__ == "__main__":
    main()
