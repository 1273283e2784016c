"""How well a bundle's reports name the findings of phantoms it has not been trained on. Needs no torch."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from r2gen_export.bundle import MANIFEST, Manifest, ParityCheck
from r2gen_export.phantoms import F1, Finding, labels, micro_f1, read_findings, write_phantoms
from r2gen_export.system.files import atomic_file

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
    pipeline: Pipeline,
    phantoms: Path,
    *,
    split: str = "test",
    preset: str | None = None,
    batch_size: int = 16,
    advance: Callable[[], None] = lambda: None,
) -> PhantomScore:
    """Generate a report for every study of `split` and read the findings back from the text.

    Args:
        pipeline: the loaded bundle.
        phantoms: a folder `r2gen phantom` wrote.
        split: `train`, `val` or `test` of its annotation.json.
        preset: decoding preset of the bundle, the bundle's default when None.
        batch_size: studies decoded together.
        advance: called behind each study.
    """
    annotation = json.loads((phantoms / "annotation.json").read_text(encoding="utf-8"))[split]
    found = json.loads((phantoms / "labels.json").read_text(encoding="utf-8"))
    wanted = [labels(Finding(**finding) for finding in found[study["id"]]) for study in annotation]
    studies = [[phantoms / "images" / path for path in study["image_path"]] for study in annotation]
    texts, failed = [], 0
    for outcome in pipeline.generate_many(studies, batch_size=batch_size, preset=preset):
        texts.append(outcome.report.text if outcome.report else "")
        failed += outcome.report is None
        advance()
    pairs = list(zip(wanted, map(read_findings, texts), strict=True))
    return PhantomScore(
        studies=len(pairs),
        failed=failed,
        f1=micro_f1(pairs),
        exact=sum(want == read for want, read in pairs) / max(1, len(pairs)),
        distinct=len(set(texts)),
    )


FINDINGS: Final = "findings of held-out phantoms"


def phantom_check(pipeline: Pipeline, phantoms: Path, *, advance: Callable[[], None] = lambda: None) -> ParityCheck:
    """The score with the bundle's default preset as its manifest keeps it: recorded, not a gate.

    Args:
        pipeline: the loaded bundle.
        phantoms: a folder `write_held_out` wrote.
        advance: called behind each study.

    Returns:
        `observed` is what micro-F1 lacks of 1.
    """
    score = score_phantoms(pipeline, phantoms, advance=advance)
    f1 = score.f1
    detail = (
        f"preset {pipeline.manifest.default_preset}, {score.studies} studies: micro-F1 {f1.f1:.3f} "
        f"(precision {f1.precision:.3f}, recall {f1.recall:.3f})"
    )
    metrics = {
        "f1": f1.f1,
        "precision": f1.precision,
        "recall": f1.recall,
        "studies": float(score.studies),
        "failed": float(score.failed),
        "exact": score.exact,
        "distinct": float(score.distinct),
    }
    return ParityCheck(FINDINGS, True, 1 - f1.f1, 1 - f1.f1, detail, "report", metrics, gate=False)


def record_findings(
    bundle: Path, manifest: Manifest, studies: int, seed: int = DEMO_SEED, *, advance: Callable[[], None] = lambda: None
) -> Manifest:
    """Put `phantom_check` on so many held-out phantoms into a sealed bundle's manifest, in the place of an earlier one.

    Args:
        bundle: the folder; no other file of it changes.
        manifest: its manifest.
        studies: how many phantoms to draw.
        seed: of the demo build that has not seen them.
        advance: called behind each study.

    Raises:
        R2GenError: `R2G-BUNDLE-*`, `R2G-OUTPUT-WRITE`.
    """
    from r2gen_export.runtime.pipeline import Pipeline

    with tempfile.TemporaryDirectory() as scratch:
        phantoms = Path(scratch) / "phantoms"
        write_held_out(phantoms, studies, seed, progress=False)
        check = phantom_check(Pipeline.from_bundle(bundle, device="cpu"), phantoms, advance=advance)
    others = tuple(one for one in manifest.parity if one.name != FINDINGS)
    scored = dataclasses.replace(manifest, parity=(*others, check))
    with atomic_file(bundle / MANIFEST) as file:
        file.write_text(scored.to_json(), encoding="utf-8")
    return scored
