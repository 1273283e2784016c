"""Choices and options that several commands share; it imports typer and what needs nothing further."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


class Format(StrEnum):
    """How a result is written."""

    text = "text"
    json = "json"


class ReportFormat(StrEnum):
    """How a report is written."""

    text = "text"
    json = "json"
    sr = "sr"
    pdf = "pdf"
    dicom_pdf = "dicom-pdf"
    kos = "kos"
    fhir = "fhir"
    hl7 = "hl7"


class FhirVersion(StrEnum):
    """Release of FHIR."""

    r4 = "R4"
    r5 = "R5"


class SemanticsName(StrEnum):
    """Which transformers release's decoding arithmetic is followed."""

    current = "hf-current"
    old = "hf-4.30"


class Split(StrEnum):
    """Splits of an annotation."""

    train = "train"
    val = "val"
    test = "test"


class Alignment(StrEnum):
    """What is trained beside the projector: nothing, LoRA on the vision encoder, or all of it."""

    shallow = "shallow"
    delta = "delta"
    deep = "deep"


class DatasetName(StrEnum):
    """Whose reports are cleaned up how."""

    mimic = "mimic_cxr"
    iu = "iu_xray"
    none = "none"


CHECKPOINT = (
    "Trained checkpoint: a folder written by r2gen train, a .pth of the published code, a Lightning .ckpt, or a folder "
    "that holds one of them."
)
VISION = "Vision encoder (Swin) the checkpoint was trained with: a local folder or a hub id."
LLM = "LLM (LLaMA) the checkpoint was trained with: a local folder or a hub id."
SAID = "Default: the value in the checkpoint."

BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle folder, as r2gen export writes it.")]
BundleOption = Annotated[
    Path | None,
    typer.Option("--bundle", metavar="DIR", help="Bundle folder. Default: $R2GEN_BUNDLE, else the embedded demo."),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="auto|cpu|openvino|cuda|tensorrt",
        help="Backend that runs the model; auto takes the fastest usable one. cuda:1 and tensorrt:1 are the second "
        "GPU.",
    ),
]
CheckpointOption = Annotated[Path, typer.Option("--checkpoint", metavar="PATH", help=CHECKPOINT)]
VisionOption = Annotated[str, typer.Option("--vision", metavar="MODEL", help=VISION)]
LlmOption = Annotated[str, typer.Option("--llm", metavar="MODEL", help=LLM)]
ParityTokensOption = Annotated[
    int | None,
    typer.Option(
        "--parity-tokens",
        metavar="N",
        min=1,
        help="Length in tokens of the reports compared with PyTorch. Default: whole reports.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Sources."""

    checkpoint: CheckpointOption
    vision: VisionOption
    llm: LlmOption


@dataclass(frozen=True, kw_only=True)
class OptionalSourceOptions:
    """PyTorch sources.

    What a bundle was exported from, where comparing it with PyTorch is optional.
    """

    checkpoint: Annotated[Path | None, typer.Option("--checkpoint", metavar="PATH", help=CHECKPOINT)] = None
    vision: Annotated[str | None, typer.Option("--vision", metavar="MODEL", help=VISION)] = None
    llm: Annotated[str | None, typer.Option("--llm", metavar="MODEL", help=LLM)] = None


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """Reading the checkpoint.

    What the command line says of a checkpoint's model; None is not said.
    """

    alignment: Annotated[
        Alignment | None,
        typer.Option(
            "--alignment",
            help="Parts trained besides the projector: none (shallow), LoRA on the vision encoder (delta), or the "
            "whole vision encoder (deep). " + SAID,
        ),
    ] = None
    global_only: Annotated[
        bool | None,
        typer.Option(
            "--global-only/--no-global-only", help="Represent an image by one token, its pooled feature. " + SAID
        ),
    ] = None
    vis_alpha: Annotated[
        int | None,
        typer.Option(
            "--delta-alpha", metavar="N", min=1, help="LoRA alpha of the vision encoder (alignment delta). " + SAID
        ),
    ] = None
    llm_alpha: Annotated[
        int | None, typer.Option("--llm-alpha", metavar="N", min=1, help="LoRA alpha of the LLM. " + SAID)
    ] = None
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", metavar="TEXT", help="Instruction that follows the image tokens in the prompt. " + SAID
        ),
    ] = None
    allow_unexpected: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-unexpected",
            metavar="NAME",
            help="Tensor of the checkpoint that may be ignored; * stands for any characters, and the option may be "
            "repeated.",
        ),
    ] = None

    def overrides(self) -> dict[str, Any]:
        """As `ExportSettings.overrides` takes them."""
        return {
            "alignment": self.alignment.value if self.alignment else None,
            "global_only": self.global_only,
            "vis_alpha": self.vis_alpha,
            "llm_alpha": self.llm_alpha,
            "prompt": self.prompt,
        }
