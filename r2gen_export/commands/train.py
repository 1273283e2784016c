"""`r2gen train`: its options, and where the checkpoint is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from r2gen_export.commands.console import guarded, say
from r2gen_export.commands.help_page import HelpCommand, command_app, examples
from r2gen_export.commands.option_groups import option_groups, plain
from r2gen_export.commands.options import Alignment, DatasetName
from r2gen_export.system.extras import needs
from r2gen_export.system.interrupts import Terminated

if TYPE_CHECKING:
    from r2gen_export.training.fit import TrainSettings


class TrainPrecision(StrEnum):
    """Of the LLM and of the arithmetic."""

    fp32 = "fp32"
    bf16 = "bf16"


class Select(StrEnum):
    """What chooses the best checkpoint."""

    loss = "loss"
    rouge_l = "rouge_l"
    bleu4_cider = "bleu4+cider"


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Data."""

    annotation: Annotated[
        Path,
        typer.Option(
            "--annotation",
            metavar="FILE",
            help="Studies and reports: an annotation.json in R2Gen's form, with the splits train and val.",
        ),
    ]
    base_dir: Annotated[
        Path,
        typer.Option("--base-dir", metavar="DIR", help="Folder that the annotation's image paths are relative to."),
    ]
    dataset: Annotated[
        DatasetName,
        typer.Option("--dataset", help="Data set whose rules clean the reports up; none keeps them as they are."),
    ] = DatasetName.mimic
    max_length: Annotated[
        int | None,
        typer.Option(
            "--max-length",
            metavar="N",
            min=1,
            help="Tokens after which a training report is cut. Default: 100 for mimic_cxr, 60 for iu_xray, else 150.",
        ),
    ] = None
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", min=1, help="Use only the first N training studies. Default: all."),
    ] = None
    val_limit: Annotated[
        int | None,
        typer.Option("--val-limit", metavar="N", min=1, help="Use only the first N validation studies. Default: all."),
    ] = None
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", metavar="N", min=0, help="Processes that read images. Default: one per core, at most 8."
        ),
    ] = None
    use_cache: Annotated[
        bool,
        typer.Option(
            "--cache/--no-cache",
            help="Compute the output of a frozen vision encoder once per image and keep it on disk.",
        ),
    ] = True
    cache_dir: Annotated[
        Path | None,
        typer.Option(
            "--cache-dir", metavar="DIR", help="Folder for the stored vision features. Default: features in --out."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Model."""

    vision: Annotated[
        str, typer.Option("--vision", metavar="MODEL", help="Vision encoder (Swin): a local folder or a hub id.")
    ]
    llm: Annotated[
        str, typer.Option("--llm", metavar="MODEL", help="LLM (LLaMA) with its tokenizer: a local folder or a hub id.")
    ]
    alignment: Annotated[
        Alignment,
        typer.Option(
            "--alignment",
            help="Parts trained besides the projector: none (shallow), LoRA on the vision encoder (delta), or the "
            "whole vision encoder (deep).",
        ),
    ] = Alignment.shallow
    global_only: Annotated[
        bool, typer.Option("--global-only", help="Represent an image by one token, its pooled feature.")
    ] = False
    vis_r: Annotated[
        int,
        typer.Option("--delta-r", metavar="N", min=1, help="LoRA rank of the vision encoder (alignment delta)."),
    ] = 16
    vis_alpha: Annotated[
        int,
        typer.Option("--delta-alpha", metavar="N", min=1, help="LoRA alpha of the vision encoder (alignment delta)."),
    ] = 16
    llm_lora: Annotated[bool, typer.Option("--llm-lora", help="Train LoRA on the LLM too.")] = False
    llm_r: Annotated[
        int, typer.Option("--llm-r", metavar="N", min=1, help="LoRA rank of the LLM (with --llm-lora).")
    ] = 16
    llm_alpha: Annotated[
        int, typer.Option("--llm-alpha", metavar="N", min=1, help="LoRA alpha of the LLM (with --llm-lora).")
    ] = 16
    lora_dropout: Annotated[
        float, typer.Option("--lora-dropout", metavar="X", min=0.0, max=0.99, help="Dropout rate of every LoRA.")
    ] = 0.1


@dataclass(frozen=True, kw_only=True)
class OptimisationOptions:
    """Optimisation."""

    max_epochs: Annotated[
        int,
        typer.Option(
            "--epochs",
            metavar="N",
            min=1,
            help="Number of passes over the training studies. With --resume a larger number lengthens the run.",
        ),
    ] = 5
    batch_size: Annotated[
        int, typer.Option("--batch-size", metavar="N", min=1, help="Training studies per device and batch.")
    ] = 8
    val_batch_size: Annotated[
        int, typer.Option("--val-batch-size", metavar="N", min=1, help="Validation studies per device and batch.")
    ] = 16
    accumulate: Annotated[
        int, typer.Option("--accumulate", metavar="N", min=1, help="Batches whose gradients make one optimiser step.")
    ] = 1
    learning_rate: Annotated[
        float,
        typer.Option("--learning-rate", metavar="X", help="Learning rate of the first step; it falls along a cosine."),
    ] = 1e-4
    weight_decay: Annotated[
        float, typer.Option("--weight-decay", metavar="X", min=0.0, help="Weight decay of the AdamW optimiser.")
    ] = 0.01
    gradient_clip: Annotated[
        float,
        typer.Option(
            "--gradient-clip", metavar="X", min=0.0, help="Largest norm of the gradient; 0 leaves it as it is."
        ),
    ] = 1.0
    seed: Annotated[
        int,
        typer.Option("--seed", metavar="N", min=0, help="Random seed of the initial weights and the order of studies."),
    ] = 42


@dataclass(frozen=True, kw_only=True)
class HardwareOptions:
    """Device."""

    precision: Annotated[
        TrainPrecision,
        typer.Option("--precision", help="Precision of the arithmetic and of the LLM's weights during training."),
    ] = TrainPrecision.fp32
    accelerator: Annotated[
        str,
        typer.Option("--accelerator", metavar="NAME", help="Kind of processor, as Lightning names it: auto, cpu, gpu."),
    ] = "auto"
    devices: Annotated[
        str, typer.Option("--devices", metavar="N", help="Number of devices, or which ones (0,1), or auto.")
    ] = "1"
    nodes: Annotated[
        int, typer.Option("--nodes", metavar="N", min=1, help="Number of machines that train together.")
    ] = 1
    strategy: Annotated[
        str,
        typer.Option(
            "--strategy", metavar="NAME", help="How devices share the work, as Lightning names it: auto or ddp."
        ),
    ] = "auto"


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Run."""

    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder of the run: the checkpoints best and last, the logs (logs/csv and logs/tensorboard), and "
            "curves.svg.",
        ),
    ]
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the run in --out; its settings must be the same, but --epochs may be larger: the learning "
            "rate then goes on along the cosine of the new length.",
        ),
    ] = False
    select: Annotated[
        Select,
        typer.Option(
            "--select",
            help="Metric that chooses the best checkpoint: validation loss, or of generated reports ROUGE-L, or "
            "0.5 BLEU-4 + 0.5 CIDEr as published.",
        ),
    ] = Select.loss
    metrics: Annotated[
        bool,
        typer.Option(
            "--metrics",
            help="Generate validation reports with --select loss too, and log BLEU, ROUGE-L, CIDEr and findings' F1.",
        ),
    ] = False
    generate_limit: Annotated[
        int,
        typer.Option(
            "--generate-limit",
            metavar="N",
            min=1,
            help="Validation studies that reports are generated for, with --metrics or --select of text.",
        ),
    ] = 64
    generate_every: Annotated[
        int,
        typer.Option(
            "--generate-every",
            metavar="N",
            min=1,
            help="Generate validation reports every N epochs, with --metrics or --select of text.",
        ),
    ] = 1
    state_every: Annotated[
        int,
        typer.Option(
            "--state-every",
            metavar="N",
            min=0,
            help="Steps between saves of the state that --resume continues from; 0 saves after each epoch only.",
        ),
    ] = 500

    log_seconds: Annotated[
        float,
        typer.Option(
            "--log-seconds",
            metavar="X",
            min=0.0,
            help="Seconds between two lines of progress where stderr is no terminal, as in the log of a batch job.",
        ),
    ] = 30.0


GROUPS: Final = (DataOptions, ModelOptions, OptimisationOptions, HardwareOptions, RunOptions)

app = command_app()


@app.command(
    cls=HelpCommand,
    epilog=examples(
        "r2gen train --annotation phantoms/annotation.json --base-dir phantoms/images --dataset none \\",
        "    --vision demo/vision --llm demo/llm --epochs 1 --out run",
        "r2gen train --annotation annotation.json --base-dir images --alignment delta --precision bf16 \\",
        "    --vision microsoft/swin-base-patch4-window7-224 --llm meta-llama/Llama-2-7b-chat-hf --out run",
    ),
)
@guarded
@option_groups
def train(
    data: DataOptions,
    model: ModelOptions,
    optimisation: OptimisationOptions,
    hardware: HardwareOptions,
    run: RunOptions,
) -> None:
    """Align a vision encoder with an LLM on image-report pairs.

    The method is R2GenGPT: a projector, and optionally LoRA or the vision encoder, is trained in front of a frozen LLM.
    A run that was stopped continues with --resume, and one that has ended does so with a larger --epochs. Losses are in
    nats per token; they are logged for every one of the first 100 steps, and every 10th after that.
    """
    with needs("train"):
        from r2gen_export.training.fit import TrainSettings
    values = plain(data, model, optimisation, hardware, run)
    # Lightning takes a number of devices as int, and a list of them as text.
    values["devices"] = int(hardware.devices) if hardware.devices.isdecimal() else hardware.devices
    run_train(TrainSettings(**values))


def run_train(settings: TrainSettings) -> None:
    """Train, and name the best checkpoint on stderr.

    Raises:
        R2GenError: what `fit.train` raises.
        KeyboardInterrupt, Terminated: by a signal; the run can be continued with `--resume`.
    """
    from r2gen_export.training.data import unread_parts
    from r2gen_export.training.fit import train as fit

    for remark in unread_parts(settings.annotation):
        say(f"WARNING {remark}")
    try:
        fit(settings)
    except (KeyboardInterrupt, Terminated):
        say("stopped; --resume goes on from what is in the folder of --out")
        raise
    say("checkpoint: best, in the folder of --out")
