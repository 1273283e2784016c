"""What scores hide: how many different reports a system writes, how long they are, and whether they name anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from itertools import pairwise
from typing import Any, Final

import numpy as np

from r2gen_export.evaluation.label_scores import LabelSet
from r2gen_export.evaluation.ptb import ptb_words

LENGTHS: Final = (0, 1, 10, 20, 30, 40, 50, 60, 80, 100)
"""First number of words of each bin of lengths; the last one is open."""


def variety(texts: Sequence[str], labels: LabelSet, training: Set[str] | None = None) -> dict[str, Any]:
    """Facts about a set of reports.

    Args:
        texts: the reports.
        labels: what they name.
        training: words (`ptb_words`) of the training split's reports, where they are there.

    Returns:
        `studies`; `distinct` reports, compared by their words; `commonest`, the share of the studies that have the
        commonest one; `naming_a_finding`, the share that names one as positive; `words`, the 10th, 50th and 90th
        percentile of the length; `empty`, how many have no word; `lengths`, the share in each bin of `LENGTHS`;
        `novel`, the share that does not stand verbatim in the training split, None without one.
    """
    plain = [" ".join(text.lower().split()) for text in texts]
    counts = Counter(plain)
    lengths = [len(text.split()) for text in plain]
    return {
        "studies": len(texts),
        "distinct": len(counts),
        "commonest": counts.most_common(1)[0][1] / len(texts),
        "naming_a_finding": float(labels.abnormal().mean()),
        "words": [float(value) for value in np.percentile(lengths, [10, 50, 90])],
        "empty": sum(not length for length in lengths),
        "lengths": _bins(lengths),
        "novel": sum(novel(texts, training)) / len(texts) if training else None,
    }


def _bins(lengths: Sequence[int]) -> dict[str, float]:
    counts, _ = np.histogram(lengths, [*LENGTHS, max(*lengths, LENGTHS[-1]) + 1])
    names = ["0", *(f"{low} to {high - 1}" for low, high in pairwise(LENGTHS[1:])), f"{LENGTHS[-1]} or more"]
    return {name: int(count) / len(lengths) for name, count in zip(names, counts, strict=True)}


def novel(texts: Sequence[str], training: Set[str]) -> list[bool]:
    """Whether each text's words do not stand, in the same order, as a whole report in the training split.

    Args:
        training: words (`ptb_words`) of that split's reports.
    """
    return [ptb_words(text) not in training for text in texts]
