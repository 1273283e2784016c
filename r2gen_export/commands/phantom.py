"""`r2gen phantom`: its options, and where the studies are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from r2gen_export.commands.console import guarded, say
from r2gen_export.commands.help_page import HelpCommand, command_app, examples

app = command_app()


@app.command(
    cls=HelpCommand,
    epilog=examples(
        "r2gen phantom --out phantoms --studies 60",
        "r2gen phantom --out phantoms-2 --studies 200 --seed 1 --test-fraction 0.5",
    ),
)
@guarded
def phantom(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write; it must not exist.")],
    studies: Annotated[
        int, typer.Option("--studies", metavar="N", min=1, help="Number of synthetic studies to write.")
    ] = 500,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Random seed of the synthetic studies.")] = 0,
    val_fraction: Annotated[
        float,
        typer.Option("--val-fraction", metavar="X", min=0.0, max=1.0, help="Share of the studies for validation."),
    ] = 0.1,
    test_fraction: Annotated[
        float, typer.Option("--test-fraction", metavar="X", min=0.0, max=1.0, help="Share of the studies for testing.")
    ] = 0.1,
) -> None:
    """Write synthetic radiographs with reports and labels.

    Writes images, an annotation.json as R2Gen uses it, and the findings drawn into each image, for training and testing
    without patient data.
    """
    from r2gen_export.phantoms import write_phantoms

    write_phantoms(out, studies, seed, val_fraction=val_fraction, test_fraction=test_fraction)
    say(f"{studies} studies in the folder of --out")
