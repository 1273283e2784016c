"""The KV cache of fixed length in a GPU's memory: one block, whose rows ONNX Runtime itself moves there.

An input that is bound from host memory is copied to the GPU when it is bound and never again (ONNX Runtime
`IOBinding.cc`, `CopyOneInputAcrossDevices`), so the inputs of a pass are values on the GPU, made once and written to
before each run. Everything has a fixed address, which is what a CUDA graph needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from r2gen_export.runtime.backends.onnx_graphs import move_rows_graph, take_rows_graph, take_slots_graph, zeros_graph
from r2gen_export.runtime.backends.ort_kv_cache import Floats, Integers, StaticDecoder, as_float32

if TYPE_CHECKING:
    import onnxruntime

MOST_FILLED: Final = 1 << 30
"""Elements of one operator's tensors: ONNX Runtime's CUDA kernels count them with 32 bits."""

MOST_MOVED: Final = 1 << 26
"""Elements moved at once, which are in memory twice meanwhile."""

MOST_GRAPHS: Final = 32
"""CUDA graphs of a session. They are never freed, so further shapes run without one."""

NO_GRAPH: Final = -1
"""`gpu_graph_id` of a run that is not captured (ONNX Runtime, "CUDA Execution Provider", enable_cuda_graph)."""


ROW_COUNTS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Rows a decode pass is made for. Rows leave a batch one by one; a pass, and a CUDA graph, for each count would be made
and hardly used, and a few rows more cost a GPU next to nothing."""


def padded_rows(rows: int) -> int:
    """Rows of the pass that decodes `rows` of them."""
    return next((count for count in ROW_COUNTS if count >= rows), rows)


@dataclass(frozen=True)
class DeviceMemory:
    """A GPU as ONNX Runtime addresses it; with the name `cpu`, host memory."""

    index: int = 0

    name: str = "cuda"

    def empty(self, shape: Sequence[int], dtype: Any) -> onnxruntime.OrtValue:
        """Memory that is not written yet."""
        from onnxruntime import OrtValue

        return OrtValue.ortvalue_from_shape_and_type(list(shape), dtype, self.name, self.index)

    def upload(self, array: NDArray[Any]) -> onnxruntime.OrtValue:
        """A copy of an array."""
        from onnxruntime import OrtValue

        return OrtValue.ortvalue_from_numpy(array, self.name, self.index)


def host_value(array: NDArray[Any]) -> onnxruntime.OrtValue:
    """An array as a value that shares its memory: what is written to the array later is seen by a bound session.

    For inputs that operators read in host memory; others would be copied to the GPU at once.
    """
    from onnxruntime import OrtValue

    return OrtValue.ortvalue_from_numpy(array)


class CudaGraphs:
    """Hands out the numbers of a session's CUDA graphs.

    Args:
        enabled: whether the session captures any.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self._numbers = count(1)

    def options(self, *, captured: bool) -> onnxruntime.RunOptions:
        """Run options of one shape of a pass, whose runs are replayed from the second on where `captured`."""
        from onnxruntime import RunOptions

        options = RunOptions()
        if self.enabled:
            number = next(self._numbers) if captured else NO_GRAPH
            options.add_run_config_entry("gpu_graph_id", str(number if number <= MOST_GRAPHS else NO_GRAPH))
        return options


class DevicePass:
    """One shape of a pass over the decoder with everything on a GPU: [B, n] positions, logits of the last `keep`.

    Args:
        decoder: its session.
        gpu: where.
        cache: address of each tensor's first row; each serves as past and present.
        shape: of each of them, [B, kv_heads, length, head_dim].
        size: n.
        keep: positions that get logits.
        graphs: a pass of one position is captured as a CUDA graph.
    """

    def __init__(
        self,
        decoder: StaticDecoder,
        gpu: DeviceMemory,
        cache: Sequence[int],
        shape: Sequence[int],
        *,
        size: int,
        keep: int,
        graphs: CudaGraphs,
    ) -> None:
        self._rows = rows = shape[0]
        self._session, self._dtype = decoder.session, decoder.dtype
        self._offsets = np.arange(size)
        self._embeds = gpu.empty((rows, size, decoder.widths[0]), decoder.dtype)
        self._positions = gpu.empty((rows, size), np.int64)
        self._keep = gpu.upload(np.arange(size - keep, size))
        self._logits = gpu.empty((rows, keep, decoder.widths[1]), decoder.dtype)
        self._total = np.zeros((), np.int32)
        self._binding = decoder.session.io_binding()
        self._binding.bind_ortvalue_input("inputs_embeds", self._embeds)
        self._binding.bind_ortvalue_input("position_ids", self._positions)
        self._binding.bind_ortvalue_input("logits_to_keep", self._keep)
        if decoder.takes_total:
            self._total_value = host_value(self._total)
            self._binding.bind_ortvalue_input("total_sequence_length", self._total_value)
        self._binding.bind_ortvalue_output("logits", self._logits)
        for (past, present), address in zip(decoder.names, cache, strict=True):
            place = (gpu.name, gpu.index, decoder.dtype, list(shape), address)
            self._binding.bind_input(past, *place)
            self._binding.bind_output(present, *place)
        captured = graphs.enabled and size == 1
        self._options = graphs.options(captured=captured)
        # A captured run repeats its host values, so it gets one that holds for all positions: the cache's length.
        self._fixed_total = shape[2] if captured else None

    def run(self, embeds: Floats, starts: Integers) -> Floats:
        """Pass over embeds [B, n, d] at each row's positions from `starts` [B] on: logits [B, keep, vocab] on the host.

        B may be less than the rows this pass is made for; what the others compute is not looked at.
        """
        count = len(embeds)
        if count < self._rows:
            unused = self._rows - count
            embeds = np.concatenate([embeds, np.zeros((unused, *embeds.shape[1:]), embeds.dtype)])
            starts = np.append(starts, [starts[0]] * unused)
        self._embeds.update_inplace(np.ascontiguousarray(embeds, dtype=self._dtype))
        self._positions.update_inplace(starts[:, None] + self._offsets)
        self._total[...] = self._fixed_total or starts.max() + len(self._offsets)
        self._session.run_with_iobinding(self._binding, self._options)
        return as_float32(self._logits.numpy()[:count])


class RowMover:
    """The sessions that fill and move caches of one float type on a GPU.

    Args:
        gpu: where.
        dtype: of the caches.
        open_graph: opens one of `onnx_graphs` on that GPU.
    """

    def __init__(self, gpu: DeviceMemory, dtype: Any, open_graph: Any) -> None:
        self.gpu = gpu
        self._dtype, self._open = dtype, open_graph
        self._moves: Any = None
        self._zeros: Any = None
        self._rows: Any = None
        self._slots: Any = None

    def fill(self, address: int, shape: Sequence[int]) -> None:
        """Zeros in `shape` [T, R, kv_heads, L, head_dim] elements from an address on."""
        if self._zeros is None:
            self._zeros = self._open(zeros_graph(self._dtype))
        bound = self._zeros.io_binding()
        bound.bind_cpu_input("shape", np.array(shape))
        bound.bind_output("zeros", self.gpu.name, self.gpu.index, self._dtype, list(shape), address)
        self._zeros.run_with_iobinding(bound)

    def move(
        self, source: tuple[int, Sequence[int]], target: tuple[int, Sequence[int]], take: Integers, put: Integers
    ) -> None:
        """Put the rows `take` [M] of one cache into the places `put` [M] of another, or of the same.

        `source`, `target`: address and shape [rows, kv_heads, length, head_dim] of each.
        """
        if self._moves is None:
            self._moves = self._open(move_rows_graph(self._dtype))
        place = (self.gpu.name, self.gpu.index, self._dtype)
        bound = self._moves.io_binding()
        bound.bind_input("source", *place, list(source[1]), source[0])
        bound.bind_input("target", *place, list(target[1]), target[0])
        bound.bind_output("moved", *place, list(target[1]), target[0])
        bound.bind_ortvalue_input("take", self.gpu.upload(np.ascontiguousarray(take, dtype=np.int64)))
        bound.bind_ortvalue_input("put", self.gpu.upload(np.ascontiguousarray(put[:, None], dtype=np.int64)))
        self._moves.run_with_iobinding(bound)

    def take_rows(self, tensors: Sequence[onnxruntime.OrtValue], rows: Integers) -> list[onnxruntime.OrtValue]:
        """New tensors [B', kv_heads, P, head_dim] of the rows `rows` of tensors [B, kv_heads, P, head_dim]."""
        if self._rows is None:
            self._rows = self._open(take_rows_graph(self._dtype, len(tensors)))
        bound = self._rows.io_binding()
        bound.bind_ortvalue_input("rows", self.gpu.upload(np.ascontiguousarray(rows, dtype=np.int64)))
        return self._taken(self._rows, bound, tensors)

    def take_slots(self, tensors: Sequence[onnxruntime.OrtValue], length: int) -> list[onnxruntime.OrtValue]:
        """New tensors [B, kv_heads, length, head_dim] of the first slots of tensors [B, kv_heads, P, head_dim]."""
        if self._slots is None:
            self._slots = self._open(take_slots_graph(self._dtype, len(tensors)))
        bound = self._slots.io_binding()
        bound.bind_cpu_input("last", np.array([length]))
        return self._taken(self._slots, bound, tensors)

    def _taken(self, session: Any, bound: Any, tensors: Sequence[onnxruntime.OrtValue]) -> list[onnxruntime.OrtValue]:
        for index, value in enumerate(tensors):
            bound.bind_ortvalue_input(f"past.{index}", value)
            bound.bind_output(f"taken.{index}", self.gpu.name, self.gpu.index)
        session.run_with_iobinding(bound)
        taken: list[onnxruntime.OrtValue] = bound.get_outputs()
        return taken


class DeviceCache:
    """Keys and values [T, R, kv_heads, length, head_dim] in one block on a GPU; a pass may use any run of rows.

    Args:
        decoder: whose passes write it.
        mover: fills it and moves its rows.
        graphs: the session's CUDA graphs.
        rows: R, or a few less.
        length: positions a row has room for.
    """

    def __init__(self, decoder: StaticDecoder, mover: RowMover, graphs: CudaGraphs, rows: int, length: int) -> None:
        self._decoder, self._mover, self._graphs = decoder, mover, graphs
        self._passes: dict[tuple[int, int, int, int], DevicePass] = {}
        self.length, self.rows = length, padded_rows(rows)
        self._block = self._zeroed(self.rows)

    def bind(self, rows: slice, size: int, keep: int) -> DevicePass:
        """A pass of `size` positions over `rows` and, of one position, perhaps some more; bound once and kept."""
        if size == 1:
            rows = slice(rows.start, rows.start + min(padded_rows(rows.stop - rows.start), self.rows - rows.start))
        key = (rows.start, rows.stop, size, keep)
        if key not in self._passes:
            tensor, row = self._bytes(self.rows)
            base = self._block.data_ptr() + rows.start * row
            addresses = [base + index * tensor for index in range(len(self._decoder.names))]
            shape = (rows.stop - rows.start, *self._shape(1, 1)[2:])
            self._passes[key] = DevicePass(
                self._decoder, self._mover.gpu, addresses, shape, size=size, keep=keep, graphs=self._graphs
            )
        return self._passes[key]

    def clear(self, rows: Integers) -> None:
        """Zeros in these rows."""
        tensor, row = self._bytes(self.rows)
        for index in range(len(self._decoder.names)):
            for place in rows.tolist():
                address = self._block.data_ptr() + index * tensor + place * row
                self._mover.fill(address, self._shape(1, 1))

    def grow(self, rows: int) -> None:
        """Have room for so many rows."""
        if rows > self.rows:
            self._replace(np.arange(self.rows), padded_rows(rows))

    def reorder(self, rows: Integers, same: NDArray[np.bool_], prompt: int, length: int) -> None:
        """Make row i the row `rows[i]` was; whole rows of those that change are moved.

        `same`, `prompt` and `length` say which positions differ. Moving these alone would make temporaries of another
        size at every step, which ONNX Runtime's arena keeps each.
        """
        if len(rows) > self.rows:
            self._replace(rows, padded_rows(len(rows)))
        elif len(places := np.flatnonzero(rows != np.arange(len(rows)))):
            self._move(self._block, self.rows, rows[places], places)

    def _replace(self, rows: Integers, room: int) -> None:
        """A block with `room` rows, of which row i is the row `rows[i]` was."""
        target = self._zeroed(room)
        self._move(target, room, rows, np.arange(len(rows)))
        self._block, self.rows = target, room
        self._passes.clear()

    def _move(self, target: onnxruntime.OrtValue, room: int, take: Integers, put: Integers) -> None:
        """Rows `take` of every tensor to the places `put` in a block with `room` rows."""
        heads, width = self._decoder.head
        row = (heads, self.length, width)
        for first, some in self._parts(len(put), MOST_MOVED):
            tensors = np.arange(some)[:, None]
            self._mover.move(
                (self._block.data_ptr() + first * self._bytes(self.rows)[0], (some * self.rows, *row)),
                (target.data_ptr() + first * self._bytes(room)[0], (some * room, *row)),
                (tensors * self.rows + take).ravel(),
                (tensors * room + put).ravel(),
            )

    def _zeroed(self, rows: int) -> onnxruntime.OrtValue:
        block = self._mover.gpu.empty(self._shape(len(self._decoder.names), rows), self._decoder.dtype)
        self._fill(block, rows)
        return block

    def _fill(self, block: onnxruntime.OrtValue, rows: int) -> None:
        for first, some in self._parts(rows, MOST_FILLED):
            self._mover.fill(block.data_ptr() + first * self._bytes(rows)[0], self._shape(some, rows))

    def _shape(self, tensors: int, rows: int) -> tuple[int, int, int, int, int]:
        heads, width = self._decoder.head
        return tensors, rows, heads, self.length, width

    def _bytes(self, rows: int) -> tuple[int, int]:
        """Bytes of a tensor with so many rows, and of one of them."""
        heads, width = self._decoder.head
        row = heads * self.length * width * np.dtype(self._decoder.dtype).itemsize
        return rows * row, row

    def _parts(self, rows: int, elements: int) -> list[tuple[int, int]]:
        """First tensor and number of tensors, so many that `rows` of each have at most `elements`."""
        tensors = len(self._decoder.names)
        heads, width = self._decoder.head
        most = max(1, elements // (rows * heads * self.length * width))
        return [(first, min(most, tensors - first)) for first in range(0, tensors, most)]
