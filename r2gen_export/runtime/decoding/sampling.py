"""Sampling: a token drawn from the warped distribution."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from r2gen_export.decoding import Decoding
from r2gen_export.errors import R2GenError
from r2gen_export.runtime.decoding.processors import make_warpers, softmax

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

Draw: TypeAlias = Callable[[Integers, Floats], int]
"""From tokens [1, n] so far and processed scores [1, vocab] to the next token."""


def sampler(decoding: Decoding) -> Draw:
    """Draws for one study: one uniform number a token, turned into a token by the cumulative sum.

    Each study begins at the seed: its report depends neither on its batch nor on its place in it.
    """
    warp, generator = make_warpers(decoding), np.random.default_rng(decoding.seed)

    def draw(tokens: Integers, scores: Floats) -> int:
        warped = warp(tokens, scores)
        if np.isneginf(warped.max()):
            message = f"no_repeat_ngram_size {decoding.no_repeat_ngram_size} bans every token after {tokens.shape[1]}"
            raise R2GenError("R2G-CONFIG-VALUE", message, "lower max_new_tokens or raise no_repeat_ngram_size")
        sums = softmax(warped)[0].cumsum(dtype=np.float64)
        return int(np.searchsorted(sums, generator.random() * sums[-1], side="right"))

    return draw
