"""`r2gen verify`: its options, a table or JSON, and the exit status."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from r2gen_export.commands.console import guarded, progress_bar, say, say_passed_over, write_out
from r2gen_export.commands.help_page import HelpCommand, command_app, examples
from r2gen_export.commands.option_groups import option_groups
from r2gen_export.commands.options import (
    BundleArgument,
    CheckpointOptions,
    Format,
    OptionalSourceOptions,
    ParityTokensOption,
    SemanticsName,
)
from r2gen_export.commands.own_studies_options import OwnStudiesOptions
from r2gen_export.errors import R2GenError
from r2gen_export.system.extras import needs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from r2gen_export.bundle import ParityCheck
    from r2gen_export.exporting.settings import OwnStudies


@dataclass(frozen=True, kw_only=True)
class ComparisonOptions:
    """Comparison."""

    images: Annotated[
        Path | None,
        typer.Option(
            "--images",
            metavar="PATH",
            help="Studies to compare on: a folder, a .txt list or an annotation.json. Default: synthetic ones.",
        ),
    ] = None
    parity_tokens: ParityTokensOption = None
    semantics: Annotated[
        SemanticsName | None,
        typer.Option(
            "--semantics",
            help="transformers release whose decoding is compared; hf-4.30 is that of the published code. Default: the "
            "bundle's.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Output."""

    form: Annotated[
        Format,
        typer.Option("--format", help="Form of the result: a table as text, or json with one list of all checks."),
    ] = Format.text


app = command_app()


@app.command(
    cls=HelpCommand,
    epilog=examples(
        "r2gen verify bundle",
        "r2gen verify bundle --checkpoint run/best --vision demo/vision --llm demo/llm",
    ),
)
@guarded
@option_groups
def verify(
    bundle: BundleArgument,
    *,
    sources: OptionalSourceOptions,
    comparison: ComparisonOptions,
    own: OwnStudiesOptions,
    output: OutputOptions,
    model: CheckpointOptions,
) -> None:
    """Check a bundle's files and compare it with PyTorch.

    Without sources, the hash of every file is checked. With --checkpoint, --vision and --llm, image embeddings, logits
    and tokens are compared with PyTorch's as well, and with --evaluate the reports on studies of your own. The exit
    status is 3 when a comparison fails.
    """
    with needs("export"):
        chosen = own.as_studies(comparison.parity_tokens)
        if chosen is not None and sources.checkpoint is None:
            message = "--evaluate compares with PyTorch, which needs the sources"
            raise R2GenError("R2G-CONFIG-VALUE", message, "add --checkpoint, --vision and --llm")
        from r2gen_export.exporting.verify import verify_bundle
        from r2gen_export.studies.collect import collect_studies

        studies = None
        if comparison.images is not None:
            listed = collect_studies([comparison.images])
            say_passed_over(listed)
            studies = listed.studies
        checks = verify_bundle(
            bundle,
            sources.checkpoint,
            sources.vision,
            sources.llm,
            studies=studies,
            overrides=model.overrides(),
            allow_unexpected=tuple(model.allow_unexpected or ()),
            semantics=comparison.semantics.value if comparison.semantics else None,
            max_new_tokens=comparison.parity_tokens,
            stage=lambda name: say(f"{name} ..."),
        )
        judged = None
        if chosen is not None and all(check.passed for check in checks):
            judged = _on_own_studies(bundle, sources, chosen, comparison, model)
        show_checks(checks, output.form, judged)


def _on_own_studies(
    bundle: Path,
    sources: OptionalSourceOptions,
    own: OwnStudies,
    comparison: ComparisonOptions,
    model: CheckpointOptions,
) -> dict[str, Any]:
    """The comparison with PyTorch on studies of the user's, with a bar on a terminal."""
    from r2gen_export.exporting.verify import verify_on_studies

    assert sources.checkpoint is not None and sources.vision is not None and sources.llm is not None
    with progress_bar() as bar:
        task = bar.add_task("studies, PyTorch and bundle", total=2 * own.studies)
        return verify_on_studies(
            bundle,
            (sources.checkpoint, sources.vision, sources.llm),
            own,
            overrides=model.overrides(),
            allow_unexpected=tuple(model.allow_unexpected or ()),
            semantics=comparison.semantics.value if comparison.semantics else None,
            stage=lambda name: say(f"{name} ..."),
            advance=lambda studies: bar.advance(task, studies),
        )


def show_checks(checks: Sequence[ParityCheck], form: Format, comparison: dict[str, Any] | None = None) -> None:
    """Print checks to stdout, and a comparison on the user's own studies: as text, or as one more check.

    Raises:
        R2GenError: `R2G-PARITY-FAILED` (exit status 3) when one of the checks failed; `R2G-EVAL-WORSE` (exit status 3)
            when the comparison did not show its margins to be held.
    """
    from r2gen_export.commands.checks import print_checks
    from r2gen_export.exporting.parity.metrics import first_divergence

    if comparison is not None:
        from r2gen_export.exporting.own_studies import own_check

        checks = [*checks, own_check(comparison)]
    if form is Format.json:
        write_out(json.dumps([_fields(check) for check in checks], indent=1) + "\n")
    else:
        print_checks(checks)
        if comparison is not None:
            from r2gen_export.evaluation.compare_tables import comparison_markdown

            write_out(f"\nA: PyTorch with unrounded weights; B: the bundle\n\n{comparison_markdown(comparison)}")
    if comparison is not None:
        from r2gen_export.evaluation.gates import refuse_worse

        refuse_worse(comparison)
    failed = [check.name for check in checks if not check.passed]
    if failed:
        message = f"{len(failed)} of {len(checks)} checks failed, first in {first_divergence(checks)}"
        raise R2GenError("R2G-PARITY-FAILED", message, "name the sources it was exported from, or export it again")


def _fields(check: ParityCheck) -> dict[str, Any]:
    """JSON has no infinity: the difference of what is not finite is null."""
    fields = dataclasses.asdict(check)
    return fields if math.isfinite(check.observed) else {**fields, "observed": None}
