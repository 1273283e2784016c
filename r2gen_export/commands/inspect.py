"""`r2gen inspect`: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from r2gen_export.commands.console import guarded
from r2gen_export.commands.help_page import HelpCommand, command_app, examples
from r2gen_export.commands.options import CHECKPOINT, Format
from r2gen_export.system.extras import needs

app = command_app()


@app.command(cls=HelpCommand, epilog=examples("r2gen inspect run/best", "r2gen inspect published.pth --format json"))
@guarded
def inspect(
    path: Annotated[Path, typer.Argument(metavar="PATH", help=CHECKPOINT)],
    form: Annotated[
        Format,
        typer.Option(
            "--format", help="Form of the result: text, or json with one object of kind, settings, model and tensors."
        ),
    ] = Format.text,
) -> None:
    """Show what is in a checkpoint, without loading a model.

    Shows its kind, the settings it records, and name, shape and dtype of its tensors. No code in the file is executed.
    """
    with needs("export"):
        from r2gen_export.commands.checkpoint_contents import run_inspect

        run_inspect(path, form.value)
