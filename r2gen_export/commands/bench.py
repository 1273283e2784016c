"""`r2gen bench` and `r2gen bench compare`: options, what is printed, exit statuses."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from typer.core import TyperGroup

from r2gen_export.commands.console import guarded, say, say_passed_over, write_out
from r2gen_export.commands.options import CheckpointHelp, Format, LlmHelp, VisionHelp
from r2gen_export.errors import R2GenError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEFAULT: Final = "measure"
PROCESSES: Final = 6


class BenchGroup(TyperGroup):
    """`r2gen bench compare A B` is a command of its own; everything else is `r2gen bench [BUNDLE]`."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The group's context for the word `compare`, else that of the default command under the group's name."""
        if args and args[0] in self.commands and args[0] != DEFAULT:
            return super().make_context(info_name, args, parent, **extra)
        return self.commands[DEFAULT].make_context(info_name, args, parent, **extra)


bench = typer.Typer(
    cls=BenchGroup,
    help="Measure a bundle's latency, memory and energy, or compare two measurements (bench compare A B).",
    rich_markup_mode=None,
)


class Reference(StrEnum):
    """What is measured beside the bundle."""

    torch = "torch"


class ReferencePrecision(StrEnum):
    """Of the reference's LLM."""

    fp32 = "fp32"
    bf16 = "bf16"


EPILOG: Final = "Compare two reports: r2gen bench compare A B [--fail-above 5%] [--force]"


@bench.command(DEFAULT, hidden=True, epilog=EPILOG)
@guarded
def measure(
    bundle: Annotated[
        Path | None, typer.Argument(metavar="BUNDLE", help="Default: $R2GEN_BUNDLE, else the embedded demo.")
    ] = None,
    *,
    images: Annotated[
        Path | None,
        typer.Option("--images", metavar="PATH", help="Folder, list or annotation.json. Default: drawn phantoms."),
    ] = None,
    runs: Annotated[int, typer.Option("--runs", min=1, help="Timed reports of each configuration.")] = 24,
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes",
            min=1,
            help="Fresh processes they are spread over; 5 or more to compare single runs. Default: 6, at most --runs.",
        ),
    ] = None,
    warmup: Annotated[int, typer.Option("--warmup", min=1, help="Reports before them in each process.")] = 2,
    devices: Annotated[
        str, typer.Option("--devices", metavar="cpu,cuda,...", help="auto, cpu, openvino, cuda, tensorrt.")
    ] = "auto",
    presets: Annotated[
        str | None, typer.Option("--presets", metavar="paper,fast", help="Default: the bundle's own.")
    ] = None,
    batch: Annotated[str, typer.Option("--batch", metavar="1,4", help="Studies decoded together.")] = "1",
    concurrency: Annotated[
        str, typer.Option("--concurrency", metavar="1,2", help="Processes that report at the same time.")
    ] = "1",
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads of each process.")] = None,
    draft: Annotated[bool | None, typer.Option("--draft/--no-draft", help="Draft from earlier reports.")] = None,
    min_new_tokens: Annotated[
        int | None, typer.Option("--min-new-tokens", min=0, help="Default: the preset's.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", min=1, help="Default: the preset's.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder to write; it must not exist. Default: by time.")
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option("--baseline", metavar="RUN", help="Earlier report folder to compare with.")
    ] = None,
    reference: Annotated[
        Reference | None, typer.Option("--reference", help="Measure PyTorch beside it; needs the three sources.")
    ] = None,
    reference_precision: Annotated[
        ReferencePrecision, typer.Option("--reference-precision", help="Of PyTorch's LLM.")
    ] = ReferencePrecision.fp32,
    checkpoint: Annotated[Path | None, typer.Option("--checkpoint", metavar="PATH", help=CheckpointHelp)] = None,
    vision: Annotated[str | None, typer.Option("--vision", metavar="MODEL", help=VisionHelp)] = None,
    llm: Annotated[str | None, typer.Option("--llm", metavar="MODEL", help=LlmHelp)] = None,
    peers: Annotated[
        Path | None, typer.Option("--peers", metavar="FILE", help="Results of benchmarks.peers --json to show.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors on stderr.")] = False,
) -> None:
    """Measure stages, percentiles, memory and energy of a bundle, beside the limit of this hardware."""
    from datetime import datetime

    from benchmarks.latency.bench import default_out, run_benchmark
    from benchmarks.latency.environment import command_line
    from benchmarks.latency.settings import BenchSettings, Sources
    from r2gen_export.runtime.pipeline import bundle_path
    from r2gen_export.studies.collect import collect_studies

    sources = None
    if reference is not None:
        given = {"--checkpoint": checkpoint, "--vision": vision, "--llm": llm}
        if missing := ", ".join(name for name, value in given.items() if value is None):
            raise R2GenError("R2G-CONFIG-VALUE", f"--reference needs its sources, {missing} missing", f"add {missing}")
        assert checkpoint and vision and llm
        sources = Sources(checkpoint, vision, llm, reference_precision.value)
    folder = out or default_out(f"{datetime.now():%Y%m%d-%H%M%S}")
    settings = BenchSettings(
        bundle=bundle_path(bundle),
        out=folder,
        images=images,
        runs=runs,
        processes=min(PROCESSES, runs) if processes is None else processes,
        warmup=warmup,
        devices=_words("devices", devices),
        presets=_words("presets", presets) if presets else (),
        batches=_numbers("batch", batch),
        concurrencies=_numbers("concurrency", concurrency),
        threads=threads,
        draft=draft,
        overrides={
            name: value
            for name, value in (("min_new_tokens", min_new_tokens), ("max_new_tokens", max_new_tokens))
            if value is not None
        },
        sources=sources,
        peers=peers,
        baseline=baseline,
        command=command_line(sys.argv[1:]),
    )
    if images is not None:
        say_passed_over(collect_studies([images]), quiet=quiet)
    with progress(quiet) as tell:
        report = run_benchmark(settings, tell)
    write_out(summary(report))
    if not quiet:
        say(f"report in {folder}: report.html, report.md, report.json, samples.csv")


@bench.command("compare")
@guarded
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="Baseline: a report folder, or a folder of several.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="What is judged against it.")],
    fail_above: Annotated[
        str | None,
        typer.Option("--fail-above", metavar="5%", help="Exit status 3 when a judged metric is worse by more."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Compare although conditions differ.")] = False,
    form: Annotated[Format, typer.Option("--format", help="json: the comparison as data.")] = Format.text,
) -> None:
    """Say what differs between two reports by more than chance: effect, interval, noise, verdict."""
    import json

    from benchmarks.latency.compare import compare_reports, slower_than, unjudged
    from benchmarks.latency.markdown import comparison_text
    from benchmarks.latency.paired_runs import load_runs

    allowed = None if fail_above is None else share(fail_above)
    found = compare_reports(load_runs(a), load_runs(b), force=force)
    write_out((json.dumps(found, indent=1) if form is Format.json else comparison_text(found)) + "\n")
    if allowed is not None and (worse := slower_than(found, allowed)):
        message = f"worse by more than {allowed:.3g}: {'; '.join(worse)}"
        raise R2GenError("R2G-BENCH-SLOWER", message, "find the change that did it, or allow more with --fail-above")
    if allowed is not None and (lacking := unjudged(found)):
        message = f"no verdict, so no gate was passed: {'; '.join(lacking)}"
        raise R2GenError(
            "R2G-BENCH-CONDITIONS", message, "measure again, alone on the machine, with 6 --processes or 8 runs in turn"
        )


def share(text: str) -> float:
    """`5%` or `0.05` as a share.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE`.
    """
    number, percent, rest = text.strip().partition("%")
    try:
        value = float(number) / (100 if percent else 1)
        if rest or not 0 <= value < 100:
            raise ValueError
    except ValueError:
        raise R2GenError("R2G-CONFIG-VALUE", f"--fail-above {text!r}", "give a share like 5% or 0.05") from None
    return value


def summary(report: dict[str, Any]) -> str:
    """What a terminal shows: the medians, the distance from the limit, what makes them doubtful."""
    from benchmarks.latency import figures
    from benchmarks.latency.markdown import glance

    lines = [f"{report['bundle']['model_id']} ({report['bundle']['id']}) on {report['environment']['cpu']}", ""]
    rows = [["", "end to end ms", "TTFT ms", "TPOT ms", "reports/s", "peak MB"], *glance(report)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]))
    lines.append("")
    for one in report["configurations"]:
        for name, reads, computes, *_, floor, measured, times in figures.roofline_rows(one):
            least, _, bound = floor.partition(" ")
            lines.append(
                f"{one['name']}: {name}: {measured} ms, {times} the floor of {least} ms {bound}: {reads}, {computes}"
            )
    lines += [f"{names}: warning: {warning}" for names, warning in figures.warnings(report)]
    if report["reference"]:
        lines.append(figures.reference_verdict(report))
    if report["comparison"]:
        for one in report["comparison"]["configurations"]:
            lines += [
                f"{one['name']}: {metric['title']} {metric['ratio']:.3f} of the baseline's: {metric['verdict']}"
                for metric in one["metrics"]
                if metric["judged"]
            ]
    return "\n".join([*lines, "", f"| {report['notice']}", ""])


@contextmanager
def progress(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Lines on stderr; on a terminal they replace each other, and the last one vanishes when the block ends."""
    live = sys.stderr.isatty() and not quiet

    def tell(line: str) -> None:
        if live:
            sys.stderr.write(f"\r\x1b[K{line}")
            sys.stderr.flush()
        elif not quiet:
            say(line)

    try:
        yield tell
    finally:
        if live:
            tell("")


def _words(name: str, text: str) -> tuple[str, ...]:
    found = tuple(word.strip() for word in text.split(",") if word.strip())
    if not found:
        raise R2GenError("R2G-CONFIG-VALUE", f"--{name} names nothing", "separate several by commas")
    return found


def _numbers(name: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in _words(name, text))
    except ValueError:
        raise R2GenError("R2G-CONFIG-VALUE", f"--{name} {text!r}", "give whole numbers, separated by commas") from None
