"""The KV cache of fixed length, bound to a session once: in host memory, where rows are views, or on a device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnxruntime

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


class Pass:
    """One shape of a pass over the decoder, its inputs and outputs bound: [B, n] positions, logits of the last `keep`.

    Args:
        session: the decoder's.
        cache: past and present name and value of every key and value tensor; the value serves as both.
        rows: B.
        size: n.
        keep: positions that get logits.
        dtype: of embeddings and cache.
        widths: d_llm and vocab_size.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        cache: Sequence[tuple[str, str, onnxruntime.OrtValue]],
        *,
        rows: int,
        size: int,
        keep: int,
        dtype: Any,
        widths: tuple[int, int],
    ) -> None:
        from onnxruntime import OrtValue

        self._session = session
        self._embeds = np.zeros((rows, size, widths[0]), dtype)
        self._positions = np.zeros((rows, size), np.int64)
        self._offsets = np.arange(size)
        self._logits = np.zeros((rows, keep, widths[1]), dtype)
        self._binding = session.io_binding()
        inputs = {
            "inputs_embeds": self._embeds,
            "position_ids": self._positions,
            "logits_to_keep": np.arange(size - keep, size),
        }
        # The binding holds pointers only; the arrays must live as long.
        self._held = [OrtValue.ortvalue_from_numpy(array) for array in (*inputs.values(), self._logits)]
        for name, value in zip((*inputs, "logits"), self._held, strict=True):
            bind = self._binding.bind_ortvalue_output if name == "logits" else self._binding.bind_ortvalue_input
            bind(name, value)
        for past, present, value in cache:
            self._held.append(value)
            self._binding.bind_ortvalue_input(past, value)
            self._binding.bind_ortvalue_output(present, value)

    def run(self, embeds: Floats, start: int) -> Floats:
        """Pass over embeds [B, n, d] at positions from `start`: logits [B, keep, vocab], valid until the next run."""
        self._embeds[...] = embeds
        np.add(self._offsets, start, out=self._positions)
        self._session.run_with_iobinding(self._binding)
        return self._logits if self._logits.dtype == np.float32 else self._logits.astype(np.float32)


class Cache(ABC):
    """What both caches do alike: they keep the passes bound to them.

    Args:
        session: the decoder's.
        names: past and present name of every key and value tensor.
        dtype: of the tensors.
        widths: d_llm and vocab_size.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        names: Sequence[tuple[str, str]],
        dtype: Any,
        widths: tuple[int, int],
    ) -> None:
        self._session, self._names, self._dtype, self._widths = session, names, dtype, widths
        self._passes: dict[tuple[int, int, int, int], Pass] = {}

    @abstractmethod
    def _values(self, rows: slice) -> list[onnxruntime.OrtValue]:
        """The tensors of these rows, in the order of the names."""

    def bind(self, rows: slice, size: int, keep: int) -> Pass:
        """A pass of `size` positions over `rows`, bound once and kept."""
        key = (rows.start, rows.stop, size, keep)
        if key not in self._passes:
            bound = [(*names, value) for names, value in zip(self._names, self._values(rows), strict=True)]
            count = rows.stop - rows.start
            self._passes[key] = Pass(
                self._session, bound, rows=count, size=size, keep=keep, dtype=self._dtype, widths=self._widths
            )
        return self._passes[key]


class HostCache(Cache):
    """Keys and values [R, kv_heads, length, head_dim] in host memory; a pass may use any run of rows.

    Attributes:
        arrays: the tensors, keys and values alternating, layer by layer.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        names: Sequence[tuple[str, str]],
        shape: tuple[int, int, int, int],
        dtype: Any,
        widths: tuple[int, int],
    ) -> None:
        super().__init__(session, names, dtype, widths)
        self.arrays = [np.zeros(shape, dtype) for _ in names]

    @property
    def rows(self) -> int:
        """R."""
        return len(self.arrays[0])

    @property
    def length(self) -> int:
        """Positions a row has room for."""
        return int(self.arrays[0].shape[2])

    def _values(self, rows: slice) -> list[onnxruntime.OrtValue]:
        from onnxruntime import OrtValue

        return [OrtValue.ortvalue_from_numpy(array[rows]) for array in self.arrays]

    def clear(self) -> None:
        """Zeros everywhere."""
        for array in self.arrays:
            array[...] = 0

    def reorder(self, rows: Integers, same: NDArray[np.bool_], prompt: int, length: int) -> None:
        """Make row i the row `rows[i]` was, `length` positions in use.

        Where `same[i]`, the two rows have their first `prompt` positions in common, and only the rest is copied.
        """
        if len(rows) > self.rows:
            grown = [np.zeros((len(rows), *array.shape[1:]), array.dtype) for array in self.arrays]
            for array, larger in zip(self.arrays, grown, strict=True):
                larger[: len(array)] = array
            self.arrays = grown
            self._passes.clear()
        count = len(rows)
        moved = np.flatnonzero(rows != np.arange(count))
        whole = moved[~same[moved]]
        for array in self.arrays:
            array[moved, :, prompt:length] = array[rows[moved], :, prompt:length]
            if len(whole):
                array[whole, :, :prompt] = array[rows[whole], :, :prompt]


class DeviceCache(Cache):
    """The same on a device, where a pass uses all rows. Rows move through host memory."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        names: Sequence[tuple[str, str]],
        shape: tuple[int, int, int, int],
        dtype: Any,
        widths: tuple[int, int],
        *,
        device: str = "cuda",
    ) -> None:
        from onnxruntime import OrtValue

        super().__init__(session, names, dtype, widths)
        self._device = device
        self._tensors = [OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype), device, 0) for _ in names]
        self._rows = shape[0]

    def _values(self, rows: slice) -> list[onnxruntime.OrtValue]:
        return self._tensors

    def clear(self) -> None:
        """Nothing: another report gets a cache of its own."""

    def reorder(self, rows: Integers, same: NDArray[np.bool_], prompt: int, length: int) -> None:
        """Make row i the row `rows[i]` was."""
        from onnxruntime import OrtValue

        for index, value in enumerate(self._tensors):
            moved = np.take(value.numpy(), rows, axis=0)
            if len(rows) == self._rows:
                value.update_inplace(moved)
            else:
                self._tensors[index] = OrtValue.ortvalue_from_numpy(moved, self._device, 0)
        if len(rows) != self._rows:
            self._rows = len(rows)
            self._passes.clear()
