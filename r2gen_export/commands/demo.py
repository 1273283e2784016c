"""`r2gen demo`: its options, and where the bundle is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from r2gen_export.commands.console import guarded, say
from r2gen_export.commands.help_page import HelpCommand, command_app, examples
from r2gen_export.system.extras import needs

app = command_app()


@app.command(cls=HelpCommand, epilog=examples("r2gen demo --quick --out demo", "r2gen demo --out demo-full"))
@guarded
def demo(
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="DIR", help="Folder of all stages; stages that it already holds are not repeated."
        ),
    ],
    quick: Annotated[
        bool, typer.Option("--quick", help="Run every stage in minutes; the model's reports are then not usable.")
    ] = False,
    seed: Annotated[
        int,
        typer.Option("--seed", metavar="N", min=0, help="Random seed of the studies, the weights and the training."),
    ] = 7,
) -> None:
    """Rebuild the embedded demo bundle from synthetic data.

    Draws phantoms, trains a tiny LLaMA and a tiny Swin, aligns them, exports the bundle and scores its reports.
    """
    with needs("train"):
        from r2gen_export.demo.build import DemoSettings, build_demo

        build_demo(out, DemoSettings.quick(seed) if quick else DemoSettings(seed=seed))
    say("bundle: bundle, in the folder of --out")
    if quick:
        say("a quick build: its models were trained for minutes, and what they write is not meant to make sense")
