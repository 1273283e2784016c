"""`r2gen engines`: what a bundle's folder of engines holds."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from r2gen_export.commands.console import guarded, say, write_out
from r2gen_export.commands.help_page import HelpCommand, HelpGroup, command_app, examples
from r2gen_export.commands.options import BundleArgument, Format

if TYPE_CHECKING:
    from trt_engines.store import Engine

Target = Annotated[
    str, typer.Argument(metavar="TARGET", help="Name of the target's folder, as r2gen engines list shows it.")
]

MEBI = 2**20


class PartName(StrEnum):
    """Parts of a bundle engines are built of."""

    vision = "vision"
    decoder = "decoder"


app = command_app(
    """List, inspect or remove the TensorRT engines of a bundle.

    r2gen build makes them. The bundle itself stays as it is.
    """,
    cls=HelpGroup,
    no_args_is_help=True,
    epilog=examples("r2gen engines list bundle"),
)


@app.command("list", cls=HelpCommand, epilog=examples("r2gen engines list bundle"))
@guarded
def list_(bundle: BundleArgument) -> None:
    """List the engines of a bundle.

    One line per engine: target, part, precision and size of its plan, or why it cannot be used.
    """
    from r2gen_export.bundle import load_manifest
    from trt_engines.store import list_engines

    load_manifest(bundle)
    found = list_engines(bundle)
    for engine in found:
        write_out(f"{engine.target}/{engine.part}: {_state(engine)}\n")
    if not found:
        say("the bundle has no engines; r2gen build BUNDLE builds them")


@app.command(cls=HelpCommand, epilog=examples("r2gen engines inspect bundle TARGET --format json"))
@guarded
def inspect(
    bundle: BundleArgument,
    target: Target,
    form: Annotated[
        Format,
        typer.Option("--format", help="Form of the result: text, or json with one object per engine, one a line."),
    ] = Format.text,
) -> None:
    """Show where a target's engines come from.

    Checks that their plans are complete, and shows what keeps them from running on this machine.
    """
    import dataclasses
    import json

    from r2gen_export.bundle import load_manifest
    from r2gen_export.errors import R2GenError
    from trt_engines.identity import read_identity, verify_plan
    from trt_engines.store import list_engines, mismatches

    manifest = load_manifest(bundle)
    found = [engine for engine in list_engines(bundle) if engine.target == target]
    if not found:
        raise R2GenError("R2G-ENGINE-MISSING", f"the bundle has no target {target!r}", "r2gen engines list BUNDLE")
    for engine in found:
        identity = read_identity(engine.folder)
        verify_plan(engine.folder, identity)
        differences = mismatches(identity, manifest)
        fields = {**dataclasses.asdict(identity), "command": identity.build_command(bundle), "mismatches": differences}
        if form is Format.json:
            write_out(json.dumps(fields, ensure_ascii=False) + "\n")
            continue
        for name, value in fields.items():
            shown = json.dumps(value, ensure_ascii=False) if isinstance(value, list | tuple | dict) else value
            write_out(f"{engine.part}.{name}: {shown}\n")


@app.command(cls=HelpCommand, epilog=examples("r2gen engines remove bundle TARGET --part vision"))
@guarded
def remove(
    bundle: BundleArgument,
    target: Target,
    part: Annotated[
        PartName | None,
        typer.Option("--part", help="Part whose engine is removed. Default: all parts of the target."),
    ] = None,
) -> None:
    """Remove a target's engines."""
    from r2gen_export.bundle import load_manifest
    from trt_engines.store import remove_engines

    load_manifest(bundle)
    size = remove_engines(bundle, target, part.value if part else None)
    say(f"{target}: removed, {size / MEBI:.1f} MiB")


def _state(engine: Engine) -> str:
    from r2gen_export.errors import R2GenError
    from trt_engines.identity import read_identity

    try:
        identity = read_identity(engine.folder)
    except R2GenError as error:
        return f"{error.code}: {error.message}"
    capable = ", ".join(identity.compute_capabilities)
    return (
        f"{identity.precision}, compute capability {capable}, {identity.plan_bytes / MEBI:.1f} MiB, {identity.created}"
    )
