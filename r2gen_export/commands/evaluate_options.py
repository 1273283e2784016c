"""Options of `r2gen evaluate` and `r2gen evaluate compare`, a dataclass per panel of their help pages."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from r2gen_export.commands.options import DeviceOption, Format, SemanticsName, Split


class ProtocolName(StrEnum):
    """What is done to texts before they are scored."""

    r2gengpt = "r2gengpt"
    r2gen = "r2gen"
    coco = "coco"
    raw = "raw"


class DatasetChoice(StrEnum):
    """Whose clean-up and length of references protocols follow."""

    mimic = "mimic_cxr"
    iu = "iu_xray"


class SectionName(StrEnum):
    """Sections of a report."""

    findings = "findings"
    impression = "impression"


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Studies."""

    annotation: Annotated[
        Path | None,
        typer.Option(
            "--annotation",
            metavar="FILE",
            help="Annotation of the data set: references of the split, and the training split for the baselines.",
        ),
    ] = None
    base_dir: Annotated[
        Path | None,
        typer.Option(
            "--base-dir",
            metavar="DIR",
            help="Folder that image paths of the annotation start from. Default: images/ beside it, or its own folder.",
        ),
    ] = None
    split: Annotated[Split, typer.Option("--split", help="Split of the annotation that is evaluated.")] = Split.test
    section: Annotated[
        SectionName | None,
        typer.Option(
            "--section", help="Section of the references that counts. Default: the report as the annotation has it."
        ),
    ] = None
    references: Annotated[
        Path | None,
        typer.Option(
            "--references",
            metavar="PATH",
            help="References without an annotation: test_refs.json of the published code, another file of ids and "
            "texts, or the folder of MIMIC-CXR's report files.",
        ),
    ] = None
    dataset: Annotated[
        DatasetChoice | None,
        typer.Option("--dataset", help="Data set whose clean-up and cut the protocols r2gengpt and r2gen follow."),
    ] = None
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer",
            metavar="FILE",
            help="Tokenizer (tokenizer.json) that protocol r2gengpt cuts references by. Default: the bundle's.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """Scores."""

    protocol: Annotated[
        ProtocolName | None,
        typer.Option(
            "--protocol",
            help="What is done to texts before they are scored, as the published code, R2Gen or coco-caption do it. "
            "Default: r2gengpt where it can be followed, else coco.",
        ),
    ] = None
    all_protocols: Annotated[
        bool, typer.Option("--all-protocols", help="Give the numbers of every protocol beside each other.")
    ] = False
    scorer: Annotated[
        list[str] | None,
        typer.Option(
            "--scorer",
            metavar="NAME=COMMAND",
            help="Command of another environment that scores pairs of texts as JSON lines; may be repeated.",
        ),
    ] = None
    meteor: Annotated[
        bool, typer.Option("--meteor/--no-meteor", help="Compute METEOR 1.5 where Java and pycocoevalcap are there.")
    ] = True
    replicates: Annotated[
        int, typer.Option("--replicates", metavar="N", min=100, help="Bootstrap resamples for the intervals.")
    ] = 10_000
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Random seed of resamples and baselines.")] = (
        20_230_918
    )


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """Generation."""

    preset: Annotated[
        str | None,
        typer.Option("--preset", metavar="paper|fast", help="Decoding settings. Default: the bundle's default preset."),
    ] = None
    semantics: Annotated[
        SemanticsName | None,
        typer.Option(
            "--semantics",
            help="transformers release whose decoding is reproduced: hf-4.30 is that of the published code. Default: "
            "the bundle's.",
        ),
    ] = None
    max_new_tokens: Annotated[
        int | None,
        typer.Option("--max-new-tokens", metavar="N", min=1, help="Most tokens of a report. Default: the preset's."),
    ] = None
    device: DeviceOption = "auto"
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", min=1, help="Number of CPU threads. Default: one per core.")
    ] = None
    batch_size: Annotated[
        int, typer.Option("--batch-size", metavar="N", min=1, help="Number of studies decoded together.")
    ] = 8

    def as_options(self) -> dict[str, Any]:
        """Keyword arguments of `Pipeline.generate_many`, those that were given."""
        given = {
            "preset": self.preset,
            "semantics": self.semantics.value if self.semantics else None,
            "max_new_tokens": self.max_new_tokens,
        }
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Output."""

    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder for results.json, table.md, table.tex and report.html; a stopped run goes on there.",
        ),
    ] = None
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the results that the folder of --out holds.")
    ] = False
    show_texts: Annotated[
        bool,
        typer.Option("--show-texts", help="Show reports and references, which are patient data, in report.html."),
    ] = False
    form: Annotated[
        Format, typer.Option("--format", help="Form of what is printed: tables as text, or json with all results.")
    ] = Format.text
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only warnings and errors on stderr.")] = False
