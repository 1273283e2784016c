"""The KV cache of an engine on the GPU: one block, rows moved inside it by one command each."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from trt_engines.cuda import ALIGNMENT, Cuda
from trt_engines.runner import BoundPass

Integers = NDArray[np.int64]
PassKey = tuple[int, int, int, int]

MOST_PASSES = 16
"""Shapes kept ready for one cache: each has an execution context, most a graph."""


class EngineCache:
    """Keys and values [tensors, rows, kv_heads, length, head_dim] on the GPU, zeros at first.

    Args:
        cuda: where.
        tensors: keys and values of all layers.
        rows: rows in use.
        head: kv_heads, length, head_dim.
        dtype: of an element.
    """

    def __init__(self, cuda: Cuda, tensors: int, rows: int, head: tuple[int, int, int], dtype: np.dtype[np.generic]):
        self._cuda, self._tensors, self._head, self._dtype = cuda, tensors, head, dtype
        self._row_bytes = math.prod(head) * dtype.itemsize
        self._passes: OrderedDict[PassKey, BoundPass] = OrderedDict()
        self._allocate(rows)

    @property
    def rows(self) -> int:
        """Rows there is room for."""
        return self._rows

    def address(self, tensor: int, row: int) -> int:
        """Where a row of a tensor begins; those behind it follow."""
        return self._base + (tensor * self._stride + row) * self._row_bytes

    def bound(self, key: PassKey, bind: Callable[[], BoundPass]) -> BoundPass:
        """The pass of a shape (first row, rows, positions, positions with logits), made when it is not there."""
        if key not in self._passes:
            if len(self._passes) == MOST_PASSES:
                self._passes.popitem(last=False)[1].close()
            self._passes[key] = bind()
        self._passes.move_to_end(key)
        return self._passes[key]

    @property
    def spare(self) -> int:
        """A row that holds nothing between two calls: prompts are read there, rows that change places pass through."""
        return self._stride - 1

    def clear(self, rows: Sequence[int]) -> None:
        """Zeros in these rows."""
        for tensor in range(self._tensors):
            for row in rows:
                self._cuda.clear(self.address(tensor, row), self._row_bytes)

    def copy(self, target: int, source: int, length: int) -> None:
        """Make a row what another one is, `length` positions in use."""
        self._copy_row(target, source, 0, length)

    def grow(self, rows: int) -> None:
        """Have room for so many rows."""
        if rows > self._rows:
            self._grow(rows)

    def reorder(self, rows: Integers, same: NDArray[np.bool_], prompt: int, length: int) -> None:
        """Make row i the row `rows[i]` was, `length` positions in use.

        Where `same[i]`, the two rows have their first `prompt` positions in common, and only the rest is copied.
        """
        self.grow(len(rows))
        for target, source, reader in row_moves(rows, spare=self.spare):
            self._copy_row(target, source, prompt if same[reader] else 0, length)

    def close(self) -> None:
        """Give back memory and passes."""
        self._drop_passes()
        self._cuda.synchronize()
        self._cuda.free(self._base)

    def _allocate(self, rows: int) -> None:
        # One row more, for rows that change places; and every tensor begins where TensorRT wants it.
        step = ALIGNMENT // math.gcd(ALIGNMENT, self._row_bytes)
        stride = -(-(rows + 1) // step) * step
        # First, because it may fail: the sizes are those of the block that is there.
        self._base = self._cuda.allocate(self._tensors * stride * self._row_bytes)
        self._rows, self._stride = rows, stride

    def _grow(self, rows: int) -> None:
        self._drop_passes()
        old, stride, count = self._base, self._stride, self._rows
        self._allocate(rows)
        for tensor in range(self._tensors):
            source = old + tensor * stride * self._row_bytes
            self._cuda.copy_blocks(
                self.address(tensor, 0), source, width=count * self._row_bytes, height=1, depth=1,
                pitch=count * self._row_bytes, slice_rows=1,
            )  # fmt: skip
        self._cuda.synchronize()
        self._cuda.free(old)

    def _copy_row(self, target: int, source: int, start: int, length: int) -> None:
        heads, slots, width = self._head
        position = width * self._dtype.itemsize
        if length <= start:
            return
        # Of every head of every layer the same stretch: a box in memory.
        self._cuda.copy_blocks(
            self.address(0, target) + start * position, self.address(0, source) + start * position,
            width=(length - start) * position, height=heads, depth=self._tensors,
            pitch=slots * position, slice_rows=self._stride * heads,
        )  # fmt: skip

    def _drop_passes(self) -> None:
        for one in self._passes.values():
            one.close()
        self._passes.clear()


def row_moves(rows: Integers, spare: int) -> list[tuple[int, int, int]]:
    """Copies after which row i is what row `rows[i]` was before, in an order in which none destroys what is yet read.

    Args:
        rows: [B'].
        spare: a row nobody uses, for rows that change places in a circle.

    Returns:
        Target, source, and the row that needs it (the target, but for what goes into the spare row).
    """
    pending = {target: int(source) for target, source in enumerate(rows) if source != target}
    moves = []
    while pending:
        read = set(pending.values())
        free = [target for target in pending if target not in read]
        if not free:
            # Only circles are left: set one row aside and let its reader take it from there.
            saved, reader = next((source, target) for target, source in pending.items())
            moves.append((spare, saved, reader))
            pending[reader] = spare
            free = [saved]
        moves += [(target, pending.pop(target), target) for target in free]
    return moves
