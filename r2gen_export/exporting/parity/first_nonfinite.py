"""Which node of a graph gives the first NaN or infinity (fp16 LayerNorm and Swin's attention are known to)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

from r2gen_export.bundle import Dims
from r2gen_export.runtime.backends.ort_session import session_options

CHUNK: Final = 48
"""Nodes looked at in one run: the outputs of all nodes of a Swin-base together take gigabytes."""

LARGEST: Final = 1_900_000_000
"""Bytes of graph and weights that fit into one protobuf message."""

FLOATS: Final = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


def first_nonfinite(path: Path, feeds: Mapping[str, NDArray[Any]]) -> str | None:
    """The first node, in the graph's order, whose output holds NaN or +infinity although its inputs do not.

    -infinity alone is let pass: attention masks hold it. Sub-graphs are not looked into.

    Args:
        path: the graph, external data beside it; larger ones than `LARGEST` are not searched.
        feeds: its inputs by name.

    Returns:
        Name and operator of the node; None when everything is finite, or the graph is too large.
    """
    data = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
    if data > LARGEST:
        return None
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    types = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.value_info, *model.graph.output)}
    nodes = [(node, name) for node in model.graph.node for name in node.output if types.get(name) in FLOATS]
    known = {value.name for value in model.graph.output}
    kept = list(model.graph.output)
    options = session_options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    for start in range(0, len(nodes), CHUNK):
        part = nodes[start : start + CHUNK]
        names = [name for _, name in part]
        del model.graph.output[:]
        model.graph.output.extend(kept)
        model.graph.output.extend(
            helper.make_tensor_value_info(name, types[name], None) for name in names if name not in known
        )
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for (node, _), value in zip(part, session.run(names, dict(feeds)), strict=True):
            if np.isnan(value).any() or np.isposinf(value).any():
                return f"{node.name or node.output[0]} ({node.op_type})"
    return None


def prefill_feeds(path: Path, dims: Dims, inputs_embeds: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Inputs of the decoder graph for prompts [B, S, d] and an empty cache."""
    rows, length = inputs_embeds.shape[:2]
    feeds: dict[str, NDArray[Any]] = {
        "inputs_embeds": inputs_embeds,
        "attention_mask": np.ones((rows, length), np.int64),
        "position_ids": np.tile(np.arange(length), (rows, 1)),
    }
    inputs = onnx.load(path, load_external_data=False).graph.input
    kinds = {one.name: helper.tensor_dtype_to_np_dtype(one.type.tensor_type.elem_type) for one in inputs}
    static = "logits_to_keep" in kinds
    feeds["logits_to_keep"] = np.array([length - 1])
    feeds["total_sequence_length"] = np.array(length)
    empty = np.zeros((rows, dims.num_kv_heads, length if static else 0, dims.head_dim), np.float32)
    return {name: feeds.get(name, empty).astype(kind) for name, kind in kinds.items()}
