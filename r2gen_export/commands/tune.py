"""`r2gen tune`: measure how a bundle decodes fastest on this machine's CPU, and record it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from r2gen_export.commands.console import guarded, progress_bar, say, write_out
from r2gen_export.commands.help_page import HelpCommand, command_app, examples
from r2gen_export.commands.options import Format

if TYPE_CHECKING:
    from r2gen_export.bundle import Manifest
    from r2gen_export.runtime.backends.tuning import Tuning

HEADINGS = ("workload", "backend", "threads", "prompt ms", "step ms", "100 tokens ms", "taken")

app = command_app()


@app.command(cls=HelpCommand, epilog=examples("r2gen tune my-bundle", "r2gen tune my-bundle --format json"))
@guarded
def tune(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of the bundle to measure.")],
    *,
    form: Annotated[
        Format, typer.Option("--format", help="Show the timings as a table (text) or as one object (json).")
    ] = Format.text,
) -> None:
    """Measure how a bundle decodes fastest on this CPU, and record it.

    Compares ONNX Runtime with OpenVINO (where it is installed), with one thread and with one for each physical core,
    separately for single reports, beam search and batches. `infer`, `bench` and the Python API read the record, which
    is kept in the cache folder ($R2GEN_CACHE, else ~/.cache/r2gen); they measure nothing themselves.
    """
    from r2gen_export.bundle import Bundle
    from r2gen_export.runtime.backends.decoders import is_large
    from r2gen_export.runtime.backends.tuning import write_tuning
    from r2gen_export.system.huge_pages import restart_with_huge_pages

    opened = Bundle(bundle)
    if is_large(opened.manifest):
        restart_with_huge_pages()  # as `infer` does: the timings are of the same conditions
    manifest = opened.verified()
    record = _measure(bundle, manifest)
    path = write_tuning(manifest, record)
    say(f"recorded in {path}")
    write_out(json.dumps(record.to_dict()) + "\n" if form is Format.json else as_table(record))


def _measure(bundle: Path, manifest: Manifest) -> Tuning:
    """The timings, with a progress bar on a terminal and else a line on stderr for each setting."""
    from r2gen_export.runtime.backends.cpu_timing import measure, setting_count

    with progress_bar() as bar:
        task = bar.add_task("tuning", total=setting_count(manifest))
        begun = False

        def advance(setting: str) -> None:
            nonlocal begun
            bar.update(task, description=setting, advance=int(begun))
            begun = True
            if not sys.stderr.isatty():
                say(f"measuring {setting}")

        return measure(bundle, manifest, advance)


def as_table(record: Tuning) -> str:
    """One line for each workload and setting; the settings that later calls take are marked."""
    from r2gen_export.runtime.backends.tuning import WORKLOADS

    rows = [HEADINGS]
    for workload in WORKLOADS:
        best = record.best(workload)
        rows += [
            (
                workload.title,
                timing.backend,
                str(timing.threads),
                f"{timing.prefill_ms:.1f}",
                f"{timing.step_ms:.2f}",
                f"{timing.report_ms:.0f}",
                "yes" if timing == best else "",
            )
            for timing in record.of(workload)
        ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = [
        "  ".join(
            cell.rjust(width) if 2 <= column <= 5 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines += [f"{backend} was not measured: {message}" for backend, message in record.skipped.items()]
    return "\n".join(lines) + "\n"
