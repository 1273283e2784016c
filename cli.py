"""The command line `r2gen`: parse, call one library function, render. Heavy imports happen inside the commands."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from r2gen_export.commands.bench import bench
from r2gen_export.commands.build import build
from r2gen_export.commands.console import explain, guarded, open_streams, say, unwritable
from r2gen_export.commands.drafts import drafts
from r2gen_export.commands.engines import engines
from r2gen_export.commands.options import (
    PRESET,
    SAID,
    Alignment,
    AlignmentOption,
    BundleOption,
    CheckpointHelp,
    DatasetName,
    DeviceOption,
    DialectOption,
    EarlyStopping,
    EmbeddingsOption,
    ExportOut,
    Format,
    FormatOption,
    GateOption,
    GlobalOption,
    HeadPrecisionOption,
    LlmAlphaOption,
    LlmHelp,
    ParityTokensOption,
    PhantomStudiesOption,
    PrecisionOption,
    PromptOption,
    Select,
    SemanticsName,
    TargetOption,
    TrainPrecision,
    UnexpectedOption,
    VisAlphaOption,
    VisionHelp,
    VisionPrecisionOption,
    overrides,
)
from r2gen_export.commands.tune import tune
from r2gen_export.system.extras import needs
from r2gen_export.system.versions import VERSION

app = typer.Typer(
    name="r2gen",
    help="Draft radiology reports with R2GenGPT: train, export, bundle, infer. Research use only, not for diagnosis.",
    no_args_is_help=True,
    rich_markup_mode=None,  # help by rich takes twice the time of plain help
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"r2gen {VERSION}")
        raise typer.Exit()


app.add_typer(bench, name="bench")
app.add_typer(drafts, name="drafts")
app.add_typer(engines, name="engines")
app.command()(build)
app.command()(tune)


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
@guarded
def infer(
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE...",
            help="Each image is a study. So is each image of a folder, each folder with images below it, each line of "
            "a .txt list, each entry of an annotation.json. Studies are numbered in the order of the arguments, of the "
            "lines and of the entries; those of a folder are sorted by name.",
        ),
    ],
    *,
    together: Annotated[bool, typer.Option("--study", help="The images are the views of one study.")] = False,
    bundle: BundleOption = None,
    form: FormatOption = Format.text,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write there instead of stdout; FILE must not exist.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file of --out.")] = False,
    preset: Annotated[
        str | None, typer.Option("--preset", metavar="paper|fast", help="Decoding settings. Default: the bundle's.")
    ] = None,
    device: DeviceOption = "auto",
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads. Default: one a core.")] = None,
    cpus: Annotated[
        str | None, typer.Option("--cpus", metavar="LIST", help="Logical CPUs to stay on, like 0-3,8. Default: all.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Studies decoded together.")] = 8,
    names: Annotated[bool, typer.Option("--names", help="Show file names, which may identify patients.")] = False,
    stream: Annotated[
        bool | None, typer.Option("--stream/--no-stream", help="Text as it comes. Default: on a terminal.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and errors on stderr.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show on stderr why each faster backend was not taken.")
    ] = False,
    draft: Annotated[
        bool | None, typer.Option("--draft/--no-draft", help="Draft from earlier reports: same words, sooner.")
    ] = None,
    learn: Annotated[bool, typer.Option("--learn/--no-learn", help="Keep the report's token ids for drafts.")] = True,
    semantics: Annotated[
        SemanticsName | None, typer.Option("--semantics", help="Decoding arithmetic. Default: the bundle's.")
    ] = None,
    num_beams: Annotated[int | None, typer.Option("--num-beams", min=1, help="1: no beam search. " + PRESET)] = None,
    min_new_tokens: Annotated[int | None, typer.Option("--min-new-tokens", min=0, help=PRESET)] = None,
    max_new_tokens: Annotated[int | None, typer.Option("--max-new-tokens", min=1, help=PRESET)] = None,
    repetition_penalty: Annotated[float | None, typer.Option("--repetition-penalty", help="1: none. " + PRESET)] = None,
    length_penalty: Annotated[float | None, typer.Option("--length-penalty", help="For beam search. " + PRESET)] = None,
    early_stopping: Annotated[
        EarlyStopping | None, typer.Option("--early-stopping", help="For beam search. " + PRESET)
    ] = None,
    no_repeat_ngram_size: Annotated[
        int | None, typer.Option("--no-repeat-ngram-size", min=0, help="0: off. " + PRESET)
    ] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", help="Samples, with one beam.")] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", help="Samples. 1: off.")] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", min=0, help="Samples. 0: off.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Samples, the same way each time.")] = None,
) -> None:
    """Write the draft report of a study, or of many. Research use only, not for diagnosis."""
    from r2gen_export.commands.infer import InferRequest, run_infer

    options: dict[str, Any] = {
        "preset": preset,
        "semantics": semantics,
        "num_beams": num_beams,
        "min_new_tokens": min_new_tokens,
        "max_new_tokens": max_new_tokens,
        "repetition_penalty": repetition_penalty,
        "length_penalty": length_penalty,
        "early_stopping": {"true": True, "false": False, "never": "never"}[early_stopping] if early_stopping else None,
        "no_repeat_ngram_size": no_repeat_ngram_size,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
    }
    request = InferRequest(
        images=tuple(images),
        together=together,
        bundle=bundle,
        format=form.value,
        out=out,
        overwrite=overwrite,
        device=device,
        threads=threads,
        cpus=cpus,
        batch_size=batch_size,
        names=names,
        stream=stream,
        quiet=quiet,
        verbose=verbose,
        draft=draft,
        learn=learn,
        options=options,
    )
    run_infer(request)


@app.command()
@guarded
def doctor(bundle: BundleOption = None, device: DeviceOption = "auto", form: FormatOption = Format.text) -> None:
    """Show versions, execution providers, GPU and bundle health; fails when infer could not run."""
    from r2gen_export.commands.doctor import run_doctor

    run_doctor(bundle, device, form.value)


@app.command()
@guarded
def export(
    *,
    checkpoint: Annotated[Path, typer.Option("--checkpoint", metavar="PATH", help=CheckpointHelp)],
    vision: Annotated[str, typer.Option("--vision", metavar="MODEL", help=VisionHelp)],
    llm: Annotated[str, typer.Option("--llm", metavar="MODEL", help=LlmHelp)],
    out: ExportOut,
    target: TargetOption = None,
    dialect: DialectOption = None,
    precision: PrecisionOption = None,
    head_precision: HeadPrecisionOption = None,
    vision_precision: VisionPrecisionOption = None,
    embeddings: EmbeddingsOption = None,
    gate: GateOption = None,
    semantics: Annotated[
        SemanticsName, typer.Option("--semantics", help="Decoding arithmetic the bundle records.")
    ] = SemanticsName.current,
    model_id: Annotated[
        str | None, typer.Option("--model-id", help="Name in every report. Default: the folder's name.")
    ] = None,
    alignment: AlignmentOption = None,
    global_only: GlobalOption = None,
    vis_alpha: VisAlphaOption = None,
    llm_alpha: LlmAlphaOption = None,
    prompt: PromptOption = None,
    allow_unexpected: UnexpectedOption = None,
    num_beams: Annotated[
        int | None, typer.Option("--num-beams", min=1, help="Beams of preset paper; 1: no beam search. " + SAID)
    ] = None,
    min_new_tokens: Annotated[
        int | None, typer.Option("--min-new-tokens", min=0, help="Least tokens of a report in preset paper. " + SAID)
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", min=1, help="Most tokens of a report in preset paper. " + SAID)
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option("--repetition-penalty", help="Repetition penalty of preset paper. " + SAID)
    ] = None,
    length_penalty: Annotated[
        float | None, typer.Option("--length-penalty", help="Length penalty of preset paper's beam search. " + SAID)
    ] = None,
    default_preset: Annotated[
        str, typer.Option("--default-preset", metavar="paper|fast", help="Preset infer takes when none is given.")
    ] = "paper",
    parity_tokens: ParityTokensOption = None,
    phantom_studies: PhantomStudiesOption = 0,
) -> None:
    """Write a bundle from a checkpoint and its source models, checked against PyTorch before it appears."""
    with needs("export"):
        from r2gen_export.commands.export import run_export
        from r2gen_export.exporting.settings import ExportSettings

        run_export(
            ExportSettings(
                checkpoint=checkpoint,
                vision=vision,
                llm=llm,
                out=out,
                target=target.value if target else None,
                dialect=dialect.value if dialect else None,
                precision=precision.value if precision else None,
                head_precision=head_precision.value if head_precision else None,
                vision_precision=vision_precision.value if vision_precision else None,
                embeddings=embeddings.value if embeddings else None,
                gate=gate.value if gate else None,
                semantics=semantics.value,
                model_id=model_id,
                overrides=overrides(alignment, global_only, vis_alpha, llm_alpha, prompt),
                decoding={
                    "num_beams": num_beams,
                    "min_new_tokens": min_new_tokens,
                    "max_new_tokens": max_new_tokens,
                    "repetition_penalty": repetition_penalty,
                    "length_penalty": length_penalty,
                },
                allow_unexpected=tuple(allow_unexpected or ()),
                default_preset=default_preset,
                parity_max_new_tokens=parity_tokens,
                phantom_studies=phantom_studies,
            )
        )


@app.command()
@guarded
def verify(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle folder.")],
    *,
    checkpoint: Annotated[Path | None, typer.Option("--checkpoint", metavar="PATH", help=CheckpointHelp)] = None,
    vision: Annotated[str | None, typer.Option("--vision", metavar="MODEL", help=VisionHelp)] = None,
    llm: Annotated[str | None, typer.Option("--llm", metavar="MODEL", help=LlmHelp)] = None,
    parity_tokens: ParityTokensOption = None,
    images: Annotated[
        Path | None,
        typer.Option("--images", metavar="PATH", help="Compare on these studies (folder, list, annotation.json)."),
    ] = None,
    alignment: AlignmentOption = None,
    global_only: GlobalOption = None,
    vis_alpha: VisAlphaOption = None,
    llm_alpha: LlmAlphaOption = None,
    prompt: PromptOption = None,
    allow_unexpected: UnexpectedOption = None,
    semantics: Annotated[
        SemanticsName | None, typer.Option("--semantics", help="Decoding to compare. Default: the bundle's.")
    ] = None,
    form: FormatOption = Format.text,
) -> None:
    """Check a bundle's hashes and, given its three sources, that it says what PyTorch says."""
    from r2gen_export.commands.verify import run_verify

    with needs("export"):
        run_verify(
            bundle,
            checkpoint,
            vision,
            llm,
            images=images,
            overrides=overrides(alignment, global_only, vis_alpha, llm_alpha, prompt),
            allow_unexpected=tuple(allow_unexpected or ()),
            semantics=semantics.value if semantics else None,
            max_new_tokens=parity_tokens,
            form=form.value,
        )


@app.command()
@guarded
def inspect(
    path: Annotated[Path, typer.Argument(metavar="PATH", help=CheckpointHelp)], form: FormatOption = Format.text
) -> None:
    """Show what is in a checkpoint: kind, settings, tensors. Loads no model and runs nothing of the file."""
    from r2gen_export.commands.inspect import run_inspect

    with needs("export"):
        run_inspect(path, form.value)


@app.command()
@guarded
def phantom(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write; it must not exist.")],
    studies: Annotated[int, typer.Option("--studies", min=1, help="Number of studies.")] = 500,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    val_fraction: Annotated[float, typer.Option("--val-fraction", min=0.0, max=1.0)] = 0.1,
    test_fraction: Annotated[float, typer.Option("--test-fraction", min=0.0, max=1.0)] = 0.1,
) -> None:
    """Write synthetic chest radiographs with reports and labels, to train and test on."""
    from r2gen_export.phantoms import write_phantoms

    write_phantoms(out, studies, seed, val_fraction=val_fraction, test_fraction=test_fraction)
    say(f"{studies} studies in {out}")


@app.command()
@guarded
def train(
    annotation: Annotated[Path, typer.Option("--annotation", metavar="FILE", help="annotation.json, R2Gen's form.")],
    base_dir: Annotated[Path, typer.Option("--base-dir", metavar="DIR", help="Folder its image paths start from.")],
    vision: Annotated[str, typer.Option("--vision", metavar="SWIN", help="Vision encoder: folder or hub id.")],
    llm: Annotated[str, typer.Option("--llm", metavar="LLAMA", help="LLM and tokenizer: folder or hub id.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The run: checkpoints `best` and `last`, logs.")],
    dataset: Annotated[DatasetName, typer.Option("--dataset", help="Report clean-up.")] = DatasetName.mimic,
    alignment: Annotated[Alignment, typer.Option("--alignment", help="What is trained.")] = Alignment.shallow,
    vis_r: Annotated[int, typer.Option("--delta-r", min=1, help="Rank of the encoder's LoRA (delta).")] = 16,
    vis_alpha: Annotated[int, typer.Option("--delta-alpha", min=1, help="Its scale.")] = 16,
    global_only: Annotated[bool, typer.Option("--global-only", help="One image token, the pooled one.")] = False,
    llm_lora: Annotated[bool, typer.Option("--llm-lora", help="Train LoRA on the LLM too.")] = False,
    llm_r: Annotated[int, typer.Option("--llm-r", min=1, help="Rank of the LLM's LoRA.")] = 16,
    llm_alpha: Annotated[int, typer.Option("--llm-alpha", min=1, help="Its scale.")] = 16,
    lora_dropout: Annotated[float, typer.Option("--lora-dropout", min=0.0, max=0.99)] = 0.1,
    max_length: Annotated[int | None, typer.Option("--max-length", min=1, help="Cut reports, tokens.")] = None,
    max_epochs: Annotated[int, typer.Option("--epochs", min=1)] = 5,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Studies per device.")] = 8,
    val_batch_size: Annotated[int, typer.Option("--val-batch-size", min=1)] = 16,
    accumulate: Annotated[int, typer.Option("--accumulate", min=1, help="Batches per optimiser step.")] = 1,
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="At the start of the cosine.")] = 1e-4,
    weight_decay: Annotated[float, typer.Option("--weight-decay", min=0.0)] = 0.01,
    gradient_clip: Annotated[float, typer.Option("--gradient-clip", min=0.0, help="Norm; 0: none.")] = 1.0,
    precision: Annotated[TrainPrecision, typer.Option("--precision")] = TrainPrecision.fp32,
    accelerator: Annotated[str, typer.Option("--accelerator", help="Lightning's: auto, cpu, gpu ...")] = "auto",
    devices: Annotated[str, typer.Option("--devices", help="How many, or which (0,1), or auto.")] = "1",
    nodes: Annotated[int, typer.Option("--nodes", min=1)] = 1,
    strategy: Annotated[str, typer.Option("--strategy", help="Lightning's: auto, ddp ...")] = "auto",
    workers: Annotated[int | None, typer.Option("--workers", min=0, help="Processes that read images.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 42,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="First training studies only.")] = None,
    val_limit: Annotated[int | None, typer.Option("--val-limit", min=1, help="First validation studies only.")] = None,
    select: Annotated[Select, typer.Option("--select", help="What chooses the best checkpoint.")] = Select.loss,
    generate_limit: Annotated[int, typer.Option("--generate-limit", min=1, help="Studies written for rouge_l.")] = 64,
    generate_every: Annotated[int, typer.Option("--generate-every", min=1, help="... every so many epochs.")] = 1,
    state_every: Annotated[int, typer.Option("--state-every", min=0, help="Steps between saves to resume from.")] = 500,
    use_cache: Annotated[bool, typer.Option("--cache/--no-cache", help="Keep the frozen encoder's output.")] = True,
    cache_dir: Annotated[Path | None, typer.Option("--cache-dir", metavar="DIR", help="Default: OUT/features.")] = None,
) -> None:
    """Align a vision encoder with an LLM on R2Gen studies (R2GenGPT: shallow, delta or deep)."""
    options = dict(locals())
    from r2gen_export.commands.train import run_train

    run_train(**{name: value.value if isinstance(value, StrEnum) else value for name, value in options.items()})


@app.command()
@guarded
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for all stages; continued when it exists.")],
    quick: Annotated[bool, typer.Option("--quick", help="Every stage in minutes, without a useful score.")] = False,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 7,
) -> None:
    """Rebuild the embedded demo bundle from nothing: phantoms, tiny LLaMA and Swin, alignment, export, score."""
    with needs("train"):
        from r2gen_export.demo.build import DemoSettings, build_demo

        bundle = build_demo(out, DemoSettings.quick(seed) if quick else DemoSettings(seed=seed))
    say(f"bundle in {bundle}")


def main() -> None:
    """The console entry point."""
    open_streams()
    try:
        app(prog_name="r2gen")
    except OSError as error:  # of a help page; commands handle their own
        raise SystemExit(explain(unwritable(error))) from None


if __name__ == "__main__":
    main()
