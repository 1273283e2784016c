"""`decoder/model.onnx` in OpenVINO on the CPU, behind the interface of `ort_decoder.DecoderSession`.

Its 4-bit kernels take wide passes (prompts, batches) better than ONNX Runtime's, and passes of one position worse on
some machines; `r2gen tune` measures which is faster here.
"""

from __future__ import annotations

import importlib.util
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from r2gen_export.bundle import Dims
from r2gen_export.errors import R2GenError
from r2gen_export.interfaces import Flags, JoiningState, check_room
from r2gen_export.runtime.backends.linked_graph import without_links
from r2gen_export.runtime.backends.openvino_graph import NEVER, ROWS, SLOTS, has_quantised_weights, make_stateful
from r2gen_export.runtime.backends.openvino_import import import_openvino
from r2gen_export.runtime.backends.ort_session import bad_graph, first_line
from r2gen_export.system.cores import thread_count

if TYPE_CHECKING:
    import openvino

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
RowNumbers = NDArray[np.int32]

SETTINGS: Final = {
    "PERFORMANCE_HINT": "LATENCY",
    # Not the bfloat16 or 8-bit cache it would choose by itself: the gate passed float32.
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    # Activations to int8 block by block, as ONNX Runtime does at accuracy level 4; wider groups are slower here.
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "32",
}

TILE: Final = 64
"""Positions up to which a pass costs in proportion; from one more it costs as for 96.

Measured on AVX-512 VNNI at the 1.1B shape in int4: 64 rows 302 ms, 65 rows 455, 96 rows 470 and twice 40 rows 375.
"""


def why_not_openvino() -> str:
    """Empty when OpenVINO is installed."""
    return "" if importlib.util.find_spec("openvino") else "the package openvino is not installed"


class OpenVinoDecoder:
    """A decoder of the `ort` dialect, float32 activations.

    Args:
        path: the graph.
        dims: the bundle's sizes.
        threads: CPU threads, None: the cores this process may use.

    Attributes:
        row_lengths, wide_rows: see `interfaces.RowDecoder`; not with quantised weights.

    Raises:
        R2GenError: `R2G-BUNDLE-GRAPH` when it cannot be loaded or is of another dialect; `R2G-DEVICE-UNAVAILABLE`
            without OpenVINO.
    """

    def __init__(self, path: Path, dims: Dims, *, threads: int | None = None) -> None:
        if message := why_not_openvino():
            raise R2GenError("R2G-DEVICE-UNAVAILABLE", message, "pip install 'r2gen[openvino]', or --device cpu")
        library = import_openvino()
        options = {**SETTINGS, "INFERENCE_NUM_THREADS": thread_count(threads)}
        try:
            core = library.Core()
            with without_links(path) as plain:
                graph = core.read_model(plain)
                # Before quantised weights activations are rounded to int8. The last bit of a sum over masked slots
                # can then matter (0.1 in logits at the 1.1B shape): tokens would depend on a study's neighbours.
                self.row_lengths = self.wide_rows = not has_quantised_weights(graph)
                self._model = core.compile_model(make_stateful(graph), "CPU", options)
        except (RuntimeError, ValueError) as error:
            message = f"OpenVINO does not load it ({first_line(error, path)})"
            raise bad_graph(path, message, "--device cpu; export with --dialect ort for OpenVINO") from error
        self._dims = dims
        self._free: list[openvino.InferRequest] = []
        self._prefix: Floats | None = None
        self._prefix_cache: dict[str, NDArray[np.float32]] = {}

    def share_prefix(self, inputs_embeds: Floats) -> None:
        """Embeddings [1, P, d] that prompts begin with: their part of the cache is computed now, once.

        The first pass also makes OpenVINO rearrange its weights, which belongs to loading.
        """
        self._prefix = None
        _, self._prefix_cache = self.read_apart(inputs_embeds)
        self._prefix = np.ascontiguousarray(inputs_embeds)

    def prefill(self, inputs_embeds: Floats, room: int) -> _CachedState:
        """Read the prompts [B, S, d] float32, all of one length, behind which at most `room` positions follow.

        Raises:
            R2GenError: `R2G-GENERATE-NONFINITE`; `R2G-CONFIG-VALUE` when there are more positions than the model has.
        """
        state = self.open_rows(len(inputs_embeds), inputs_embeds.shape[1] + room)
        state.fill(inputs_embeds)
        return state

    def open_rows(self, rows: int, positions: int) -> _CachedState:
        """See `interfaces.RowDecoder`; the cache grows by itself."""
        check_room(positions, self._dims.max_positions)
        request = self._take()
        state = _CachedState(self, request)
        state.returned = weakref.finalize(state, self._free.append, request)
        return state

    def _take(self) -> openvino.InferRequest:
        """A request no state uses, with an empty cache."""
        request = self._free.pop() if self._free else self._model.create_infer_request()
        request.reset_state()
        return request

    def read_apart(self, prompts: Floats) -> tuple[Floats, dict[str, Floats]]:
        """Logits [K, vocab] behind prompts [K, S, d]; by variable, the cache [K, kv_heads, S, head_dim] they make."""
        request = self._take()
        logits = self.read(request, prompts).copy()
        cache = {variable.name: np.array(variable.state.data) for variable in request.query_state()}
        self._free.append(request)
        return logits, cache

    def read(self, request: openvino.InferRequest, prompts: Floats) -> Floats:
        """Logits [K, vocab] behind prompts [K, S, d], read into the empty cache of a request."""
        count, size = prompts.shape[:2]
        begin = self._load_prefix(request, prompts)
        rows = np.arange(count, dtype=np.int32)
        for part in halves(prompts[:, begin:]):
            slots = np.tile(np.arange(begin + part.shape[1]), (count, 1))
            logits = infer(request, part, np.full(count, begin), slots=slots, rows=rows)
            begin += part.shape[1]
        assert begin == size
        return logits[:, -1]

    def _load_prefix(self, request: openvino.InferRequest, prompts: Floats) -> int:
        """Positions of the prompts that were put into the cache."""
        import openvino

        if self._prefix is None:
            return 0
        size: int = self._prefix.shape[1]
        if prompts.shape[1] <= size or not (prompts[:, :size] == self._prefix).all():
            return 0
        for one in request.query_state():
            one.state = openvino.Tensor(np.repeat(self._prefix_cache[one.name], len(prompts), axis=0))
        return size


def halves(embeds: Floats) -> list[Floats]:
    """Prompts [B, S, d] as the passes that read one of them fastest: two where one takes a little more than a tile.

    Whatever B is, so that a prompt is read alike alone and beside others.
    """
    size = embeds.shape[1]
    if not TILE < size <= TILE * 3 // 2:
        return [embeds]
    return [embeds[:, : (size + 1) // 2], embeds[:, (size + 1) // 2 :]]


def infer(
    request: openvino.InferRequest,
    embeds: Floats,
    starts: Integers,
    *,
    slots: Integers,
    rows: RowNumbers,
    keep: int = 1,
) -> Floats:
    """One pass.

    Args:
        request: whose cache is read and written.
        embeds: [B, n, d].
        starts: each row's first position, [B].
        slots: the position each slot of a row holds, those of this pass included, [B, L].
        rows: which row of the last pass each row goes on from, [B].
        keep: positions that get logits.

    Returns:
        Logits [B, keep, vocab], valid until the request's next pass.
    """
    size = embeds.shape[1]
    inputs: dict[str, Any] = {
        "inputs_embeds": np.ascontiguousarray(embeds, dtype=np.float32),
        "position_ids": starts[:, None] + np.arange(size),
        "logits_to_keep": np.arange(size - keep, size),
        SLOTS: slots,
        ROWS: rows,
    }
    request.infer(inputs, share_inputs=True)
    logits: Floats = request.get_output_tensor(0).data
    return logits


class _CachedState(JoiningState):
    """A `RowState` whose cache is inside OpenVINO: positions taken back stay in it and are masked.

    OpenVINO puts new positions behind all slots of the cache, whatever a row has in use. A prompt that joins is read
    apart; before the next pass the cache is made anew, with each row's own positions first and zeros behind them.

    Attributes:
        returned: gives the request back to the decoder when nobody holds this state any more.
    """

    returned: weakref.finalize[..., Any]

    def __init__(self, decoder: OpenVinoDecoder, request: openvino.InferRequest) -> None:
        super().__init__()
        self._decoder, self._request = decoder, request
        self._slots = np.zeros((0, 0), np.int64)
        """The position each slot of a row holds, [B, L]."""
        self._rows = np.zeros(0, np.int32)
        """Which row of the cache each row goes on from; from `_cached` on, one of the prompts read apart."""
        self._cached = 0
        self._apart: list[dict[str, Floats]] = []

    def _take_back(self, counts: Integers) -> None:
        super()._take_back(counts)
        self._slots[self._slots >= self._lengths[:, None]] = NEVER

    def _read(self, prompts: Floats, row: int) -> Floats:
        count, size = prompts.shape[:2]
        with self._guarded():
            if not self._cached:
                assert row == 0
                logits = self._decoder.read(self._request, prompts)
                self._cached = count
                first = 0
            else:
                logits, cache = self._decoder.read_apart(prompts)
                first = self._cached + len(self._apart)
                self._apart += [{name: array[place] for name, array in cache.items()} for place in range(count)]
        rows = max(row + count, len(self._rows))
        slots = np.full((rows, max(size, self._slots.shape[1])), NEVER)
        slots[: len(self._slots), : self._slots.shape[1]] = self._slots
        slots[row : row + count] = NEVER
        slots[row : row + count, :size] = np.arange(size)
        self._slots = slots
        self._rows = np.append(self._rows, np.zeros(rows - len(self._rows), np.int32))
        self._rows[row : row + count] = first + np.arange(count)
        return logits

    def _move(self, rows: Integers, same: Flags, prompt: int, length: int) -> None:
        self._rows, self._slots = self._rows[rows], self._slots[rows]

    def _forget(self, rows: Integers) -> None:
        # Their place in the cache is used by no other row: the cache is made anew before one joins.
        self._slots[rows] = NEVER

    def _pass(self, embeds: Floats, keep: int) -> Floats:
        with self._guarded():
            if self._apart:
                self._renew()
            places = self._lengths[:, None] + np.arange(embeds.shape[1])
            self._slots = np.concatenate([self._slots, places], axis=1)
            logits = infer(self._request, embeds, self._lengths, slots=self._slots, rows=self._rows, keep=keep)
        self._cached = len(embeds)
        self._rows = np.arange(len(embeds), dtype=np.int32)
        return logits

    def _renew(self) -> None:
        """Make the cache of the rows as they are now, those read apart included."""
        import openvino

        places = [np.flatnonzero(slots != NEVER) for slots in self._slots]
        length = max(len(place) for place in places)
        for variable in self._request.query_state():
            old = variable.state.data
            new = np.zeros((len(self._rows), old.shape[1], length, old.shape[3]), np.float32)
            for target, row, place in zip(new, self._rows.tolist(), places, strict=True):
                source = old[row] if row < self._cached else self._apart[row - self._cached][variable.name]
                target[:, : len(place)] = source[:, place]
            variable.state = openvino.Tensor(new)
        slots = np.full((len(self._rows), length), NEVER)
        for row, place in enumerate(places):
            slots[row, : len(place)] = self._slots[row, place]
        self._slots = slots
        self._rows = np.arange(len(self._rows), dtype=np.int32)
        self._apart.clear()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Only a pass that went well leaves its request to another state."""
        try:
            yield
        except BaseException:
            self.returned.detach()
            raise
