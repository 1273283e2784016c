"""`r2gen build`: its options, progress, and what was built."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from r2gen_export.commands.console import guarded, progress_bar, say
from r2gen_export.commands.help_page import HelpCommand, command_app, examples
from r2gen_export.commands.option_groups import option_groups
from r2gen_export.commands.options import BundleArgument
from r2gen_export.errors import R2GenError
from r2gen_export.system.extras import needs

if TYPE_CHECKING:
    from r2gen_export.candidates import GraphPart
    from trt_engines.build import Built
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


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Engines."""

    backend: Annotated[
        BackendName,
        typer.Option(
            "--backend", help="Library that builds; auto is tensorrt on a machine with a GPU, else tensorrt-rtx."
        ),
    ] = BackendName.auto
    parts: Annotated[
        str, typer.Option("--parts", metavar="PART,...", help="Parts of the model to build: vision, decoder, or both.")
    ] = "vision,decoder"
    precision: Annotated[
        EnginePrecision | None,
        typer.Option(
            "--precision",
            help="Precision of the engines; int4 is that of the decoder's weights, with an fp16 vision encoder. "
            "Default: int4 when the bundle's decoder is int4, else fp16.",
        ),
    ] = None
    capabilities: Annotated[
        list[str] | None,
        typer.Option(
            "--compute-capability",
            metavar="8.9",
            help="Compute capability of the GPU that will run the engines; may be repeated with tensorrt-rtx. Default: "
            "that of this machine's GPU.",
        ),
    ] = None
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build engines again that exist already.")] = False


@dataclass(frozen=True, kw_only=True)
class LimitOptions:
    """Limits."""

    max_length: Annotated[
        int | None,
        typer.Option(
            "--max-length",
            metavar="N",
            min=1,
            help="Positions of the decoder's cache. Default: prompt and longest report of the bundle's preset.",
        ),
    ] = None
    max_batch: Annotated[
        int,
        typer.Option("--max-batch", metavar="N", min=1, help="Most sequences decoded together: studies times beams."),
    ] = 8
    max_views: Annotated[
        int, typer.Option("--max-views", metavar="N", min=1, help="Most images (views) of one study.")
    ] = 8
    weight_streaming: Annotated[
        bool,
        typer.Option(
            "--weight-streaming", help="Allow weights to stay in host memory when the GPU's memory is too small."
        ),
    ] = False


app = command_app()


@app.command(
    cls=HelpCommand,
    epilog=examples(
        "r2gen build demo/bundle --backend tensorrt-rtx --compute-capability 8.9",
        "r2gen build bundle --precision fp16 --max-batch 12",
    ),
)
@guarded
@option_groups
def build(bundle: BundleArgument, engines: EngineOptions, limits: LimitOptions) -> None:
    """Build TensorRT engines for a bundle.

    The engines are written into the bundle's folder engines, and infer uses them where they fit the machine.
    TensorRT-RTX builds on a machine without a GPU too.
    """
    with needs("tensorrt-rtx"):
        from trt_engines.build import BuildSettings, build_engines
        from trt_engines.prepare import Limits

    settings = BuildSettings(
        backend=engines.backend.value,
        parts=_parts(engines.parts),
        precision=engines.precision.value if engines.precision else None,
        capabilities=tuple(engines.capabilities or ()),
        limits=Limits(limits.max_views, limits.max_batch, limits.max_length),
        weight_streaming=limits.weight_streaming,
        rebuild=engines.rebuild,
    )
    with progress_bar() as bar:

        def show(part: GraphPart) -> Show:
            task = bar.add_task(part, total=100)

            def shown(fraction: float, what: str) -> None:
                bar.update(task, completed=round(100 * fraction), description=f"{part}: {what}")

            return shown

        for built in build_engines(bundle, settings, show=show, say=say):
            for line in _describe(built):
                say(line)


def _parts(text: str) -> tuple[GraphPart, ...]:
    """`vision,decoder` as parts.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE`.
    """
    from r2gen_export.candidates import PARTS

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
