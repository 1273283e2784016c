"""Two systems that see no image: one report for every study, and a random report of the training split.

What they reach shows what a number is worth: on IU X-Ray a constant report has BLEU-4 0.161.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np

from r2gen_export.evaluation.metrics.bleu import bleu, bleu_counts

CANDIDATES: Final = 100
"""Training reports tried as the constant one: the commonest half, the others drawn at random."""

SAMPLE: Final = 400
"""Training reports that each candidate is scored on."""


def constant_report(training: Sequence[str], seed: int) -> str:
    """The report of the training split that has the highest BLEU-4 when it is given for every training study.

    Args:
        training: reports of the training split, prepared as references are. The evaluated split is not looked at.
        seed: of the candidates and of the studies they are tried on.
    """
    rng = np.random.default_rng(seed)
    distinct = Counter(training)
    common = [text for text, _ in distinct.most_common(CANDIDATES // 2)]
    others = sorted(set(distinct) - set(common))
    drawn = rng.permutation(len(others))[: CANDIDATES - len(common)]
    candidates = common + [others[at] for at in sorted(drawn.tolist())]
    chosen = rng.choice(len(training), min(SAMPLE, len(training)), replace=False)
    sample = [training[at] for at in sorted(chosen)]
    scores = [bleu(bleu_counts([text] * len(sample), sample).sum(axis=0).tolist())[3] for text in candidates]
    return candidates[int(np.argmax(scores))]


def random_reports(training: Sequence[str], studies: int, seed: int) -> list[str]:
    """A report of the training split for each study, drawn at random with replacement."""
    rng = np.random.default_rng([seed, 1])
    return [training[at] for at in rng.integers(len(training), size=studies)]
