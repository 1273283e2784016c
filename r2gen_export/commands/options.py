"""Choices and options that commands of `cli.py` take; typer is all this module imports."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


class Format(StrEnum):
    """How a result is written."""

    text = "text"
    json = "json"


class Device(StrEnum):
    """What runs the graphs."""

    auto = "auto"
    cpu = "cpu"
    openvino = "openvino"
    cuda = "cuda"
    tensorrt = "tensorrt"


class SemanticsName(StrEnum):
    """Which transformers release's decoding arithmetic is followed."""

    current = "hf-current"
    old = "hf-4.30"


class EarlyStopping(StrEnum):
    """When beam search stops: at num_beams finished reports, by its heuristic, or when no better one is possible."""

    true = "true"
    false = "false"
    never = "never"


BundleOption = Annotated[
    Path | None,
    typer.Option("--bundle", metavar="DIR", help="Bundle folder. Default: $R2GEN_BUNDLE, else the embedded demo."),
]
DeviceOption = Annotated[Device, typer.Option("--device", help="What runs the graphs; auto takes the fastest usable.")]
FormatOption = Annotated[Format, typer.Option("--format", help="json: one object per study and line.")]
PRESET = "Default: the preset's."


class Dialect(StrEnum):
    """Which operators the decoder graph is made of."""

    standard = "standard"
    ort = "ort"
    trt = "trt"


class PrecisionName(StrEnum):
    """How the weights are stored."""

    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"
    int4 = "int4"
    int4_128 = "int4-128"


class TensorPrecision(StrEnum):
    """How the vision encoder's weights or the embedding table are stored."""

    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"


class GateName(StrEnum):
    """How the exported decoder is compared with PyTorch."""

    whole = "whole"
    layers = "layers"


class Alignment(StrEnum):
    """What is trained beside the projector: nothing, LoRA on the vision encoder, or all of it."""

    shallow = "shallow"
    delta = "delta"
    deep = "deep"


CheckpointHelp = "Checkpoint: folder of r2gen train, .pth of the published code, Lightning's .ckpt, or a folder of one."
VisionHelp = "Vision encoder (Swin): local folder or hub id."
LlmHelp = "LLM (LLaMA): local folder or hub id."
SAID = "Default: what the checkpoint says."

AlignmentOption = Annotated[Alignment | None, typer.Option("--alignment", help="What was trained. " + SAID)]
GlobalOption = Annotated[
    bool | None, typer.Option("--global-only/--no-global-only", help="One image token, the pooled one. " + SAID)
]
VisAlphaOption = Annotated[int | None, typer.Option("--delta-alpha", min=1, help="Of the encoder's LoRA. " + SAID)]
LlmAlphaOption = Annotated[int | None, typer.Option("--llm-alpha", min=1, help="Of the LLM's LoRA. " + SAID)]
PromptOption = Annotated[str | None, typer.Option("--prompt", help="Instruction behind the image. " + SAID)]
UnexpectedOption = Annotated[
    list[str] | None,
    typer.Option("--allow-unexpected", metavar="NAME", help="Tensor to leave aside, * allowed; may be repeated."),
]


ExportOut = Annotated[Path, typer.Option("--out", metavar="DIR", help="Bundle folder to write; it must not exist.")]
DialectOption = Annotated[
    Dialect | None, typer.Option("--dialect", help="Operators of the decoder. Default: ort where its heads allow.")
]
PrecisionOption = Annotated[
    PrecisionName, typer.Option("--precision", help="Of the decoder's weights; standard has fp32 only.")
]
HeadPrecisionOption = Annotated[
    PrecisionName | None, typer.Option("--head-precision", help="Of its output layer. Default: the same.")
]
VisionPrecisionOption = Annotated[TensorPrecision, typer.Option("--vision-precision", help="Of the vision encoder.")]
EmbeddingsOption = Annotated[
    TensorPrecision | None,
    typer.Option("--embeddings", help="Of the embedding table. Default: fp32 beside an fp32 decoder, else fp16."),
]
GateOption = Annotated[
    GateName | None, typer.Option("--gate", help="Check whole models, or layer by layer. Default: by free memory.")
]
ParityTokensOption = Annotated[
    int | None, typer.Option("--parity-tokens", min=1, help="Stop the compared reports here. Default: whole reports.")
]
PhantomStudiesOption = Annotated[
    int,
    typer.Option(
        "--phantom-studies",
        min=0,
        help="Report on so many phantoms; the manifest keeps how many findings come back.",
    ),
]


class DatasetName(StrEnum):
    """Whose reports are cleaned up how."""

    mimic = "mimic_cxr"
    iu = "iu_xray"
    none = "none"


class TrainPrecision(StrEnum):
    """Of the LLM and of the arithmetic."""

    fp32 = "fp32"
    bf16 = "bf16"


class Select(StrEnum):
    """What chooses the best checkpoint."""

    loss = "loss"
    rouge_l = "rouge_l"


def overrides(
    alignment: Alignment | None,
    global_only: bool | None,
    vis_alpha: int | None,
    llm_alpha: int | None,
    prompt: str | None,
) -> dict[str, Any]:
    """What the command line says of a checkpoint's model, as `ExportSettings.overrides`."""
    return {
        "alignment": alignment.value if alignment else None,
        "global_only": global_only,
        "vis_alpha": vis_alpha,
        "llm_alpha": llm_alpha,
        "prompt": prompt,
    }
