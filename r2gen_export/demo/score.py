"""How well a bundle's reports name the findings of held-out phantoms."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from r2gen_export.bundle import Decoding
from r2gen_export.runtime.pipeline import Pipeline
from r2gen_export.training.phantom import F1, micro_f1, read_findings


@dataclass(frozen=True)
class PhantomScore:
    """Micro-averaged over (finding, side); `f1` as of `micro_f1`. `distinct` counts different report texts."""

    studies: int
    preset: str
    f1: F1
    exact: float
    distinct: int


def score_phantoms(
    pipeline: Pipeline, phantoms: Path, split: str = "test", preset: str | None = None, batch_size: int = 16
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
    labels = json.loads((phantoms / "labels.json").read_text(encoding="utf-8"))
    studies = [[phantoms / "images" / path for path in study["image_path"]] for study in annotation]
    pairs, texts = [], []
    for study, outcome in zip(
        annotation, pipeline.generate_many(studies, batch_size=batch_size, preset=preset), strict=True
    ):
        text = outcome.text
        wanted = frozenset((finding["name"], finding["side"]) for finding in labels[study["id"]])
        pairs.append((wanted, read_findings(text)))
        texts.append(text)
    exact = sum(wanted == found for wanted, found in pairs) / len(pairs)
    return PhantomScore(len(pairs), preset or "default", micro_f1(pairs), exact, len(set(texts)))


__all__ = ["Decoding", "PhantomScore", "score_phantoms"]
