"""`decoder/model.onnx` in ONNX Runtime: prefill and decode with the KV cache, for every dialect.

Graphs of the `ort` and `trt` dialects write new positions into a cache of fixed length (`ort_kv_cache.py`): its
buffers are bound once and nothing is allocated or copied in the decode loop. `standard` graphs return a longer cache
each time.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from r2gen_export.bundle import Dims
from r2gen_export.errors import InternalError, R2GenError
from r2gen_export.interfaces import DecoderState, Flags, JoiningState, PassingState, check_room
from r2gen_export.runtime.backends.gpu_kv_cache import CudaGraphs, DeviceCache, DeviceMemory, RowMover
from r2gen_export.runtime.backends.ort_kv_cache import HostCache, StaticDecoder, cache_length
from r2gen_export.runtime.backends.ort_providers import CPU, CUDA, PLAIN, Acceleration
from r2gen_export.runtime.backends.ort_session import bad_graph, check_names, coded_failures, open_session

if TYPE_CHECKING:
    import onnxruntime

    from r2gen_export.runtime.backends.ort_tensorrt import ProviderTuning

FLOAT_TYPES: Final = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

NOT_CAPTURABLE: Final = "cannot use the graph capture feature"
"""What ONNX Runtime says of a graph with copies to the host or nodes on the CPU, when CUDA graphs are asked for."""


class DecoderSession:
    """The decoder of a bundle, inputs and outputs named as optimum names them.

    Args:
        path: the graph.
        dims: the bundle's sizes.
        providers: names of ONNX Runtime's execution providers, best first.
        threads: CPU threads, None: the cores this process may use.
        tuning: for providers that build engines.
        acceleration: of the CUDA provider; what the graph does not allow is left out.
        gpu: index of the GPU.
        wide_rows: whether its attention appends several positions to several rows. `GroupQueryAttention`, of dialect
            `ort`, does not: "batch_size must be 1 when sequence_length > 1 and past context is given".

    Raises:
        R2GenError: what `open_session` raises; `R2G-BUNDLE-GRAPH` when it has other inputs and outputs.
    """

    def __init__(
        self,
        path: Path,
        dims: Dims,
        *,
        providers: Sequence[str],
        threads: int | None = None,
        tuning: ProviderTuning | None = None,
        acceleration: Acceleration = PLAIN,
        gpu: int = 0,
        wide_rows: bool = False,
    ) -> None:
        self._dims = dims
        self._open = partial(open_session, providers=providers, threads=threads, gpu=gpu)
        if providers[0] != CUDA:
            acceleration = PLAIN
        self._session, self.acceleration = self._open_graph(path, tuning, acceleration)
        parts = [f"{layer}.{part}" for layer in range(dims.num_layers) for part in ("key", "value")]
        past = [f"past_key_values.{part}" for part in parts]
        present = [f"present.{part}" for part in parts]
        types = {node.name: node.type for node in self._session.get_inputs()}
        self._static = "logits_to_keep" in types
        self.row_lengths = self._static  # a cache that grows has one length
        # On a GPU every width and number of rows would be captured and kept as a graph of its own.
        self.wide_rows = self._static and wide_rows and providers[0] == CPU
        if not self._static and providers[0] != CPU:
            self._open = partial(self._open, growing=True)
            self._session, self.acceleration = self._open_graph(path, tuning, PLAIN)
        self._takes_positions = "position_ids" in types
        needed = {"logits_to_keep", "position_ids"} if self._static else {"attention_mask"}
        optional = {"total_sequence_length" if self._static else "position_ids"} & types.keys()
        check_names(path, self._session, {"inputs_embeds", *needed, *optional, *past}, {"logits", *present})
        floats = {types[name] for name in ("inputs_embeds", *past)}
        if len(floats) != 1 or not floats <= FLOAT_TYPES.keys():
            raise bad_graph(path, f"its embeddings and cache are {', '.join(sorted(floats))}, expected one float type")
        self.dtype = FLOAT_TYPES[floats.pop()]
        self._cache_names = list(zip(past, present, strict=True))
        self._graph = StaticDecoder(
            session=self._session,
            names=self._cache_names,
            head=(dims.num_kv_heads, dims.head_dim),
            dtype=self.dtype,
            widths=(dims.d_llm, dims.vocab_size),
            takes_total="total_sequence_length" in types,
        )
        # The cache stays where the layers run; ids and masks are small.
        self._mover: RowMover | None = None
        if self._session.get_providers()[0] != CPU:
            # On the CUDA provider whatever runs the layers: the others hold their tensors in CUDA's memory too.
            self._mover = RowMover(DeviceMemory(gpu), self.dtype, partial(self._open, providers=[CUDA, CPU]))
        self._cuda_graphs = CudaGraphs(self.acceleration.cuda_graph)
        self._free: list[HostCache | DeviceCache] = []
        self._prefix: tuple[Floats, list[NDArray[Any]] | None] | None = None

    def _open_graph(
        self, path: Path, tuning: ProviderTuning | None, acceleration: Acceleration
    ) -> tuple[onnxruntime.InferenceSession, Acceleration]:
        """The session, and what of the acceleration it was opened with: some graphs cannot be captured."""
        if acceleration.cuda_graph:
            try:
                return self._open(path, tuning=tuning, acceleration=acceleration), acceleration
            except R2GenError as error:
                if NOT_CAPTURABLE not in error.message:
                    raise
                acceleration = replace(acceleration, cuda_graph=False)
        return self._open(path, tuning=tuning, acceleration=acceleration), acceleration

    def share_prefix(self, inputs_embeds: Floats) -> None:
        """Embeddings [1, P, d] that prompts begin with: their part of the cache is computed once and copied."""
        if self._static and self._mover is None:
            self._prefix = (np.ascontiguousarray(inputs_embeds[0]), None)

    def prefill(self, inputs_embeds: Floats, room: int) -> DecoderState:
        """Read the prompts.

        Args:
            inputs_embeds: [B, S, d] float32, all rows of one length: the graph sees no padding.
            room: most positions that will follow.

        Raises:
            R2GenError: `R2G-GENERATE-NONFINITE`; `R2G-CONFIG-VALUE` when there are more positions than the model has.
        """
        length = inputs_embeds.shape[1] + room
        check_room(length, self._dims.max_positions)
        if not self._static:
            shape = (len(inputs_embeds), self._dims.num_kv_heads, 0, self._dims.head_dim)
            empty = [self._value(np.zeros(shape, self.dtype)) for _ in self._cache_names]
            return _GrowingState(self, empty, inputs_embeds)
        state = self.open_rows(len(inputs_embeds), length)
        state.fill(inputs_embeds)
        return state

    def open_rows(self, rows: int, positions: int) -> _StaticState:
        """See `interfaces.RowDecoder`."""
        check_room(positions, self._dims.max_positions)
        with coded_failures(self._session, "prefill"):
            cache = self._take(rows, positions)
        state = _StaticState(self, cache)
        state.returned = weakref.finalize(state, self._free.append, cache)
        return state

    def _take(self, rows: int, length: int) -> HostCache | DeviceCache:
        """A cache no state uses any more, else a new one. Too small ones are let go."""
        while self._free:
            cache = self._free.pop()
            if cache.rows >= rows and cache.length >= length:
                return cache
        length = cache_length(length, self._dims.max_positions)
        if self._mover is None:
            return HostCache(self._graph, rows, length)
        return DeviceCache(self._graph, self._mover, self._cuda_graphs, rows, length)

    def failures(self, stage: str) -> AbstractContextManager[None]:
        """`coded_failures` of this session."""
        return coded_failures(self._session, stage)

    def prefix_of(self, prompt: Floats) -> tuple[int, list[NDArray[Any]]]:
        """How many positions of a prompt [S, d] are in the shared prefix, and their keys and values [kv, P, hd]."""
        if self._prefix is None:
            return 0, []
        embeds, cached = self._prefix
        size = len(embeds)
        if len(prompt) <= size or not np.array_equal(prompt[:size], embeds):
            return 0, []
        if cached is None:
            cache = self._take(1, size)
            assert isinstance(cache, HostCache)
            cache.bind(slice(0, 1), size, 1).run(embeds[None], np.zeros(1, np.int64))
            cached = [array[0, :, :size].copy() for array in cache.arrays]
            self._free.append(cache)
            self._prefix = (embeds, cached)
        return size, cached

    def _value(self, array: NDArray[Any]) -> onnxruntime.OrtValue:
        from onnxruntime import OrtValue

        return OrtValue.ortvalue_from_numpy(array) if self._mover is None else self._mover.gpu.upload(array)

    def take_rows(self, cache: list[onnxruntime.OrtValue], rows: Integers) -> list[onnxruntime.OrtValue]:
        """Rows of a cache that grows, where it lies."""
        if self._mover is not None:
            with coded_failures(self._session, "reorder"):
                return self._mover.take_rows(cache, rows)
        # One tensor at a time, so that old and new cache are never whole in memory together.
        for index, value in enumerate(cache):
            cache[index] = self._value(np.take(value.numpy(), rows, axis=0))
        return cache

    def take_slots(self, cache: list[onnxruntime.OrtValue], length: int) -> list[onnxruntime.OrtValue]:
        """First positions of a cache that grows, where it lies."""
        if self._mover is not None:
            with coded_failures(self._session, "rollback"):
                return self._mover.take_slots(cache, length)
        for index, value in enumerate(cache):
            cache[index] = self._value(np.ascontiguousarray(value.numpy()[:, :, :length]))
        return cache

    def grow(
        self, embeds: Floats, past: list[onnxruntime.OrtValue], length: int, keep: int
    ) -> tuple[Floats, list[onnxruntime.OrtValue]]:
        """Pass over embeds [B, S, d] behind `length` cached positions: last logits [B, keep, vocab], the new cache."""
        batch, size = embeds.shape[:2]
        binding = self._session.io_binding()
        binding.bind_cpu_input("inputs_embeds", np.ascontiguousarray(embeds, dtype=self.dtype))
        binding.bind_cpu_input("attention_mask", np.ones((batch, length + size), np.int64))
        if self._takes_positions:
            positions = np.arange(length, length + size, dtype=np.int64)
            binding.bind_cpu_input("position_ids", np.tile(positions, (batch, 1)))
        binding.bind_output("logits", "cpu")
        for (name, grown), value in zip(self._cache_names, past, strict=True):
            binding.bind_ortvalue_input(name, value)
            binding.bind_output(
                grown, *(("cpu", 0) if self._mover is None else (self._mover.gpu.name, self._mover.gpu.index))
            )
        with coded_failures(self._session, "decode" if length else "prefill"):
            self._session.run_with_iobinding(binding)
        logits, *cache = binding.get_outputs()
        last: Floats = np.array(logits.numpy()[:, -keep:], dtype=np.float32)  # a copy: prefill's is large
        return last, cache


class _StaticState(JoiningState):
    """A `RowState` whose cache has its full length from the start; logits are valid until the next pass.

    Attributes:
        returned: gives the cache back to the session when nobody holds this state any more.
    """

    returned: weakref.finalize[..., Any]

    def __init__(self, session: DecoderSession, cache: HostCache | DeviceCache) -> None:
        super().__init__()
        self._session, self._cache = session, cache

    def _read(self, prompts: Floats, row: int) -> Floats:
        with self._guarded("prefill"):
            self._cache.grow(row + len(prompts))
        if isinstance(self._cache, DeviceCache):
            return self._run(slice(row, row + len(prompts)), prompts, np.zeros(len(prompts), np.int64))[:, -1]
        logits = []
        for place, prompt in enumerate(prompts, start=row):
            shared, cached = self._session.prefix_of(prompt)
            for array, part in zip(self._cache.arrays, cached, strict=False):
                array[place, :, :shared] = part
            # Row by row: what a row gets does not depend on the others, and the prefix can be skipped.
            rest = self._run(slice(place, place + 1), prompt[None, shared:], np.array([shared]))
            logits.append(rest[:, -1].copy())
        return np.concatenate(logits)

    def _pass(self, embeds: Floats, keep: int) -> Floats:
        return self._run(slice(0, len(embeds)), embeds, self._lengths, keep)

    def _run(self, rows: slice, embeds: Floats, starts: Integers, keep: int = 1) -> Floats:
        if int(starts.max()) + embeds.shape[1] > self._cache.length:
            raise InternalError(f"{starts.max()} and {embeds.shape[1]} positions in a cache of {self._cache.length}")
        with self._guarded("decode" if starts[0] else "prefill"):
            return self._cache.bind(rows, embeds.shape[1], keep).run(embeds, starts)

    def _forget(self, rows: Integers) -> None:
        with self._guarded("decode"):
            self._cache.clear(rows)

    def _move(self, rows: Integers, same: Flags, prompt: int, length: int) -> None:
        with self._guarded("reorder"):
            self._cache.reorder(rows, same, prompt, length)

    @contextmanager
    def _guarded(self, stage: str) -> Iterator[None]:
        """Coded failures; after one the cache is let go, so that its memory is there for the next try."""
        try:
            with self._session.failures(stage):
                yield
        except BaseException:
            self.returned.detach()
            raise


class _GrowingState(PassingState):
    """A `DecoderState` whose cache ONNX Runtime grows by concatenation: key and value [B, kv_heads, P, head_dim]."""

    def __init__(self, session: DecoderSession, empty: list[onnxruntime.OrtValue], prompt: Floats) -> None:
        super().__init__(len(prompt), prompt.shape[1], 0)
        self._session, self._cache = session, empty
        self._append(prompt, 1)

    def _pass(self, embeds: Floats, keep: int) -> Floats:
        logits, self._cache = self._session.grow(embeds, self._cache, int(self._lengths[0]), keep)
        return logits

    def rollback(self, count: int) -> None:
        super().rollback(count)
        if count:
            self._cache = self._session.take_slots(self._cache, int(self._lengths[0]))

    def reorder(self, rows: Integers) -> None:
        self._take_rows(rows)
        self._cache = self._session.take_rows(self._cache, rows)
