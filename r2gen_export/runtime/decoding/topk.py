"""The k largest of many values, as beam search takes its candidates."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

BLOCKS: Final = 64
"""The k-th largest of the maxima of so many blocks bounds the k-th largest value from below, and few values pass it."""


def topk(values: Floats, k: int) -> Integers:
    """Indices [k] of the k largest values, largest first; of equal values the one of lower index comes first.

    `torch.topk` leaves the order of equal values open (on the CPU it is that of libstdc++'s sorts). Scores of trained
    models tie only where rounding differs between engines anyway.

    Args:
        values: [n] float32, without NaN.
        k: 1 to n.
    """
    whole = len(values) - len(values) % BLOCKS
    if k > BLOCKS or not whole:
        return np.argsort(-values, kind="stable")[:k]
    maxima = np.sort(values[:whole].reshape(BLOCKS, -1).max(axis=1))
    places = np.flatnonzero(values >= maxima[-k])
    return places[np.argsort(-values[places], kind="stable")[:k]]
