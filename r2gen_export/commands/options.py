"""Choices and options that commands of `cli.py` take; it imports typer and what needs nothing further."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from r2gen_export.precision import PRECISIONS, TENSOR_PRECISIONS


class Format(StrEnum):
    """How a result is written."""

    text = "text"
    json = "json"


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
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="auto|cpu|openvino|cuda|tensorrt",
        help="What runs the graphs; auto takes the fastest usable. cuda:1 and tensorrt:1 are the second GPU.",
    ),
]
FormatOption = Annotated[Format, typer.Option("--format", help="json: one object per study and line.")]
PRESET = "Default: the preset's."


class Dialect(StrEnum):
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


class Alignment(StrEnum):
    """What is trained beside the projector: nothing, LoRA on the vision encoder, or all of it."""

    shallow = "shallow"
    delta = "delta"
    deep = "deep"


CheckpointHelp = "Checkpoint: folder of r2gen train, .pth of the published code, Lightning's .ckpt, or a folder of one."
VisionHelp = "Vision encoder (Swin): local folder or hub id."
LlmHelp = "LLM (LLaMA): local folder or hub id."
SAID = "Default: what the checkpoint says."

AlignmentOption = Annotated[
    Alignment | None,
    typer.Option(
        "--alignment",
        help="What was trained beside the projector: nothing (shallow), LoRA on the vision encoder (delta), or all of "
        "it (deep). " + SAID,
    ),
]
GlobalOption = Annotated[
    bool | None,
    typer.Option("--global-only/--no-global-only", help="Whether an image is one token, the pooled one. " + SAID),
]
VisAlphaOption = Annotated[
    int | None, typer.Option("--delta-alpha", min=1, help="LoRA alpha of the vision encoder. " + SAID)
]
LlmAlphaOption = Annotated[int | None, typer.Option("--llm-alpha", min=1, help="LoRA alpha of the LLM. " + SAID)]
PromptOption = Annotated[
    str | None, typer.Option("--prompt", help="Instruction in the prompt behind the image tokens. " + SAID)
]
UnexpectedOption = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-unexpected",
        metavar="NAME",
        help="Tensor of the checkpoint that may be left out, * allowed; may be repeated.",
    ),
]


ExportOut = Annotated[Path, typer.Option("--out", metavar="DIR", help="Bundle folder to write; it must not exist.")]
TargetOption = Annotated[
    TargetName | None,
    typer.Option(
        "--for",
        help="Processor the bundle will run on; chooses --dialect and the precisions where they are not given. "
        "Default: gpu where an NVIDIA GPU is there, else cpu.",
    ),
]
DialectOption = Annotated[
    Dialect | None,
    typer.Option(
        "--dialect",
        help="Operators of the decoder: ONNX Runtime's own (ort), those TensorRT reads too (trt), plain ones "
        "(standard). Default: ort, for a GPU with float32 activations trt, where the LLM's heads allow.",
    ),
]
PrecisionOption = Annotated[
    PrecisionName | None,
    typer.Option(
        "--precision",
        help="Precision of the decoder's weights; -128: blocks of 128, -f16: float16 activations. Dialect standard "
        "has fp32 only. Default: fp16 for a GPU, fp32 for a CPU.",
    ),
]
HeadPrecisionOption = Annotated[
    PrecisionName | None,
    typer.Option("--head-precision", help="Precision of the decoder's output layer. Default: that of --precision."),
]
VisionPrecisionOption = Annotated[
    TensorPrecision | None,
    typer.Option(
        "--vision-precision", help="Precision of the vision encoder. Default: fp16 for a GPU, fp32 for a CPU."
    ),
]
EmbeddingsOption = Annotated[
    TensorPrecision | None,
    typer.Option(
        "--embeddings",
        help="Precision of the embedding table. Default: fp32 beside an fp32 decoder, else fp16.",
    ),
]
GateOption = Annotated[
    GateName | None,
    typer.Option(
        "--gate", help="Compare whole models with PyTorch, or layer by layer. Default: by the memory that is free."
    ),
]
ParityTokensOption = Annotated[
    int | None,
    typer.Option(
        "--parity-tokens",
        min=1,
        help="Tokens after which the reports compared with PyTorch end. Default: whole reports.",
    ),
]
PhantomStudiesOption = Annotated[
    int,
    typer.Option(
        "--phantom-studies",
        min=0,
        help="Number of synthetic studies to report on; the manifest keeps how many findings come back.",
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
