"""The KV cache of fixed length in host memory, where rows are views, bound to a session once.

`gpu_kv_cache.py` has the one in a GPU's memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnxruntime

STEP: Final = 64
"""Cache lengths are whole multiples of this, so that reports of about one length share their buffers."""

MOST_PASSES: Final = 64
"""Bound passes of a cache: with drafts there is one for each number of rows and each width, with logits of its own."""

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class StaticDecoder:
    """A decoder's session whose cache has a fixed length, and what a pass has to bind.

    Attributes:
        session: ONNX Runtime's.
        names: past and present name of every key and value tensor.
        head: kv_heads and head_dim.
        dtype: of embeddings, cache and logits.
        widths: d_llm and vocab_size.
        takes_total: whether `total_sequence_length` is an input (dialect `ort`, bundles of format version 2).
    """

    session: onnxruntime.InferenceSession
    names: Sequence[tuple[str, str]]
    head: tuple[int, int]
    dtype: Any
    widths: tuple[int, int]
    takes_total: bool


def cache_length(positions: int, most: int) -> int:
    """Slots of a cache for so many positions, of a model that has `most`."""
    return min(-(-positions // STEP) * STEP, most)


def as_float32(logits: NDArray[Any]) -> Floats:
    """Logits as the decode loop takes them; a copy only where the graph computes in float16."""
    return logits if logits.dtype == np.float32 else logits.astype(np.float32)


class Pass:
    """One shape of a pass over the decoder, its inputs and outputs bound: [B, n] positions, logits of the last `keep`.

    Args:
        decoder: its session.
        cache: the values of these B rows, in the order of the decoder's names; each serves as past and present.
        rows: B.
        size: n.
        keep: positions that get logits.
    """

    def __init__(
        self, decoder: StaticDecoder, cache: Sequence[onnxruntime.OrtValue], *, rows: int, size: int, keep: int
    ) -> None:
        from onnxruntime import OrtValue

        self._session = decoder.session
        self._embeds = np.zeros((rows, size, decoder.widths[0]), decoder.dtype)
        self._positions = np.zeros((rows, size), np.int64)
        self._offsets = np.arange(size)
        self._total = np.zeros((), np.int32)
        self._logits = np.zeros((rows, keep, decoder.widths[1]), decoder.dtype)
        self._binding = decoder.session.io_binding()
        inputs = {
            "inputs_embeds": self._embeds,
            "position_ids": self._positions,
            "logits_to_keep": np.arange(size - keep, size),
        }
        if decoder.takes_total:
            inputs["total_sequence_length"] = self._total
        # The binding holds pointers only; the arrays must live as long.
        self._held = [OrtValue.ortvalue_from_numpy(array) for array in (*inputs.values(), self._logits)]
        for name, value in zip((*inputs, "logits"), self._held, strict=True):
            bind = self._binding.bind_ortvalue_output if name == "logits" else self._binding.bind_ortvalue_input
            bind(name, value)
        for (past, present), value in zip(decoder.names, cache, strict=True):
            self._held.append(value)
            self._binding.bind_ortvalue_input(past, value)
            self._binding.bind_ortvalue_output(present, value)

    def run(self, embeds: Floats, starts: Integers) -> Floats:
        """Pass over embeds [B, n, d] at each row's positions from `starts` [B] on.

        Returns:
            Logits [B, keep, vocab], valid until the next run.
        """
        self._embeds[...] = embeds
        np.add(self._offsets, starts[:, None], out=self._positions)
        self._total[...] = starts.max() + len(self._offsets)
        self._session.run_with_iobinding(self._binding)
        return as_float32(self._logits)


class HostCache:
    """Keys and values [R, kv_heads, length, head_dim] in host memory; a pass may use any run of rows.

    Args:
        decoder: whose passes write it.
        rows: R.
        length: positions a row has room for.

    Attributes:
        arrays: the tensors, keys and values alternating, layer by layer.
    """

    def __init__(self, decoder: StaticDecoder, rows: int, length: int) -> None:
        self._decoder = decoder
        heads, width = decoder.head
        self.arrays = [np.zeros((rows, heads, length, width), decoder.dtype) for _ in decoder.names]
        self._passes: dict[tuple[int, int, int, int], Pass] = {}

    def bind(self, rows: slice, size: int, keep: int) -> Pass:
        """A pass of `size` positions over `rows`, bound once and kept while it is among the last `MOST_PASSES` used."""
        from onnxruntime import OrtValue

        key = (rows.start, rows.stop, size, keep)
        bound = self._passes.pop(key, None)
        if bound is None:
            values = [OrtValue.ortvalue_from_numpy(array[rows]) for array in self.arrays]
            bound = Pass(self._decoder, values, rows=rows.stop - rows.start, size=size, keep=keep)
        self._passes[key] = bound
        if len(self._passes) > MOST_PASSES:
            del self._passes[next(iter(self._passes))]
        return bound

    @property
    def rows(self) -> int:
        """R."""
        return len(self.arrays[0])

    @property
    def length(self) -> int:
        """Positions a row has room for."""
        return int(self.arrays[0].shape[2])

    def clear(self, rows: Integers) -> None:
        """Zeros in these rows."""
        for array in self.arrays:
            array[rows] = 0

    def grow(self, rows: int) -> None:
        """Have room for so many rows."""
        if rows <= self.rows:
            return
        grown = [np.zeros((rows, *array.shape[1:]), array.dtype) for array in self.arrays]
        for array, larger in zip(self.arrays, grown, strict=True):
            larger[: len(array)] = array
        self.arrays = grown
        self._passes.clear()

    def reorder(self, rows: Integers, same: NDArray[np.bool_], prompt: int, length: int) -> None:
        """Make row i the row `rows[i]` was, `length` positions in use.

        Where `same[i]`, the two rows have their first `prompt` positions in common, and only the rest is copied.
        """
        self.grow(len(rows))
        count = len(rows)
        moved = np.flatnonzero(rows != np.arange(count))
        whole = moved[~same[moved]]
        for array in self.arrays:
            array[moved, :, prompt:length] = array[rows[moved], :, prompt:length]
            if len(whole):
                array[whole, :, :prompt] = array[rows[whole], :, :prompt]
