"""Scores of this system on parts of the studies: by the length of the reference, by the number of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from r2gen_export.evaluation.bootstrap import Resampling
from r2gen_export.evaluation.scoring import TextScores, rows

SHOWN: Final = ("BLEU-4", "ROUGE-L", "CIDEr")


def length_deciles(references: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    """Tenths of the studies [N] by the words of their references, from the shortest; equal lengths stay together.

    With few different lengths there are fewer parts than ten.
    """
    lengths = np.array([len(text.split()) for text in references])
    ends = sorted({int(np.percentile(lengths, 10 * tenth, method="lower")) for tenth in range(1, 11)})
    parts, start = {}, int(lengths.min())
    for end in ends:
        chosen = (lengths >= start) & (lengths <= end)
        if chosen.any():
            name = f"{start} words" if start == end else f"{start} to {end} words"
            parts[name] = np.asarray(chosen)
        start = end + 1
    return parts


def image_counts(images: Sequence[int]) -> dict[str, NDArray[np.bool_]]:
    """Studies [N] of one image, and of several. Which of them is frontal, an annotation does not say."""
    counts = np.array(images)
    parts = {"1 image": np.asarray(counts == 1), "2 images or more": np.asarray(counts > 1)}
    return {name: chosen for name, chosen in parts.items() if chosen.any()}


def breakdown(
    scores: TextScores, plan: Resampling, references: Sequence[str], images: Sequence[int] | None
) -> list[dict[str, Any]]:
    """Rows `by, part, metric, value, low, high, studies`; low and high None below 30 units.

    CIDEr keeps the document frequencies of the whole set. `images`: number of each study's images; None: not known.
    """
    groups = {"length of the reference": length_deciles(references)}
    if images is not None:
        groups["images of the study"] = image_counts(images)
    results = []
    for name, parts in groups.items():
        for part, chosen in parts.items():
            statistics = [row for row in scores.subset(chosen).statistics() if row.name in SHOWN]
            results += rows(statistics, plan.subset(chosen), {"by": name, "part": part})
    return results
