"""`r2gen evaluate` and `r2gen evaluate compare`: options, what is printed, exit statuses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from r2gen_export.commands.console import guarded, write_out
from r2gen_export.commands.evaluate_options import (
    GenerationOptions,
    OutputOptions,
    ProtocolName,
    ScoreOptions,
    StudyOptions,
)
from r2gen_export.commands.help_page import HelpCommand, HelpGroup, command_app, examples
from r2gen_export.commands.option_groups import option_groups
from r2gen_export.commands.options import Format

DEFAULT: Final = "run"


class EvaluateGroup(HelpGroup):
    """`compare` and `seeds` are commands of their own; everything else is `r2gen evaluate [BUNDLE]`."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The group's context for the word `compare`, else that of the default command under the group's name."""
        if args and args[0] in self.commands and args[0] != DEFAULT:
            return super().make_context(info_name, args, parent, **extra)
        return self.commands[DEFAULT].make_context(info_name, args, parent, **extra)


app = command_app(
    """Score a bundle, or finished reports, on a data set.

    r2gen evaluate compare A B compares two of them on the same studies; r2gen evaluate seeds DIR... gives mean and
    deviation of several.
    """,
    cls=EvaluateGroup,
    no_args_is_help=False,
)


@app.command(
    DEFAULT,
    hidden=True,
    cls=HelpCommand,
    epilog=examples(
        "r2gen evaluate bundle --annotation annotation.json --dataset iu_xray --out evaluation",
        "r2gen evaluate --predictions reports.jsonl --annotation annotation.json --out evaluation",
        "r2gen evaluate --predictions test_result.json --references test_refs.json --protocol raw",
        "r2gen evaluate compare evaluation evaluation-int4 --fail-below bleu4=0.005,labels=1%",
    ),
)
@guarded
@option_groups
def run(
    bundle: Annotated[
        Path | None,
        typer.Argument(
            metavar="BUNDLE",
            help="Bundle that writes the reports; with --predictions, the one whose tokenizer cuts references. "
            "Default: $R2GEN_BUNDLE, else the embedded demo, unless there are --predictions.",
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            "--predictions",
            metavar="FILE",
            rich_help_panel="Studies",
            help="Finished reports: JSON lines of infer, test_result.json of the published code, ReXrank's JSON, or a "
            ".csv.",
        ),
    ] = None,
    *,
    studies: StudyOptions,
    scores: ScoreOptions,
    generation: GenerationOptions,
    output: OutputOptions,
) -> None:
    """Score a bundle, or finished reports, on a data set.

    Prints the metrics of the papers with their protocol and 95 % intervals, beside what a constant and a random report
    reach, and the findings that reports name. r2gen evaluate compare A B compares two evaluations.
    """
    from r2gen_export.commands.evaluate_run import EvaluateRequest, run_evaluate

    run_evaluate(
        EvaluateRequest(
            bundle=bundle, predictions=predictions, studies=studies, scores=scores, generation=generation, output=output
        )
    )


@app.command(
    "compare",
    cls=HelpCommand,
    epilog=examples(
        "r2gen evaluate compare evaluation evaluation-int4 --fail-below bleu4=0.005,labels=1%",
        "r2gen evaluate compare a.jsonl b.jsonl --annotation annotation.json --protocol coco",
    ),
)
@guarded
@option_groups
def compare(
    a: Annotated[
        Path, typer.Argument(metavar="A", help="Reference: a folder that r2gen evaluate wrote, or a file of reports.")
    ],
    b: Annotated[Path, typer.Argument(metavar="B", help="Folder or file of reports that is judged against A.")],
    *,
    studies: StudyOptions,
    fail_below: Annotated[
        str | None,
        typer.Option(
            "--fail-below",
            metavar="bleu4=0.005,labels=1%",
            help="End with exit status 3 unless B is shown, with 95 % confidence, to be worse by no more than this.",
        ),
    ] = None,
    protocol: Annotated[
        ProtocolName,
        typer.Option("--protocol", help="Protocol by which files of reports are scored; folders bring their own."),
    ] = ProtocolName.coco,
    replicates: Annotated[
        int, typer.Option("--replicates", metavar="N", min=100, help="Resamples for intervals and p values.")
    ] = 10_000,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder for comparison.json and comparison.md, which it must lack."),
    ] = None,
    form: Annotated[
        Format, typer.Option("--format", help="Form of the comparison: text, or json with one object of all figures.")
    ] = Format.text,
) -> None:
    """Compare two evaluations of the same studies.

    Shows differences with paired intervals and p values, identical reports, where the others diverge, and the findings
    that only one side names.
    """
    import json

    from r2gen_export.commands.evaluate_compare import CompareRequest, run_compare
    from r2gen_export.evaluation.compare_tables import comparison_markdown
    from r2gen_export.evaluation.gates import refuse_worse

    comparison = run_compare(CompareRequest(a, b, studies, protocol.value, fail_below, replicates, out))
    shown = json.dumps(comparison, indent=1) + "\n" if form is Format.json else comparison_markdown(comparison)
    write_out(shown)
    refuse_worse(comparison)


@app.command("seeds", cls=HelpCommand, epilog=examples("r2gen evaluate seeds run-1/evaluation run-2/evaluation"))
@guarded
@option_groups
def seeds(
    runs: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Folders that r2gen evaluate wrote, one of each run.")
    ],
    *,
    form: Annotated[
        Format, typer.Option("--format", help="Form of the summary: text, or json with one object of all figures.")
    ] = Format.text,
) -> None:
    """Mean and standard deviation over runs of different seeds.

    The runs are evaluations of the same studies by the same protocol, of models trained alike with different seeds.
    """
    import json

    from r2gen_export.evaluation.results_folder import read_results
    from r2gen_export.evaluation.seeds import seeds_markdown, summarise

    summary = summarise([read_results(path, f"run {number}") for number, path in enumerate(runs, start=1)])
    write_out(json.dumps(summary, indent=1) + "\n" if form is Format.json else seeds_markdown(summary))
