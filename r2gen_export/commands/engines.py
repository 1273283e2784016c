"""`r2gen engines`: what a bundle's folder of engines holds."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from r2gen_export.commands.console import guarded, say, write_out
from r2gen_export.commands.options import Format, FormatOption

if TYPE_CHECKING:
    from trt_engines.store import Engine

engines = typer.Typer(
    help="The TensorRT engines of a bundle.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Bundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle folder.")]
Target = Annotated[str, typer.Argument(metavar="TARGET", help="Name of the target's folder, as `list` shows it.")]

MEBI = 2**20


class PartName(StrEnum):
    """Parts of a bundle engines are built of."""

    vision = "vision"
    decoder = "decoder"


@engines.command("list")
@guarded
def list_(bundle: Bundle) -> None:
    """One line for each engine: target, part, precision, size of the plan; or what is wrong with it."""
    from r2gen_export.bundle import load_manifest
    from trt_engines.store import list_engines

    load_manifest(bundle)
    found = list_engines(bundle)
    for engine in found:
        write_out(f"{engine.target}/{engine.part}: {_state(engine)}\n")
    if not found:
        say(f"no engines in {bundle}; r2gen build {bundle} builds them")


@engines.command()
@guarded
def inspect(bundle: Bundle, target: Target, form: FormatOption = Format.text) -> None:
    """Where a target's engines come from, whether their plans are whole, and whether they fit this machine."""
    import dataclasses
    import json

    from r2gen_export.bundle import load_manifest
    from r2gen_export.errors import R2GenError
    from trt_engines.identity import read_identity, verify_plan
    from trt_engines.store import list_engines, mismatches

    manifest = load_manifest(bundle)
    found = [engine for engine in list_engines(bundle) if engine.target == target]
    if not found:
        raise R2GenError("R2G-ENGINE-MISSING", f"no target {target!r} in {bundle}", f"r2gen engines list {bundle}")
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


@engines.command()
@guarded
def remove(
    bundle: Bundle,
    target: Target,
    part: Annotated[PartName | None, typer.Option("--part", help="Only this one. Default: the whole target.")] = None,
) -> None:
    """Remove a target's engines; the bundle itself stays as it is."""
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
