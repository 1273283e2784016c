"""What the tests of this folder run in a process with the imitated GPU: `python program.py FUNCTION ARGUMENTS`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks.gpu.imitated import CopyLog
from benchmarks.gpu.imitated.copies import DOWN, UP
from r2gen_export import interfaces
from r2gen_export.bundle import Dims
from r2gen_export.errors import R2GenError
from r2gen_export.runtime.backends import ort_vision as sessions
from r2gen_export.runtime.backends.gpu_kv_cache import CudaGraphs, DeviceMemory, DevicePass, host_value
from r2gen_export.runtime.backends.ort_decoder import DecoderSession
from r2gen_export.runtime.backends.ort_kv_cache import StaticDecoder
from r2gen_export.runtime.backends.ort_providers import CPU, CUDA, PLAIN, Acceleration, choose_providers
from r2gen_export.runtime.backends.placement import nodes_on_cpu

PROVIDERS = [CUDA, CPU]


def binding() -> Any:
    """A pass whose logits are its embeddings reshaped: what is written before a run is what the run reads."""
    from onnx import TensorProto, helper

    inputs = [helper.make_tensor_value_info("inputs_embeds", TensorProto.FLOAT, [1, 1, 4])]
    inputs += [
        helper.make_tensor_value_info(name, TensorProto.INT64, shape)
        for name, shape in (("position_ids", [1, 1]), ("logits_to_keep", [1]))
    ]
    node = helper.make_node("Reshape", ["inputs_embeds", "shape"], ["logits"])
    graph = helper.make_graph(
        [node],
        "reshape",
        inputs,
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 1, 4])],
        [helper.make_tensor("shape", TensorProto.INT64, [3], [1, 1, 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = ort.InferenceSession(model.SerializeToString(), providers=PROVIDERS)
    static = StaticDecoder(session, [], (1, 1), np.float32, (4, 4), takes_total=False)
    bound = DevicePass(static, DeviceMemory(), [], (1, 1, 64, 1), size=1, keep=1, graphs=CudaGraphs(False))
    first = bound.run(np.array([[[1, 2, 3, 4]]], np.float32), np.array([0])).ravel().tolist()
    second = bound.run(np.array([[[5, 6, 7, 8]]], np.float32), np.array([1])).ravel().tolist()
    return {"provider": session.get_providers()[0], "runs": [first, second]}


def host_input() -> Any:
    """A shape that an operator of the GPU reads in host memory: what is written after binding is what a run reads."""
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("ConstantOfShape", ["shape"], ["filled"])],
        "fill",
        [helper.make_tensor_value_info("shape", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("filled", TensorProto.FLOAT, ["n"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = ort.InferenceSession(model.SerializeToString(), providers=PROVIDERS)
    array = np.array([3])
    bound = session.io_binding()
    value = host_value(array)
    bound.bind_ortvalue_input("shape", value)
    sizes = []
    for size in (5, 9):
        array[...] = size
        bound.bind_output("filled", "cuda")
        session.run_with_iobinding(bound)
        sizes.append(bound.get_outputs()[0].shape())
    return sizes


def _look_at_no_logits() -> None:
    """Kernels do nothing here, and what they leave behind may be NaN."""
    interfaces.require_finite = lambda *_: None
    interfaces.finite_rows = lambda logits: np.ones(len(logits), bool)


def passes(folder: str, sizes: str) -> Any:
    """For every `DIALECT-PRECISION/model.onnx` in a folder: placement, and copies of each kind of pass."""
    dims = Dims(**json.loads(sizes))
    _look_at_no_logits()
    return {path.name: _decoder(path / "model.onnx", dims) for path in sorted(Path(folder).iterdir())}


def _decoder(path: Path, dims: Dims) -> dict[str, Any]:
    try:
        session = DecoderSession(path, dims, providers=PROVIDERS, acceleration=Acceleration())
    except R2GenError as error:
        return {"refused": error.code, "message": error.message}
    rng, log = np.random.default_rng(0), CopyLog()
    row = dims.num_kv_heads * dims.head_dim * 40 * np.dtype(session.dtype).itemsize

    def embeds(rows: int, size: int) -> Any:
        return rng.normal(size=(rows, size, dims.d_llm)).astype(np.float32)

    def copied(work: Any) -> dict[str, int]:
        log.reset()
        work()
        copies = log.copies()
        return {
            "up": sum(copy.kind == UP for copy in copies),
            "up_bytes": sum(copy.bytes for copy in copies if copy.kind == UP),
            "down": sum(copy.kind == DOWN for copy in copies),
            "down_bytes": sum(copy.bytes for copy in copies if copy.kind == DOWN),
            "cache": sum(copy.bytes >= row for copy in copies),
            **{name: log.counter(name) for name in ("launches", "graphs", "captures")},
        }

    found: dict[str, Any] = {"on_cpu": nodes_on_cpu(session._session), "cuda_graph": session.acceleration.cuda_graph}
    sizes = embeds(1, 40), embeds(1, 5), embeds(1, 1), embeds(3, 1)
    for _ in range(3):  # the first one grows its cache, the second one binds its passes anew
        _report(session, copied, found, *sizes)
    batch = session.prefill(embeds(5, 40), 24)
    for _ in range(2):
        batch.decode(embeds(5, 1))
    found["batch of 5"] = copied(lambda: batch.decode(embeds(5, 1)))
    batch.reorder(np.array([0, 2, 3, 4]))
    batch.reorder(np.array([0, 1, 2]))
    batch.decode(embeds(3, 1))
    return found


def _report(  # noqa: PLR0917
    session: DecoderSession, copied: Any, found: dict[str, Any], prompt: Any, five: Any, token: Any, three: Any
) -> None:
    held: list[Any] = []
    found["prefill"] = copied(lambda: held.append(session.prefill(prompt, 24)))
    state = held[0]
    for _ in range(2):
        state.decode(token)
    found["step"] = copied(lambda: state.decode(token))
    state.extend(five)
    found["rollback"] = copied(lambda: state.rollback(3))
    state.reorder(np.zeros(3, np.int64))
    state.decode(three)
    state.reorder(np.array([0, 0, 1]))
    state.decode(three)
    found["reorder"] = copied(lambda: state.reorder(np.array([2, 0, 1])))
    found["beams"] = copied(lambda: state.decode(three))


def moving() -> Any:
    """Memory that 100 steps of beam search take of a GPU, at the 7B shape; it is never touched, as nothing computes."""
    from functools import partial

    from r2gen_export.runtime.backends.gpu_kv_cache import DeviceCache, RowMover
    from r2gen_export.runtime.backends.ort_session import open_session

    log, open_graph = CopyLog(), partial(open_session, providers=PROVIDERS, threads=1)
    static = StaticDecoder(None, [("", "")] * 64, (32, 128), np.float16, (4096, 32000), takes_total=True)  # type: ignore[arg-type]
    cache = DeviceCache(static, RowMover(DeviceMemory(), np.float16, open_graph), CudaGraphs(False), 3, 256)
    taken = [log.counter("live_bytes")]
    for step in range(100):
        cache.reorder(np.array([1, 0, 0]), np.ones(3, bool), 80, 81 + step)
        taken.append(log.counter("live_bytes"))
    return taken


def threads(path: str, sizes: str) -> Any:
    """Passes captured by reports that are streamed, each in a thread of its own, through one worker."""
    from threading import Thread

    from r2gen_export.runtime.backends.gpu_thread import Worker

    _look_at_no_logits()
    worker, dims, log = Worker(), Dims(**json.loads(sizes)), CopyLog()
    session = worker.run(lambda: DecoderSession(Path(path), dims, providers=PROVIDERS, acceleration=Acceleration()))
    captures = []

    def report() -> None:
        state = session.prefill(np.zeros((1, 40, dims.d_llm), np.float32), 24)
        for _ in range(3):
            state.decode(np.zeros((1, 1, dims.d_llm), np.float32))

    for _ in range(3):
        log.reset()
        thread = Thread(target=lambda: worker.run(report))
        thread.start()
        thread.join()
        captures.append(log.counter("captures"))
    return captures


def selection() -> Any:
    """What `auto`, and `cuda` when asked for, make of this machine."""
    choice = choose_providers("auto")
    try:
        asked = choose_providers("cuda").name
    except R2GenError as error:
        asked = error.render()
    return {"auto": choice.name, "steps": choice.steps, "cuda": asked}


def opening(path: str, sizes: str) -> Any:
    """The error of a decoder for which the GPU's memory does not suffice."""
    try:
        DecoderSession(Path(path), Dims(**json.loads(sizes)), providers=PROVIDERS, acceleration=PLAIN)
    except R2GenError as error:
        return error.render()
    return ""


def failing_pass(path: str) -> Any:
    """A vision encoder whose convolution fails on this GPU: the error, and what the library prints."""
    try:
        session = sessions.VisionSession(Path(path), providers=PROVIDERS)
    except R2GenError as error:
        return {"error": error.render(), "providers": []}
    try:
        session.encode(np.zeros((1, 3, 32, 32), np.float32))
    except R2GenError as error:
        return {"error": error.render(), "providers": session._session.get_providers()}
    return {"error": ""}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
