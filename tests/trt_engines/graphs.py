"""Graphs for the tests of builds: run one in ONNX Runtime on the CPU, make small ones with a single fault."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

CAPABILITY = "8.9"

needs_rtx = pytest.mark.skipif(
    sys.platform != "linux" or __import__("platform").machine() != "x86_64",
    reason="TensorRT-RTX is published for Linux on x86-64 (and Windows, where these tests were never run)",
)


def open_session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_decoder(path: Path, embeds: NDArray[np.float32], *, length: int, start: int, parts: list[int]) -> Any:
    """Logits [1, n, vocab] float32 of embeds [1, n, d] behind `start` positions of a cache of zeros, in passes."""
    session = open_session(path)
    inputs = {one.name: one for one in session.get_inputs()}
    kind = np.float16 if inputs["inputs_embeds"].type == "tensor(float16)" else np.float32
    static = "logits_to_keep" in inputs
    cache = {
        name: np.zeros((1, one.shape[1], length if static else start, one.shape[3]), kind)
        for name, one in inputs.items()
        if name.startswith("past")
    }
    names = [one.name for one in session.get_outputs()]
    found, done = [], 0
    for size in parts:
        feeds = {
            "inputs_embeds": embeds[:, done : done + size].astype(kind),
            "position_ids": np.arange(start + done, start + done + size)[None],
            **cache,
        }
        if static:
            feeds["logits_to_keep"] = np.arange(size)
        else:
            feeds["attention_mask"] = np.ones((1, start + done + size), np.int64)
        given = dict(zip(names, session.run(None, feeds), strict=True))
        found.append(given["logits"].astype(np.float32))
        cache = {name: given[name.replace("past_key_values", "present")] for name in cache}
        done += size
    return np.concatenate(found, axis=1)


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[Any]]],
    outputs: dict[str, tuple[int, list[Any]]],
    constants: dict[str, NDArray[Any]] | None = None,
    *,
    opset: int = 24,
) -> onnx.ModelProto:
    """A model from its parts; types and shapes by name."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, *one) for name, one in inputs.items()],
        [helper.make_tensor_value_info(name, *one) for name, one in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    domains = {node.domain for node in nodes} - {""}
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=11)


def attention_model(
    kind: int, *, layers: int = 1, boolean_mask: bool = False, past: bool = False, **attributes: Any
) -> Any:
    """`layers` attention nodes behind one another over one mask: Q, K and V [1, 2, 8, 16]."""
    shape = [1, 2, 8, 16]
    names = ["q", "k", "v"]
    inputs: dict[str, tuple[int, list[Any]]] = dict.fromkeys(names, (kind, shape))
    inputs["mask"] = (TensorProto.BOOL if boolean_mask else kind, [1, 1, 8, 8])
    nodes, query = [], "q"
    for layer in range(layers):
        reads, gives = [query, "k", "v", "mask"], [f"a{layer}"]
        if past:
            inputs |= {"past_k": (kind, shape), "past_v": (kind, shape)}
            inputs["mask"] = (kind, [1, 1, 8, 16])
            reads, gives = [*reads, "past_k", "past_v"], [*gives, "present_k", "present_v"]
        nodes.append(helper.make_node("Attention", reads, gives, name=f"attention.{layer}", **attributes))
        query = f"a{layer}"
    return model_of(nodes, inputs, {query: (kind, shape)})
