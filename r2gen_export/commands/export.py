"""`r2gen export`: its options, the settings they make, and what the parity gate measured."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from r2gen_export.commands.console import guarded, say
from r2gen_export.commands.help_page import HelpCommand, command_app, examples
from r2gen_export.commands.option_groups import option_groups, plain
from r2gen_export.commands.options import SAID, CheckpointOptions, ParityTokensOption, SemanticsName, SourceOptions
from r2gen_export.commands.own_studies_options import OwnStudiesOptions
from r2gen_export.precision import PRECISIONS, TENSOR_PRECISIONS
from r2gen_export.system.extras import needs

if TYPE_CHECKING:
    from r2gen_export.exporting.settings import ExportSettings


class DialectName(StrEnum):
    """Which operators the decoder graph is made of."""

    standard = "standard"
    ort = "ort"
    trt = "trt"


class TargetName(StrEnum):
    """What a bundle is exported for."""

    gpu = "gpu"
    cpu = "cpu"


# mypy reads members from a literal only; the table of precisions has them in one place.
PrecisionName = StrEnum("PrecisionName", {name.replace("-", "_"): name for name in PRECISIONS})  # type: ignore[misc]
TensorPrecision = StrEnum("TensorPrecision", {name: name for name in TENSOR_PRECISIONS})  # type: ignore[misc]


class GateName(StrEnum):
    """How the exported decoder is compared with PyTorch."""

    whole = "whole"
    layers = "layers"


@dataclass(frozen=True, kw_only=True)
class BundleOptions:
    """Output."""

    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Bundle folder to write; it must not exist.")]
    model_id: Annotated[
        str | None,
        typer.Option("--model-id", metavar="NAME", help="Model name that every report carries. Default: the folder's."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class FormOptions:
    """Target and precision."""

    target: Annotated[
        TargetName | None,
        typer.Option(
            "--for",
            help="Processor the bundle will run on; it decides --dialect and the precisions that are not given. "
            "Default: gpu on a machine with an NVIDIA GPU, else cpu.",
        ),
    ] = None
    dialect: Annotated[
        DialectName | None,
        typer.Option(
            "--dialect",
            help="Operators of the decoder: ONNX Runtime's own (ort), operators that TensorRT reads too (trt), plain "
            "ONNX (standard). Default: ort, or trt for a GPU with float32 activations, where the LLM's heads allow it.",
        ),
    ] = None
    precision: Annotated[
        PrecisionName | None,
        typer.Option(
            "--precision",
            help="Precision of the decoder's weights; -128 means blocks of 128 weights, -f16 float16 activations. "
            "Dialect standard has fp32 only. Default: fp16 for a GPU, fp32 for a CPU.",
        ),
    ] = None
    head_precision: Annotated[
        PrecisionName | None,
        typer.Option("--head-precision", help="Precision of the decoder's output layer. Default: that of --precision."),
    ] = None
    vision_precision: Annotated[
        TensorPrecision | None,
        typer.Option(
            "--vision-precision", help="Precision of the vision encoder. Default: fp16 for a GPU, fp32 for a CPU."
        ),
    ] = None
    embeddings: Annotated[
        TensorPrecision | None,
        typer.Option(
            "--embeddings", help="Precision of the token embeddings. Default: fp32 with an fp32 decoder, else fp16."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class PresetOptions:
    """Decoding.

    What the bundle records: the settings of preset `paper`, and which preset is taken by default.
    """

    semantics: Annotated[
        SemanticsName,
        typer.Option(
            "--semantics",
            help="transformers release whose decoding the bundle reproduces; hf-4.30 is that of the published code.",
        ),
    ] = SemanticsName.current
    default_preset: Annotated[
        str,
        typer.Option(
            "--default-preset", metavar="paper|fast", help="Decoding preset that infer uses without --preset."
        ),
    ] = "paper"
    num_beams: Annotated[
        int | None,
        typer.Option("--num-beams", metavar="N", min=1, help="Beams of preset paper; 1 turns beam search off. " + SAID),
    ] = None
    min_new_tokens: Annotated[
        int | None,
        typer.Option("--min-new-tokens", metavar="N", min=0, help="Fewest tokens of a report in preset paper. " + SAID),
    ] = None
    max_new_tokens: Annotated[
        int | None,
        typer.Option("--max-new-tokens", metavar="N", min=1, help="Most tokens of a report in preset paper. " + SAID),
    ] = None
    repetition_penalty: Annotated[
        float | None,
        typer.Option("--repetition-penalty", metavar="X", help="Repetition penalty of preset paper. " + SAID),
    ] = None
    length_penalty: Annotated[
        float | None,
        typer.Option("--length-penalty", metavar="X", help="Length penalty of preset paper's beam search. " + SAID),
    ] = None


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """Checks."""

    gate: Annotated[
        GateName | None,
        typer.Option(
            "--gate",
            help="Compare the whole model with PyTorch, or layer by layer, which needs less memory. Default: by the "
            "free memory.",
        ),
    ] = None
    parity_tokens: ParityTokensOption = None
    phantom_studies: Annotated[
        int,
        typer.Option(
            "--phantom-studies",
            metavar="N",
            min=0,
            help="Number of synthetic studies to report on after the export; the manifest records how many of their "
            "findings the reports name.",
        ),
    ] = 0


app = command_app()


@app.command(
    cls=HelpCommand,
    epilog=examples(
        "r2gen export --checkpoint run/best --vision demo/vision --llm demo/llm --out bundle",
        "r2gen export --checkpoint my.pth --vision microsoft/swin-base-patch4-window7-224 \\",
        "    --llm meta-llama/Llama-2-7b-chat-hf --for gpu --precision int4-f16 --out bundle-int4",
    ),
)
@guarded
@option_groups
def export(
    *,
    sources: SourceOptions,
    bundle: BundleOptions,
    form: FormOptions,
    preset: PresetOptions,
    checks: CheckOptions,
    own: OwnStudiesOptions,
    model: CheckpointOptions,
) -> None:
    """Write a bundle from a checkpoint, checked against PyTorch.

    The bundle is written only when its tensors are within tolerance of PyTorch's and, at full precision, its tokens are
    the same. What a reduced precision costs is measured and recorded in the bundle.
    """
    with needs("export"):
        from r2gen_export.exporting.settings import ExportSettings

        values = plain(bundle, form)
        run_export(
            ExportSettings(
                checkpoint=sources.checkpoint,
                vision=sources.vision,
                llm=sources.llm,
                **values,
                gate=checks.gate.value if checks.gate else None,
                semantics=preset.semantics.value,
                overrides=model.overrides(),
                decoding={
                    "num_beams": preset.num_beams,
                    "min_new_tokens": preset.min_new_tokens,
                    "max_new_tokens": preset.max_new_tokens,
                    "repetition_penalty": preset.repetition_penalty,
                    "length_penalty": preset.length_penalty,
                },
                allow_unexpected=tuple(model.allow_unexpected or ()),
                default_preset=preset.default_preset,
                parity_max_new_tokens=checks.parity_tokens,
                phantom_studies=checks.phantom_studies,
                evaluate=own.as_studies(checks.parity_tokens),
            )
        )


def run_export(settings: ExportSettings) -> None:
    """Export, then print the parity checks and the bundle's size to stderr.

    Raises:
        R2GenError: what `export_bundle` raises; `R2G-CONFIG-VALUE` when the path of `out` is not UTF-8.
    """
    from r2gen_export.commands.checks import print_checks
    from r2gen_export.exporting.export import export_bundle
    from r2gen_export.system.paths import require_utf8

    require_utf8(settings.out, "--out")
    manifest = export_bundle(settings, say=say)
    print_checks(manifest.parity, to_stderr=True)
    megabytes = sum(entry.size for entry in manifest.files.values()) / 1e6
    say(f"bundle written: {len(manifest.files)} files, {megabytes:.1f} MB, alignment {manifest.source.alignment}")
