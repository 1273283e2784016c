"""`r2gen bench` and `r2gen bench compare`: options, what is printed, exit statuses."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from r2gen_export.commands.console import guarded, say, say_passed_over, write_out
from r2gen_export.commands.help_page import HelpCommand, HelpGroup, command_app, examples
from r2gen_export.commands.option_groups import option_groups
from r2gen_export.commands.options import Format, OptionalSourceOptions
from r2gen_export.errors import R2GenError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.latency.settings import Sources

DEFAULT: Final = "measure"
PROCESSES: Final = 6


class BenchGroup(HelpGroup):
    """`r2gen bench compare A B` is a command of its own; everything else is `r2gen bench [BUNDLE]`."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The group's context for the word `compare`, else that of the default command under the group's name."""
        if args and args[0] in self.commands and args[0] != DEFAULT:
            return super().make_context(info_name, args, parent, **extra)
        return self.commands[DEFAULT].make_context(info_name, args, parent, **extra)


class ReferenceName(StrEnum):
    """What is measured beside the bundle."""

    torch = "torch"


class ReferencePrecision(StrEnum):
    """Of the reference's LLM."""

    fp32 = "fp32"
    bf16 = "bf16"


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Runs."""

    images: Annotated[
        Path | None,
        typer.Option(
            "--images",
            metavar="PATH",
            help="Studies to report on: a folder, a .txt list or an annotation.json. Default: synthetic ones.",
        ),
    ] = None
    runs: Annotated[
        int, typer.Option("--runs", metavar="N", min=1, help="Number of timed reports of each configuration.")
    ] = 24
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes",
            metavar="N",
            min=1,
            help="Number of new processes that share the runs; bench compare needs 5 or more. Default: 6, at most "
            "--runs.",
        ),
    ] = None
    warmup: Annotated[
        int,
        typer.Option("--warmup", metavar="N", min=1, help="Number of reports before the timed ones in each process."),
    ] = 2


@dataclass(frozen=True, kw_only=True)
class ConfigurationOptions:
    """Configurations.

    Every combination of the values that are lists is measured.
    """

    devices: Annotated[
        str,
        typer.Option(
            "--devices",
            metavar="cpu,cuda,...",
            help="Backends to measure, separated by commas: auto, cpu, openvino, cuda, tensorrt.",
        ),
    ] = "auto"
    presets: Annotated[
        str | None,
        typer.Option(
            "--presets",
            metavar="paper,fast",
            help="Decoding presets to measure, separated by commas. Default: the bundle's.",
        ),
    ] = None
    batch: Annotated[
        str, typer.Option("--batch", metavar="1,4", help="Numbers of studies decoded together, separated by commas.")
    ] = "1"
    concurrency: Annotated[
        str,
        typer.Option(
            "--concurrency",
            metavar="1,2",
            help="Numbers of processes that report at the same time, separated by commas.",
        ),
    ] = "1"
    threads: Annotated[
        int | None,
        typer.Option("--threads", metavar="N", min=1, help="CPU threads of each process. Default: one per core."),
    ] = None
    draft: Annotated[
        bool | None,
        typer.Option(
            "--draft/--no-draft",
            help="Use speculative decoding from earlier reports. Default: on when the bundle has a store of reports, "
            "but not with int8 or int4 weights on a CPU.",
        ),
    ] = None
    min_new_tokens: Annotated[
        int | None,
        typer.Option("--min-new-tokens", metavar="N", min=0, help="Fewest tokens of a report. Default: the preset's."),
    ] = None
    max_new_tokens: Annotated[
        int | None,
        typer.Option("--max-new-tokens", metavar="N", min=1, help="Most tokens of a report. Default: the preset's."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Output."""

    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Folder to write; it must not exist. Default: a folder named by date and time."
        ),
    ] = None
    baseline: Annotated[
        Path | None,
        typer.Option("--baseline", metavar="DIR", help="Folder of an earlier report to compare the new one with."),
    ] = None
    peers: Annotated[
        Path | None,
        typer.Option(
            "--peers",
            metavar="FILE",
            hidden=True,
            help="Results of other programs, as python -m benchmarks.peers --json writes them, to show in the report.",
        ),
    ] = None
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only warnings and errors on stderr.")] = False


@dataclass(frozen=True, kw_only=True)
class ReferenceOptions:
    """PyTorch reference."""

    reference: Annotated[
        ReferenceName | None,
        typer.Option(
            "--reference",
            help="Measure PyTorch on the same studies too; needs --checkpoint, --vision and --llm.",
        ),
    ] = None
    reference_precision: Annotated[
        ReferencePrecision, typer.Option("--reference-precision", help="Precision of the LLM in PyTorch.")
    ] = ReferencePrecision.fp32


app = command_app("Measure latency, memory and energy, or compare two reports.", cls=BenchGroup)


@app.command(
    DEFAULT,
    hidden=True,
    cls=HelpCommand,
    epilog=examples(
        "r2gen bench --out latency",
        "r2gen bench my-bundle --presets paper,fast --images studies/ --out latency",
        "r2gen bench compare A B --fail-above 5%",
    ),
)
@guarded
@option_groups
def measure(
    bundle: Annotated[
        Path | None,
        typer.Argument(metavar="BUNDLE", help="Bundle folder. Default: $R2GEN_BUNDLE, else the embedded demo."),
    ] = None,
    *,
    runs: RunOptions,
    configurations: ConfigurationOptions,
    output: ReportOptions,
    reference: ReferenceOptions,
    torch: OptionalSourceOptions,
) -> None:
    """Measure latency, memory and energy, or compare two reports.

    Measures every stage of a report in new processes, and the limits of this hardware in the same run. r2gen bench
    compare A B compares two such reports; r2gen bench compare --help shows its options.
    """
    from datetime import datetime

    from benchmarks.latency.bench import default_out, run_benchmark
    from benchmarks.latency.environment import command_line
    from benchmarks.latency.settings import BenchSettings
    from r2gen_export.bundle import bundle_path
    from r2gen_export.studies.archives import Archives
    from r2gen_export.studies.collect import collect_studies

    sources = _sources(reference, torch)
    folder = output.out or default_out(f"{datetime.now():%Y%m%d-%H%M%S}")
    lengths = {"min_new_tokens": configurations.min_new_tokens, "max_new_tokens": configurations.max_new_tokens}
    settings = BenchSettings(
        bundle=bundle_path(bundle),
        out=folder,
        images=runs.images,
        runs=runs.runs,
        processes=min(PROCESSES, runs.runs) if runs.processes is None else runs.processes,
        warmup=runs.warmup,
        devices=_words("devices", configurations.devices),
        presets=_words("presets", configurations.presets) if configurations.presets else (),
        batches=_numbers("batch", configurations.batch),
        concurrencies=_numbers("concurrency", configurations.concurrency),
        threads=configurations.threads,
        draft=configurations.draft,
        overrides={name: value for name, value in lengths.items() if value is not None},
        sources=sources,
        peers=output.peers,
        baseline=output.baseline,
        command=command_line(sys.argv[1:]),
    )
    if runs.images is not None:
        with Archives() as archives:
            say_passed_over(collect_studies([runs.images], archives=archives), quiet=output.quiet)
    with progress(output.quiet) as tell:
        report = run_benchmark(settings, tell)
    write_out(summary(report))
    if not output.quiet:
        say(f"{'the folder of --out' if output.out else folder} has report.html, report.md, report.json, samples.csv")


def _sources(reference: ReferenceOptions, torch: OptionalSourceOptions) -> Sources | None:
    """What PyTorch is measured with; None without `--reference`.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE`.
    """
    from benchmarks.latency.settings import Sources

    if reference.reference is None:
        return None
    given = {"--checkpoint": torch.checkpoint, "--vision": torch.vision, "--llm": torch.llm}
    if missing := ", ".join(name for name, value in given.items() if value is None):
        raise R2GenError("R2G-CONFIG-VALUE", f"--reference needs its sources, {missing} missing", f"add {missing}")
    assert torch.checkpoint and torch.vision and torch.llm
    return Sources(torch.checkpoint, torch.vision, torch.llm, reference.reference_precision.value)


@app.command(
    "compare",
    cls=HelpCommand,
    epilog=examples("r2gen bench compare latency latency-again", "r2gen bench compare A B --fail-above 5%"),
)
@guarded
def compare(
    a: Annotated[
        Path, typer.Argument(metavar="A", help="Baseline: the folder of a report, or a folder of several such folders.")
    ],
    b: Annotated[Path, typer.Argument(metavar="B", help="Report, or folder of reports, that is judged against A.")],
    fail_above: Annotated[
        str | None,
        typer.Option(
            "--fail-above",
            metavar="5%",
            help="End with exit status 3 when a judged metric of B is worse by more than this.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Compare although the reports were made under different conditions.")
    ] = False,
    form: Annotated[
        Format, typer.Option("--format", help="Form of the comparison: text, or json with one object of all figures.")
    ] = Format.text,
) -> None:
    """Compare two reports: which differences are more than chance.

    Shows the effect, its confidence interval, the noise of the measurement and a verdict for each metric.
    """
    import json

    from benchmarks.latency.compare import compare_reports, slower_than, unjudged
    from benchmarks.latency.markdown import comparison_text
    from benchmarks.latency.paired_runs import load_runs

    allowed = None if fail_above is None else share(fail_above)
    found = compare_reports(load_runs(a, "report A"), load_runs(b, "report B"), force=force)
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
    from benchmarks.latency import figures, sentences
    from benchmarks.latency.markdown import GLANCE_HEAD, answers, glance

    lines = [f"{report['bundle']['model_id']} ({report['bundle']['id']}) on {report['environment']['cpu']}"]
    lines += [sentences.model_text(report), "", *answers(report), ""]
    rows = [["", *GLANCE_HEAD[1:]], *glance(report)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]))
    lines.append("")
    if any("reason" not in one["roofline"] for one in report["configurations"]):
        lines.append(sentences.FLOOR)
    for one in report["configurations"]:
        for name, reads, computes, *_, floor, measured, times in figures.roofline_rows(one):
            least, _, bound = floor.partition(" ")
            above = f"{times} the floor" if times.endswith("x") else "below the computed floor"
            lines.append(f"{one['name']}: {name}: {measured} ms, {above} of {least} ms {bound}: {reads}, {computes}")
        lines += [f"{one['name']}: {note}" for note in figures.roofline_notes(one)]
    lines += [f"{names}: warning: {warning}" for names, warning in figures.warnings(report)]
    if report["reference"]:
        lines += [text for text, _ in sentences.reference_lines(report)]
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
