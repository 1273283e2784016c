"""What is recorded of a chosen token: its log probability, and the likeliest other token in its place."""

from __future__ import annotations

from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

STEP: Final = np.dtype([("logprob", np.float32), ("other", np.int64), ("other_logprob", np.float32)])
"""A token's own log probability, the id of the likeliest other token, and that one's log probability."""

Steps: TypeAlias = NDArray[np.void]
"""Array of `STEP`."""


def steps_of_logits(logits: Floats, tokens: Integers) -> Steps:
    """Records of tokens [B] that were chosen from logits [B, vocab]: [B] of `STEP`.

    `logprob` is what `log_softmax` gives the token, to the last bit. Of equally likely others the lowest id counts.
    """
    rows = np.arange(len(tokens))
    steps = np.zeros(len(tokens), STEP)
    shifted: Floats = logits - logits.max(axis=-1, keepdims=True)
    chosen = shifted[rows, tokens]
    shifted[rows, tokens] = -np.inf
    others = shifted.argmax(axis=1)
    likeliest = shifted[rows, others]
    shifted[rows, tokens] = chosen
    normaliser = np.log(np.exp(shifted, out=shifted).sum(axis=-1))
    steps["logprob"], steps["other"], steps["other_logprob"] = chosen - normaliser, others, likeliest - normaliser
    return steps


def steps_of_beams(logprobs: Floats, parents: Integers, tokens: Integers) -> Steps:
    """Records of candidates of beam search, tokens [K] behind the beams `parents` [K]: [K] of `STEP`.

    Args:
        logprobs: log probabilities [beams, vocab]. The best of each beam is hidden for a moment, to find the second
            best without a copy of all; they are unchanged when this returns.
        parents: the beam each candidate continues.
        tokens: the candidates.
    """
    rows = np.arange(len(logprobs))
    first = logprobs.argmax(axis=1)
    best = logprobs[rows, first]
    logprobs[rows, first] = -np.inf
    second = logprobs.argmax(axis=1)
    logprobs[rows, first] = best
    others = np.where(first[parents] == tokens, second[parents], first[parents])
    steps = np.zeros(len(tokens), STEP)
    steps["logprob"], steps["other"] = logprobs[parents, tokens], others
    steps["other_logprob"] = logprobs[parents, others]
    return steps


def others_of(steps: Steps) -> list[tuple[int, float]]:
    """The other tokens of steps [n] with their log probabilities, as `Sequence.others` has them."""
    return list(zip(steps["other"].tolist(), steps["other_logprob"].tolist(), strict=True))
