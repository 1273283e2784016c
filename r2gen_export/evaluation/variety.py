"""What scores hide: how many different reports a system writes, how long they are, and whether they name anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from r2gen_export.evaluation.label_scores import LabelSet
from r2gen_export.evaluation.ptb import ptb_words


def variety(texts: Sequence[str], labels: LabelSet) -> dict[str, Any]:
    """Facts about a set of reports.

    Returns:
        `studies`; `distinct` reports, compared by their words; `commonest`, the share of the studies that have the
        commonest one; `naming_a_finding`, the share that names one as positive; `words`, the 10th, 50th and 90th
        percentile of the length; `empty`, how many have no word.
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
    }


def novel(references: Sequence[str], training: Sequence[str]) -> list[bool]:
    """Whether each reference's words do not stand, in the same order, as a whole report in the training split."""
    known = {ptb_words(text) for text in training}
    return [ptb_words(text) not in known for text in references]
