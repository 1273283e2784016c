"""`r2gen verify`: its options, a table or JSON, and the exit status."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from r2gen_export.commands.console import guarded, say, say_passed_over, write_out
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
from r2gen_export.errors import R2GenError
from r2gen_export.system.extras import needs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from r2gen_export.bundle import ParityCheck


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
    sources: OptionalSourceOptions,
    comparison: ComparisonOptions,
    output: OutputOptions,
    model: CheckpointOptions,
) -> None:
    """Check a bundle's files and compare it with PyTorch.

    Without sources, the hash of every file is checked. With --checkpoint, --vision and --llm, image embeddings, logits
    and tokens are compared with PyTorch's as well. The exit status is 3 when the comparison fails.
    """
    with needs("export"):
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
        show_checks(checks, output.form)


def show_checks(checks: Sequence[ParityCheck], form: Format) -> None:
    """Print checks to stdout.

    Raises:
        R2GenError: `R2G-PARITY-FAILED` (exit status 3) when one of them failed.
    """
    from r2gen_export.commands.checks import print_checks
    from r2gen_export.exporting.parity.metrics import first_divergence

    if form is Format.json:
        write_out(json.dumps([_fields(check) for check in checks], indent=1) + "\n")
    else:
        print_checks(checks)
    failed = [check.name for check in checks if not check.passed]
    if failed:
        message = f"{len(failed)} of {len(checks)} checks failed, first in {first_divergence(checks)}"
        raise R2GenError("R2G-PARITY-FAILED", message, "name the sources it was exported from, or export it again")


def _fields(check: ParityCheck) -> dict[str, Any]:
    """JSON has no infinity: the difference of what is not finite is null."""
    fields = dataclasses.asdict(check)
    return fields if math.isfinite(check.observed) else {**fields, "observed": None}
