"""How well a bundle's reports name the findings of phantoms it has not been trained on. Needs no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from r2gen_export.training.phantom import F1, Finding, labels, micro_f1, read_findings, write_phantoms

if TYPE_CHECKING:
    from r2gen_export.runtime.pipeline import Pipeline

DEMO_SEED: Final = 7
"""The seed of the shipped demo bundle's phantoms and trainings."""

HELD_OUT: Final = 1_000_003
"""Added to a build's seed for the phantoms it is scored on, which are therefore none of those it saw."""


@dataclass(frozen=True)
class PhantomScore:
    """The score of one bundle and preset.

    Attributes:
        studies: how many phantoms were reported on.
        failed: studies without a report; they count as reports that name nothing.
        f1: micro-averaged over (finding, side).
        exact: share of studies whose labels were all found, with none added.
        distinct: number of different report texts.
    """

    studies: int
    failed: int
    f1: F1
    exact: float
    distinct: int


def write_held_out(folder: Path, studies: int, seed: int = DEMO_SEED, *, progress: bool = True) -> None:
    """Phantoms that a demo build with `seed` has not seen, all in the split `test`."""
    write_phantoms(folder, studies, seed + HELD_OUT, val_fraction=0.0, test_fraction=1.0, progress=progress)


def score_phantoms(
    pipeline: Pipeline, phantoms: Path, *, split: str = "test", preset: str | None = None, batch_size: int = 16
) -> PhantomScore:
    """Generate a report for every study of `split` and read the findings back from the text.

    Args:
        pipeline: the loaded bundle.
        phantoms: a folder `r2gen phantom` wrote.
        split: `train`, `val` or `test` of its annotation.json.
        preset: decoding preset of the bundle, the bundle's default when None.
        batch_size: studies decoded together.
    """
    annotation = json.loads((phantoms / "annotation.json").read_text(encoding="utf-8"))[split]
    found = json.loads((phantoms / "labels.json").read_text(encoding="utf-8"))
    wanted = [labels(Finding(**finding) for finding in found[study["id"]]) for study in annotation]
    studies = [[phantoms / "images" / path for path in study["image_path"]] for study in annotation]
    outcomes = list(pipeline.generate_many(studies, batch_size=batch_size, preset=preset))
    texts = [outcome.report.text if outcome.report else "" for outcome in outcomes]
    pairs = list(zip(wanted, map(read_findings, texts), strict=True))
    return PhantomScore(
        studies=len(pairs),
        failed=sum(outcome.report is None for outcome in outcomes),
        f1=micro_f1(pairs),
        exact=sum(want == read for want, read in pairs) / max(1, len(pairs)),
        distinct=len(set(texts)),
    )
