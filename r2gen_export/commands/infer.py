"""`r2gen infer`: its options, and the request they make."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from r2gen_export.commands.console import guarded
from r2gen_export.commands.help_page import HelpCommand, command_app, examples
from r2gen_export.commands.option_groups import option_groups, plain
from r2gen_export.commands.options import BundleOption, DeviceOption, FhirVersion, ReportFormat, SemanticsName, Split

PRESET = "Default: the preset's."


class EarlyStopping(StrEnum):
    """When beam search stops: at num_beams finished reports, by its heuristic, or when no better one is possible."""

    true = "true"
    false = "false"
    never = "never"


class PolarityName(StrEnum):
    """`Polarity` of `studies/dicom/types.py`."""

    auto = "auto"
    shape = "shape"
    photometric = "photometric"


@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """Input."""

    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE...",
            help="Images (PNG, JPEG, TIFF), DICOM files, folders, zip archives, a DICOMDIR, .txt lists or "
            "annotation.json files. Each image is a study; so is each image of a folder, each subfolder with images, "
            "each line of a list, each entry of an annotation. DICOM files are grouped by their study. Studies are "
            "numbered in this order, those of a folder sorted by name.",
        ),
    ]
    together: Annotated[
        bool, typer.Option("--study", help="Treat all images of the call as the views of one study.")
    ] = False
    split: Annotated[
        Split | None,
        typer.Option("--split", help="Split of annotation.json files whose studies are reported. Default: all."),
    ] = None
    polarity: Annotated[
        PolarityName,
        typer.Option(
            "--polarity",
            help="Attribute of a DICOM file that says whether high values are dark: shape (PresentationLUTShape), "
            "photometric (PhotometricInterpretation), or auto, the first where it is there, else the second.",
        ),
    ] = PolarityName.auto
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Read DICOM files that are refused otherwise (body part, modality, for processing, lateral views "
            "only), where they have pixels. The report records it.",
        ),
    ] = False
    bundle: BundleOption = None


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Output."""

    form: Annotated[
        ReportFormat,
        typer.Option(
            "--format",
            help="Form of the reports: text; json with one object per study, one a line, that adds token ids, log "
            "probabilities, timings and settings; pdf; or, for studies from DICOM files: sr (DICOM structured report), "
            "dicom-pdf (encapsulated PDF), kos (key object selection), fhir (DiagnosticReport), hl7 (ORU^R01 2.5.1). "
            "All but text and json are files, one for each study.",
        ),
    ] = ReportFormat.text
    fhir_version: Annotated[
        FhirVersion, typer.Option("--fhir-version", help="Release of FHIR that --format fhir writes.")
    ] = FhirVersion.r4
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE|DIR",
            help="Write the reports to FILE, which must not exist, and not to stdout. For many studies in a form "
            "with a file for each: to the folder DIR, as study-0001.dcm and so on.",
        ),
    ] = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what --out names if it exists.")] = False
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue a run that was stopped: studies whose report is in the file of --out already, by the same "
            "bundle, settings and images, are left out.",
        ),
    ] = False
    replaces: Annotated[
        Path | None,
        typer.Option(
            "--replaces",
            metavar="FILE",
            help="Earlier sr, dicom-pdf or kos of the same study, which the new one names as its predecessor.",
        ),
    ] = None
    names: Annotated[
        bool,
        typer.Option(
            "--names",
            help="Show file names in reports and errors, and on stderr which file of --out is of which study; they may "
            "identify patients.",
        ),
    ] = False
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--no-stream",
            help="Print the text of a single report while it is generated. Default: on a terminal.",
        ),
    ] = None
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only warnings and errors on stderr.")] = False
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print on stderr why each faster backend was not taken.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """Decoding.

    Settings that replace the preset's; None keeps them. The names are those of `Pipeline.generate`.
    """

    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            metavar="paper|fast",
            help="Decoding settings: paper is the paper's beam search, fast is greedy. Default: the bundle's.",
        ),
    ] = None
    semantics: Annotated[
        SemanticsName | None,
        typer.Option(
            "--semantics",
            help="transformers release whose decoding is reproduced: hf-4.30 is that of the published code. Default: "
            "the bundle's.",
        ),
    ] = None
    num_beams: Annotated[
        int | None,
        typer.Option("--num-beams", metavar="N", min=1, help="Beams of the beam search; 1 turns it off. " + PRESET),
    ] = None
    min_new_tokens: Annotated[
        int | None, typer.Option("--min-new-tokens", metavar="N", min=0, help="Fewest tokens of a report. " + PRESET)
    ] = None
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", metavar="N", min=1, help="Most tokens of a report. " + PRESET)
    ] = None
    repetition_penalty: Annotated[
        float | None,
        typer.Option(
            "--repetition-penalty",
            metavar="X",
            help="Penalty for tokens the report already has; 1 turns it off. " + PRESET,
        ),
    ] = None
    length_penalty: Annotated[
        float | None,
        typer.Option(
            "--length-penalty",
            metavar="X",
            help="Exponent of the length by which beam search divides scores; above 0 favours longer reports. "
            + PRESET,
        ),
    ] = None
    early_stopping: Annotated[
        EarlyStopping | None,
        typer.Option(
            "--early-stopping",
            help="When beam search stops: true at as many finished reports as beams, false by a heuristic, never only "
            "when no better report is possible. " + PRESET,
        ),
    ] = None
    no_repeat_ngram_size: Annotated[
        int | None,
        typer.Option(
            "--no-repeat-ngram-size",
            metavar="N",
            min=0,
            help="Length of token sequences that may occur only once in a report; 0 turns the rule off. " + PRESET,
        ),
    ] = None
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature", metavar="X", help="Sample with this temperature instead of taking the likeliest token."
        ),
    ] = None
    top_p: Annotated[
        float | None,
        typer.Option(
            "--top-p", metavar="X", help="Sample from the likeliest tokens that reach this probability; 1 turns it off."
        ),
    ] = None
    top_k: Annotated[
        int | None,
        typer.Option("--top-k", metavar="N", min=0, help="Sample from this many likeliest tokens; 0 turns it off."),
    ] = None
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", min=0, help="Sample with this random seed, to repeat a report.")
    ] = None

    def as_options(self) -> dict[str, Any]:
        """Keyword arguments of `Pipeline.generate`."""
        stopping = {"true": True, "false": False, "never": "never", None: None}[self.early_stopping]
        return {**plain(self), "early_stopping": stopping}


@dataclass(frozen=True, kw_only=True)
class DraftingOptions:
    """Drafting."""

    draft: Annotated[
        bool | None,
        typer.Option(
            "--draft/--no-draft",
            help="Use speculative decoding from earlier reports: less time. Default: on when the bundle has a store of "
            "reports and the words stay the same, which they may not with int8 or int4 weights on a CPU.",
        ),
    ] = None
    learn: Annotated[
        bool,
        typer.Option("--learn/--no-learn", help="Add the report's token ids to the bundle's store of reports, if any."),
    ] = True


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """Device."""

    device: DeviceOption = "auto"
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", min=1, help="Number of CPU threads. Default: one per core.")
    ] = None
    cpus: Annotated[
        str | None,
        typer.Option("--cpus", metavar="LIST", help="Logical CPUs to run on, for example 0-3,8. Default: all of them."),
    ] = None
    batch_size: Annotated[
        int, typer.Option("--batch-size", metavar="N", min=1, help="Number of studies decoded together.")
    ] = 8


app = command_app()


@app.command(
    cls=HelpCommand,
    epilog=examples(
        "r2gen infer chest.png",
        "r2gen infer frontal.png lateral.png --study --preset paper",
        "r2gen infer chest.png --format pdf --out report.pdf",
        "r2gen infer cd/DICOMDIR examination.zip",
        "r2gen infer dicom-files/ --bundle my-bundle --format sr --out results",
        "r2gen infer studies/ --bundle my-bundle --format json --out reports.jsonl",
    ),
)
@guarded
@option_groups
def infer(
    images: InputOptions,
    output: OutputOptions,
    decoding: DecodingOptions,
    drafting: DraftingOptions,
    device: DeviceOptions,
) -> None:
    """Write draft reports of radiographs.

    Reports go to stdout, or to the file of --out; everything else goes to stderr. Research use only: the reports are
    unverified drafts, never a diagnosis.
    """
    from r2gen_export.commands.infer_results import InferRequest
    from r2gen_export.commands.infer_studies import run_infer

    request = InferRequest(
        images=tuple(images.images),
        together=images.together,
        split=None if images.split is None else images.split.value,
        polarity=images.polarity.value,
        force=images.force,
        bundle=images.bundle,
        format=output.form.value,
        fhir_version=output.fhir_version.value,
        replaces=output.replaces,
        out=output.out,
        overwrite=output.overwrite,
        resume=output.resume,
        device=device.device,
        threads=device.threads,
        cpus=device.cpus,
        batch_size=device.batch_size,
        names=output.names,
        stream=output.stream,
        quiet=output.quiet,
        verbose=output.verbose,
        draft=drafting.draft,
        learn=drafting.learn,
        options=decoding.as_options(),
    )
    run_infer(request)
