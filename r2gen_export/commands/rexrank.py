"""`r2gen rexrank`: the command line that ReXrank calls, with its names of options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from r2gen_export.commands.console import guarded, progress_bar, say
from r2gen_export.commands.help_page import HelpCommand, command_app, examples
from r2gen_export.commands.options import BundleOption, DeviceOption
from r2gen_export.errors import R2GenError

app = command_app()


@app.command(
    cls=HelpCommand,
    epilog=examples("r2gen rexrank --input_json_file data.json --save_json_file out.json --img_root_dir images"),
)
@guarded
def rexrank(
    source: Annotated[
        Path, typer.Option("--input_json_file", metavar="FILE", help="Studies as ReXrank gives them, with image_path.")
    ],
    target: Annotated[
        Path,
        typer.Option("--save_json_file", metavar="FILE", help="File to write: the studies with model_prediction."),
    ],
    images: Annotated[
        Path, typer.Option("--img_root_dir", metavar="DIR", help="Folder that the paths of images start from.")
    ],
    *,
    bundle: BundleOption = None,
    preset: Annotated[
        str | None,
        typer.Option("--preset", metavar="paper|fast", help="Decoding settings. Default: the bundle's default preset."),
    ] = None,
    device: DeviceOption = "auto",
    batch_size: Annotated[
        int, typer.Option("--batch-size", metavar="N", min=1, help="Number of studies decoded together.")
    ] = 8,
) -> None:
    """Write reports in ReXrank's form, from its input file.

    A run that was stopped goes on when it is called again. A study without a report gets an empty one, and the exit
    status is 4.
    """
    from r2gen_export.evaluation.rexrank import read_studies, write_predictions
    from r2gen_export.runtime.pipeline import Pipeline

    if target.exists():
        raise R2GenError("R2G-OUTPUT-EXISTS", f"{target} is there already", "name another --save_json_file")
    _, studies = read_studies(source)
    options = {"preset": preset} if preset is not None else {}
    pipeline = Pipeline.from_bundle(bundle, device=device, learn=False, batch=batch_size, decoding=options)
    with progress_bar() as bar:
        task = bar.add_task("studies", total=len(studies))
        failed = write_predictions(
            pipeline,
            source,
            target,
            images,
            batch_size=batch_size,
            options=options,
            advance=lambda done: bar.advance(task, done),
        )
    say(f"{len(studies) - failed} reports in {target}")
    if failed:
        message = f"{failed} of {len(studies)} studies have no report; their model_prediction is empty"
        raise R2GenError("R2G-STUDIES-FAILED", message, "look at their images with r2gen infer")
