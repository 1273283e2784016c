"""A test whether a study gets the same logits alone and beside others, for kernels that round activations to 8 bits.

Where a kernel on the CPU adds up in another order for more rows, the last bit of a sum changes, with it the step that
an activation is rounded to, and every later layer enlarges that: SmolLM2-135M in int4 in OpenVINO then chooses another
token at 2 of 100 positions. ONNX Runtime's kernels for blocks of 32 treat all rows alike, those for blocks of 128 do
not, OpenVINO's attention depends on rows, heads and threads (`python -m benchmarks.quality.pass_shapes`). Other
processors have other kernels, so the test runs on the machine that decodes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from r2gen_export.bundle import Manifest
from r2gen_export.interfaces import Embeddings, RowDecoder
from r2gen_export.precision import PRECISIONS

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

STUDIES: Final = 8
PROMPT: Final = 8
"""Positions of a prompt of the test: its kernels are those of longer ones."""

MOST_ROWS: Final = 64
"""Rows that are tested, and so decoded together, at most."""

WATCHED: Final = 2
"""Studies whose logits are compared; the others leave one by one."""


def rounds_activations(manifest: Manifest) -> bool:
    """Whether the decoder rounds activations to 8 bits on the CPU, as `MatMulNBits` and OpenVINO do there."""
    return PRECISIONS[manifest.precision["decoder"]].blocks is not None


def rows_agree(decoder: RowDecoder, table: Embeddings, vocab_size: int, *, rows: int = STUDIES) -> bool:
    """Whether two studies get the logits they get alone, to the last bit, beside others.

    Six others, then every number down to none, after a pass in which all eight take `rows` rows or a few more. About
    thirty passes of one position; prompts and tokens are random.

    Args:
        decoder: on the CPU.
        table: the bundle's token embeddings.
        vocab_size: of the bundle.
        rows: as many as will be decoded together.
    """
    ids = np.random.default_rng(0).integers(0, vocab_size, (STUDIES, PROMPT + 1 + STUDIES - WATCHED))
    embeds = table.lookup(ids)
    prompts, tokens = embeds[:, :PROMPT], embeds[:, PROMPT:]
    each = max(1, -(-rows // STUDIES))
    beside = (_joined if decoder.row_lengths else _begun)(decoder, prompts, tokens, each)
    alone = [_begun(decoder, prompts[row : row + 1], tokens[row : row + 1], 1) for row in range(WATCHED)]
    return bool(np.array_equal(beside, np.concatenate(alone, axis=1)))


def _begun(decoder: RowDecoder, prompts: Floats, tokens: Floats, each: int) -> Floats:
    """Logits [1 + n, watched, vocab] behind prompts [B, S, d] and tokens [B, n, d] of studies that begin together, with
    `each` rows for every study in the first pass."""
    state = decoder.prefill(prompts, tokens.shape[1])

    def decode(embeds: Floats) -> Floats:
        state.decode(embeds)
        return state.logits

    return _passes(state.logits, tokens, each, state.reorder, decode)


def _joined(decoder: RowDecoder, prompts: Floats, tokens: Floats, each: int) -> Floats:
    """The same of studies that join one by one."""
    state = decoder.open_rows(len(prompts) * each, prompts.shape[1] + tokens.shape[1])
    first = [state.join(prompts[row : row + 1], row)[0].copy() for row in range(len(prompts))]
    return _passes(np.stack(first), tokens, each, state.reorder, lambda embeds: state.advance(embeds)[:, 0])


def _passes(
    first: Floats, tokens: Floats, each: int, reorder: Callable[[Integers], None], decode: Callable[[Floats], Floats]
) -> Floats:
    studies, logits = len(first), [first[:WATCHED].copy()]
    reorder(np.repeat(np.arange(studies), each))
    logits.append(decode(np.repeat(tokens[:, :1], each, axis=0))[: WATCHED * each : each].copy())
    reorder(np.arange(0, studies * each, each))
    for step in range(1, tokens.shape[1]):
        if studies > WATCHED:
            studies -= 1
            reorder(np.arange(studies))
        logits.append(decode(tokens[:studies, step : step + 1])[:WATCHED].copy())
    return np.stack(logits)
