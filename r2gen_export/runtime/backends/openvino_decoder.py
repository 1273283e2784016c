"""`decoder/model.onnx` in OpenVINO on the CPU, behind the interface of `ort_decoder.DecoderSession`.

Its 4-bit kernels take wide passes (prompts, batches) better than ONNX Runtime's, and passes of one position worse on
some machines; `r2gen tune` measures which is faster here.
"""

from __future__ import annotations

import importlib.util
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from r2gen_export.bundle import Dims
from r2gen_export.errors import R2GenError
from r2gen_export.interfaces import PassingState, check_room, require_finite
from r2gen_export.runtime.backends.linked_graph import without_links
from r2gen_export.runtime.backends.openvino_graph import NEVER, ROWS, SLOTS, make_stateful
from r2gen_export.runtime.backends.openvino_import import import_openvino
from r2gen_export.runtime.backends.ort_session import bad_graph, first_line
from r2gen_export.system.cores import thread_count

if TYPE_CHECKING:
    import openvino

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

SETTINGS: Final = {
    "PERFORMANCE_HINT": "LATENCY",
    # Not the bfloat16 or 8-bit cache it would choose by itself: the gate passed float32.
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    # Activations to int8 block by block, as ONNX Runtime does at accuracy level 4; wider groups are slower here.
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "32",
}

TILE: Final = 64
"""Rows (batch times positions) up to which a pass costs in proportion; from one more it costs as for 96.

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
                self._model = core.compile_model(make_stateful(core.read_model(plain)), "CPU", options)
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
        state = self.prefill(inputs_embeds, 0)
        # Copies: a state's own memory goes with the next pass.
        self._prefix_cache = {one.name: np.array(one.state.data) for one in state.request.query_state()}
        self._prefix = np.ascontiguousarray(inputs_embeds)

    def prefill(self, inputs_embeds: Floats, room: int) -> _CachedState:
        """Read the prompts [B, S, d] float32, all of one length, behind which at most `room` positions follow.

        Raises:
            R2GenError: `R2G-GENERATE-NONFINITE`; `R2G-CONFIG-VALUE` when there are more positions than the model has.
        """
        check_room(inputs_embeds.shape[1] + room, self._dims.max_positions)
        request = self._free.pop() if self._free else self._model.create_infer_request()
        request.reset_state()
        state = _CachedState(request, inputs_embeds, self._load_prefix(request, inputs_embeds))
        # Only a pass that went well leaves its request to the next report.
        weakref.finalize(state, self._free.append, request)
        return state

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
    """A prompt [B, S, d] as the passes that read it fastest: two where one would take a little more than a tile."""
    rows, size = len(embeds) * embeds.shape[1], embeds.shape[1]
    if size < 2 or not TILE < rows <= TILE * 3 // 2:
        return [embeds]
    return [embeds[:, : (size + 1) // 2], embeds[:, (size + 1) // 2 :]]


class _CachedState(PassingState):
    """A `DecoderState` whose cache is inside OpenVINO: positions taken back stay in it and are masked."""

    def __init__(self, request: openvino.InferRequest, prompts: Floats, cached: int) -> None:
        super().__init__(prompts.shape[1], cached)
        self.request = request
        self._slots = np.arange(cached, dtype=np.int64)
        self._rows = np.arange(len(prompts), dtype=np.int32)
        for part in halves(prompts[:, cached:]):
            self._append(part, 1)

    def rollback(self, count: int) -> None:
        super().rollback(count)
        self._slots[self._slots >= self._length] = NEVER

    def reorder(self, rows: Integers) -> None:
        self._logits = self._logits[rows]
        self._rows = self._rows[rows]

    def _pass(self, embeds: Floats, keep: int) -> Floats:
        size = embeds.shape[1]
        positions = np.arange(self._length, self._length + size, dtype=np.int64)
        self._slots = np.concatenate([self._slots, positions])
        inputs: dict[str, Any] = {
            "inputs_embeds": np.ascontiguousarray(embeds, dtype=np.float32),
            "position_ids": np.tile(positions, (len(embeds), 1)),
            "logits_to_keep": np.arange(size - keep, size),
            SLOTS: self._slots,
            ROWS: self._rows,
        }
        self.request.infer(inputs, share_inputs=True)
        self._rows = np.arange(len(embeds), dtype=np.int32)
        logits: Floats = self.request.get_output_tensor(0).data
        require_finite(logits, "logits")
        return logits
