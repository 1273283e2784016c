"""The command line `r2gen`: parse, call one library function, render. Heavy imports happen inside the commands."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from r2gen_export import __version__
from r2gen_export.commands.console import guarded, needs, say

app = typer.Typer(
    name="r2gen",
    help="Draft radiology reports with R2GenGPT: train, export, bundle, infer. Research use only, not for diagnosis.",
    no_args_is_help=True,
    rich_markup_mode=None,  # help by rich takes twice the time of plain help
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Format(StrEnum):
    """How a result is written."""

    text = "text"
    json = "json"


class Device(StrEnum):
    """What runs the graphs."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    tensorrt = "tensorrt"


class SemanticsName(StrEnum):
    """Which transformers release's decoding arithmetic is followed."""

    current = "hf-current"
    old = "hf-4.30"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"r2gen {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


BundleOption = Annotated[
    Path | None,
    typer.Option("--bundle", metavar="DIR", help="Bundle folder. Default: $R2GEN_BUNDLE, else the embedded demo."),
]
DeviceOption = Annotated[Device, typer.Option("--device", help="What runs the graphs; auto takes the fastest usable.")]
FormatOption = Annotated[Format, typer.Option("--format", help="json: one object per study and line.")]
PRESET = "Default: the preset's."


@app.command()
@guarded
def infer(
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE...",
            help="The views of one study. Or folders (an image or a subfolder is a study), .txt lists (a study a "
            "line), annotation.json files: many studies.",
        ),
    ],
    *,
    bundle: BundleOption = None,
    form: FormatOption = Format.text,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write there instead of stdout.")] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", metavar="paper|fast", help="Decoding settings. Default: the bundle's.")
    ] = None,
    device: DeviceOption = Device.auto,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Studies decoded together.")] = 8,
    names: Annotated[bool, typer.Option("--names", help="Show file names, which may identify patients.")] = False,
    stream: Annotated[
        bool | None, typer.Option("--stream/--no-stream", help="Text as it comes. Default: on a terminal.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors on stderr.")] = False,
    semantics: Annotated[
        SemanticsName | None, typer.Option("--semantics", help="Decoding arithmetic. Default: the bundle's.")
    ] = None,
    num_beams: Annotated[int | None, typer.Option("--num-beams", min=1, help="1: no beam search. " + PRESET)] = None,
    min_new_tokens: Annotated[int | None, typer.Option("--min-new-tokens", min=0, help=PRESET)] = None,
    max_new_tokens: Annotated[int | None, typer.Option("--max-new-tokens", min=1, help=PRESET)] = None,
    repetition_penalty: Annotated[float | None, typer.Option("--repetition-penalty", help="1: none. " + PRESET)] = None,
    length_penalty: Annotated[float | None, typer.Option("--length-penalty", help="For beam search. " + PRESET)] = None,
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
        "no_repeat_ngram_size": no_repeat_ngram_size,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
    }
    request = InferRequest(
        images=tuple(images),
        bundle=bundle,
        format=form.value,
        out=out,
        device=device.value,
        threads=threads,
        batch_size=batch_size,
        names=names,
        stream=stream,
        quiet=quiet,
        options=options,
    )
    run_infer(request)


@app.command()
@guarded
def doctor(bundle: BundleOption = None, device: DeviceOption = Device.auto, form: FormatOption = Format.text) -> None:
    """Show versions, execution providers, GPU and bundle health; fails when infer could not run."""
    from r2gen_export.commands.doctor import run_doctor

    run_doctor(bundle, device.value, form.value)


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
    from r2gen_export.training.phantom import write_phantoms

    write_phantoms(out, studies, seed, val_fraction=val_fraction, test_fraction=test_fraction)
    say(f"{studies} studies in {out}")


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
    app(prog_name="r2gen")


if __name__ == "__main__":
    main()
