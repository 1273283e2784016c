"""`r2gen mercure`: a processing module of the DICOM orchestrator mercure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from r2gen_export.commands.console import guarded, say
from r2gen_export.commands.help_page import HelpCommand, command_app, examples
from r2gen_export.commands.options import BundleOption, DeviceOption

app = command_app()


@app.command(
    cls=HelpCommand,
    epilog=examples("r2gen mercure                              # in the container that mercure starts",
                    "r2gen mercure --in in/ --out out/"),
)  # fmt: skip
@guarded
def mercure(
    source: Annotated[
        Path | None,
        typer.Option("--in", envvar="MERCURE_IN_DIR", metavar="DIR", help="Folder of a task's images and task.json."),
    ] = None,
    target: Annotated[
        Path | None,
        typer.Option("--out", envvar="MERCURE_OUT_DIR", metavar="DIR", help="Folder of the results, which is there."),
    ] = None,
    bundle: BundleOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Report a study as a processing module of mercure.

    Reads the DICOM files of MERCURE_IN_DIR and the settings of its task.json (process, settings: format, preset), and
    writes DICOM results and result.json with a notification to MERCURE_OUT_DIR. Use it with a study-level rule.
    Research use only: the reports are unverified drafts, never a diagnosis.
    """
    from r2gen_export.bundle import bundle_path, load_manifest
    from r2gen_export.bundle.manifest import DEMO_NOTICE
    from r2gen_export.errors import R2GenError
    from r2gen_export.system.extras import needs

    if source is None or target is None:
        message = "mercure names its folders in MERCURE_IN_DIR and MERCURE_OUT_DIR, and they are not set"
        raise R2GenError("R2G-CONFIG-VALUE", message, "give --in DIR and --out DIR")
    with needs("dicom"):
        import pydicom  # noqa: F401

        from r2gen_export.serving.mercure import Module, run_module
    count = run_module(Module(source, target, str(bundle) if bundle else None, device))
    if load_manifest(bundle_path(bundle)).synthetic:  # mercure keeps what a module prints
        say(f"WARNING {DEMO_NOTICE} --bundle or R2GEN_BUNDLE names another bundle")
    say(f"{count} results")
