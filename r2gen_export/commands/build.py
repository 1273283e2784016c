"""`r2gen build`: TensorRT engines of a bundle."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from r2gen_export.commands.console import guarded, progress_bar, say
from r2gen_export.errors import R2GenError
from r2gen_export.system.extras import needs

if TYPE_CHECKING:
    from trt_engines.build import Built
    from trt_engines.identity import Part
    from trt_engines.progress import Show

MEBI = 2**20


class BackendName(StrEnum):
    """What builds the engines."""

    auto = "auto"
    tensorrt = "tensorrt"
    rtx = "tensorrt-rtx"


class EnginePrecision(StrEnum):
    """What the engine's graph computes in, or stores weights in."""

    fp32 = "fp32"
    fp16 = "fp16"
    int4 = "int4"


@guarded
def build(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle folder.")],
    *,
    backend: Annotated[
        BackendName, typer.Option("--backend", help="auto: TensorRT where there is a GPU, else TensorRT-RTX.")
    ] = BackendName.auto,
    parts: Annotated[str, typer.Option("--parts", metavar="PART,...", help="vision, decoder.")] = "vision,decoder",
    precision: Annotated[
        EnginePrecision | None,
        typer.Option("--precision", help="Default: int4 when the bundle's decoder is, else fp16. Vision has no int4."),
    ] = None,
    capabilities: Annotated[
        list[str] | None,
        typer.Option(
            "--compute-capability",
            metavar="8.9",
            help="Of the GPU that will run it; may be given again (TensorRT-RTX). Default: this machine's GPU.",
        ),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option("--max-length", min=1, help="Positions of the cache. Default: prompt and preset.")
    ] = None,
    max_batch: Annotated[int, typer.Option("--max-batch", min=1, help="Rows decoded together: studies x beams.")] = 8,
    max_views: Annotated[int, typer.Option("--max-views", min=1, help="Views of one study.")] = 8,
    weight_streaming: Annotated[
        bool, typer.Option("--weight-streaming", help="Weights may stay in host memory when the GPU's is short.")
    ] = False,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Also what is there already.")] = False,
) -> None:
    """Build a bundle's TensorRT engines, into its folder `engines`. TensorRT-RTX needs no GPU for it."""
    with needs("tensorrt-rtx"):
        from trt_engines.build import Settings, build_engines
        from trt_engines.prepare import Limits

    settings = Settings(
        backend=backend.value,
        parts=_parts(parts),
        precision=precision.value if precision else None,
        capabilities=tuple(capabilities or ()),
        limits=Limits(max_views, max_batch, max_length),
        weight_streaming=weight_streaming,
        rebuild=rebuild,
    )
    with progress_bar() as bar:

        def show(part: Part) -> Show:
            task = bar.add_task(part, total=100)

            def shown(fraction: float, what: str) -> None:
                bar.update(task, completed=round(100 * fraction), description=f"{part}: {what}")

            return shown

        for built in build_engines(bundle, settings, show=show, say=say):
            for line in _describe(built):
                say(line)


def _parts(text: str) -> tuple[Part, ...]:
    """`vision,decoder` as parts.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE`.
    """
    from trt_engines.store import PARTS

    named = [one.strip() for one in text.split(",") if one.strip()]
    found = tuple(part for part in PARTS if part in named)
    if len(found) != len(set(named)) or not found:
        message = f"--parts {text!r} names something that is no part"
        raise R2GenError("R2G-CONFIG-VALUE", message, f"choose from {','.join(PARTS)}")
    return found


def _describe(built: Built) -> list[str]:
    identity = built.identity
    if built.reused:
        return [f"{built.folder}: there already, whole and of this bundle (--rebuild builds it again)"]
    cost = (
        f"{identity.precision}, plan {identity.plan_bytes / MEBI:.1f} MiB of {identity.parameter_bytes / MEBI:.1f} MiB "
        f"of parameters, built in {identity.build_s:.1f} s, peak memory {identity.peak_rss_bytes / MEBI:.0f} MiB"
    )
    return [f"{built.folder}: {cost}", *built.notes]
