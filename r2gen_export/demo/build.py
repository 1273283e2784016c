"""`r2gen demo`: the embedded demo bundle from nothing, in stages that an interrupted build does not repeat.

phantoms -> tiny LLaMA -> tiny Swin -> `r2gen train` (shallow) -> `r2gen export`, scored on held-out phantoms.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from r2gen_export.bundle import load_manifest
from r2gen_export.decoding import FAST, PAPER
from r2gen_export.demo.llm import LlmSettings, train_llm
from r2gen_export.demo.vision import LabelledStudy, VisionSettings, train_vision
from r2gen_export.errors import R2GenError
from r2gen_export.evaluation.phantom_findings import DEMO_SEED, FINDINGS
from r2gen_export.phantoms import LABELS, Finding, write_phantoms
from r2gen_export.system.files import atomic_dir, atomic_file


@dataclass(frozen=True)
class DemoSettings:
    """What a demo build is made of. `quick` builds run through every stage in minutes, without a useful score."""

    seed: int = DEMO_SEED
    studies: int = 12_000
    held_out: int = 500
    llm: LlmSettings = field(default_factory=LlmSettings)
    vision: VisionSettings = field(default_factory=VisionSettings)
    align_epochs: int = 12
    align_batch: int = 32
    align_learning_rate: float = 2e-3

    @staticmethod
    def quick(seed: int = DEMO_SEED) -> DemoSettings:
        """A build small enough for a test."""
        return DemoSettings(
            seed=seed,
            studies=96,
            held_out=8,
            llm=LlmSettings(reports=400, steps=30, batch_size=16),
            vision=VisionSettings(epochs=1, batch_size=16),
            align_epochs=1,
        )

    def is_quick(self) -> bool:
        """Whether the bundle's reports are not meant to be good."""
        return self == DemoSettings.quick(self.seed)

    def model_id(self) -> str:
        """Name of the bundle; every output of a quick build's bundle carries it."""
        return "r2gen-demo-quick" if self.is_quick() else "r2gen-demo"


def _stage(folder: Path, make: Callable[[Path], dict[str, float]], console: Console) -> dict[str, float]:
    """Run a stage into `folder` unless it is there; its figures stay in `stage.json` beside its files."""
    record = folder / "stage.json"
    if not record.exists():
        with atomic_dir(folder, subject=folder.name) as scratch:
            figures = make(scratch)
            (scratch / "stage.json").write_text(json.dumps(figures) + "\n", encoding="utf-8")
    figures = json.loads(record.read_text(encoding="utf-8"))
    console.print(f"{folder.name}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
    return figures


def _claim(out: Path, settings: DemoSettings) -> None:
    """A folder belongs to one set of settings; another build must not pick up its stages."""
    wanted = json.loads(json.dumps(dataclasses.asdict(settings)))
    record = out / "build.json"
    if record.exists() and json.loads(record.read_text(encoding="utf-8")) != wanted:
        raise R2GenError(
            "R2G-OUTPUT-EXISTS", "the folder of --out holds a demo build with other settings", "name another --out"
        )
    with atomic_file(record) as scratch:
        scratch.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")


def _finding(entry: dict[str, Any]) -> Finding:
    return Finding(**entry)


def labelled_studies(phantoms: Path, split: str) -> list[LabelledStudy]:
    """The studies of one split with their labels as the vision training wants them."""
    annotation = json.loads((phantoms / "annotation.json").read_text(encoding="utf-8"))[split]
    labels = json.loads((phantoms / "labels.json").read_text(encoding="utf-8"))
    return [
        LabelledStudy(
            tuple(phantoms / "images" / path for path in study["image_path"]),
            {(finding.name, finding.side): finding.level + 1 for finding in map(_finding, labels[study["id"]])},
        )
        for study in annotation
    ]


def build_demo(out: Path, settings: DemoSettings | None = None, *, device: str | None = None) -> Path:
    """Build the demo bundle and score it.

    Args:
        out: folder for all stages; the bundle ends up in `out/bundle`, its score in the manifest.
        settings: sizes and seed; the shipped bundle's settings when None.
        device: torch device of the first two trainings; CUDA where there is one when None.

    Returns:
        The bundle's folder.

    Raises:
        R2GenError: `R2G-OUTPUT-EXISTS` when `out` holds a build with other settings, and what the stages raise.
    """
    import torch

    from r2gen_export.exporting.export import export_bundle
    from r2gen_export.exporting.settings import ExportSettings
    from r2gen_export.training.fit import TrainSettings, train

    settings = settings or DemoSettings()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    console = Console(stderr=True)
    _claim(out, settings)

    phantoms = out / "phantoms"
    if not phantoms.exists():
        write_phantoms(phantoms, settings.studies, settings.seed, val_fraction=0.04, test_fraction=0.0)

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:

        def make_llm(folder: Path) -> dict[str, float]:
            return {"loss_nats": train_llm(folder, settings.llm, settings.seed, device, progress)}

        def make_vision(folder: Path) -> dict[str, float]:
            studies = labelled_studies(phantoms, "train"), labelled_studies(phantoms, "val")
            score = train_vision(
                folder, *studies, LABELS, settings.vision, seed=settings.seed, device=device, progress=progress
            )
            return {"read_out_f1": score}

        _stage(out / "llm", make_llm, console)
        _stage(out / "vision", make_vision, console)

    best = out / "run" / "best"
    if not best.exists():
        best = train(
            TrainSettings(
                annotation=phantoms / "annotation.json",
                base_dir=phantoms / "images",
                vision=out / "vision",
                llm=out / "llm",
                out=out / "run",
                dataset="none",
                alignment="shallow",
                max_epochs=settings.align_epochs,
                batch_size=settings.align_batch,
                learning_rate=settings.align_learning_rate,
                seed=settings.seed,
                resume=(out / "run").exists(),
                val_decoding=FAST,
            )
        )
    bundle = out / "bundle"
    if not bundle.exists():
        export_bundle(
            ExportSettings(
                checkpoint=best,
                vision=out / "vision",
                llm=out / "llm",
                out=bundle,
                model_id=settings.model_id(),
                synthetic=True,
                target="cpu",
                dialect="standard",  # at this size it is as fast as any, and every engine runs it
                presets={"paper": PAPER["iu_xray"]},  # the phantoms' reports have that length
                default_preset="fast",
                phantom_studies=settings.held_out,
                phantom_seed=settings.seed,
            )
        )
    for check in load_manifest(bundle).parity:
        if check.name == FINDINGS:
            console.print(f"{check.name}: {check.detail}", highlight=False)
    return bundle
