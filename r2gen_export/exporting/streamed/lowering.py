"""From the skeleton to a graph an engine runs: real operators in the place of the stand-ins, weights streamed by."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
import torch
from onnx import helper

from r2gen_export.exporting.streamed.dialects import COS, SIN, Dialect
from r2gen_export.exporting.streamed.graph import GraphBuilder
from r2gen_export.exporting.streamed.quantize import quantize
from r2gen_export.exporting.streamed.skeleton import DOMAIN

if TYPE_CHECKING:
    from transformers import LlamaConfig

    from r2gen_export.exporting.streamed.weights import Weights

BITS: Final = {"int4": 4, "int8": 8}
"""Precisions whose weights are quantised in blocks."""

IR_VERSION: Final = 11

CACHE_AXIS: Final = "max_sequence_length"
"""Name of the cache's third axis: its fixed length, of which the first positions are in use."""

HEAD: Final = "lm_head"


def lower(
    skeleton: onnx.ModelProto,
    config: LlamaConfig,
    weights: Weights,
    graph: GraphBuilder,
    dialect: Dialect,
    *,
    precision: str,
    head_precision: str,
    advance: Callable[[], None] = lambda: None,
) -> onnx.ModelProto:
    """Fill a skeleton.

    Args:
        skeleton: what `trace_skeleton` returned for `config`.
        config: the LLM's.
        weights: its tensors, read one at a time in the graph's order.
        graph: an empty builder; its `float_type` is that of the graph's activations.
        dialect: what attention and quantised weights become.
        precision: of the layers' weights: `fp32`, `fp16`, `int8` or `int4`.
        head_precision: of the output layer's.
        advance: called behind each decoder layer.

    Returns:
        The graph as `trace_skeleton` describes it, but without `attention_mask`, and with a cache
        [B, kv_heads, max_sequence_length, head_dim] whose first `position_ids[:, 0]` positions are in use.
    """
    for name, table in zip((COS, SIN), rope_tables(config), strict=True):
        graph.floats(name, table)
    dialect.prologue(graph)
    for node in skeleton.graph.node:
        attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        if node.domain != DOMAIN:
            graph.nodes.append(node)
        elif node.op_type == "Attention":
            dialect.attention(graph, config, node, attributes["scaling"])
        elif node.op_type == "RMSNorm":
            scale = graph.floats(_name(attributes) + ".weight", _array(weights.read(_name(attributes) + ".weight")))
            inputs = [node.input[0], scale]
            graph.node("RMSNormalization", inputs, node.output[0], epsilon=attributes["epsilon"], axis=-1)
        else:
            _linear(
                graph, dialect, weights, node, attributes, head_precision if _name(attributes) == HEAD else precision
            )
            if _name(attributes).endswith("down_proj"):
                advance()
    return _model(skeleton, graph, dialect)


def rope_tables(config: LlamaConfig) -> tuple[Any, Any]:
    """Cosines and sines [max_position_embeddings, head_dim / 2] float32 (`LlamaRotaryEmbedding.forward`)."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rope = LlamaRotaryEmbedding(config)
    positions = torch.arange(config.max_position_embeddings).float()
    angles = positions[:, None] * rope.inv_freq.float()
    return (angles.cos() * rope.attention_scaling).numpy(), (angles.sin() * rope.attention_scaling).numpy()


def _linear(  # noqa: PLR0917
    graph: GraphBuilder,
    dialect: Dialect,
    weights: Weights,
    node: onnx.NodeProto,
    attributes: dict[str, Any],
    precision: str,
) -> None:
    name, out = _name(attributes), node.output[0]
    product = f"{out}_product" if attributes["bias"] else out
    weight = weights.read(f"{name}.weight")  # [N, K]
    bits = BITS.get(precision)
    if bits:
        dialect.matmul(graph, node.input[0], name, quantize(weight, bits), product)
    else:
        transposed = graph.floats(f"{name}.weight", _array(weight.to(_torch_type(graph)).t()))
        graph.node("MatMul", [node.input[0], transposed], product)
    if attributes["bias"]:
        bias = graph.floats(f"{name}.bias", _array(weights.read(f"{name}.bias")))
        graph.node("Add", [product, bias], out)


def _model(skeleton: onnx.ModelProto, graph: GraphBuilder, dialect: Dialect) -> onnx.ModelProto:
    inputs = [one for one in skeleton.graph.input if one.name != "attention_mask"]
    outputs = list(skeleton.graph.output)
    for value in (*inputs, *outputs):
        kind = value.type.tensor_type
        if value.name.startswith(("past_key_values.", "present.")):
            kind.shape.dim[2].dim_param = CACHE_AXIS
        if kind.elem_type == onnx.TensorProto.FLOAT:
            kind.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(graph.float_type))
    opsets = [helper.make_opsetid(domain, version) for domain, version in dialect.opsets.items()]
    whole = helper.make_graph(graph.nodes, "decoder", inputs, outputs, list(graph.initializers.values()))
    return helper.make_model(whole, opset_imports=opsets, ir_version=IR_VERSION, producer_name="r2gen")


def _name(attributes: dict[str, Any]) -> str:
    name: bytes = attributes["name"]
    return name.decode()


def _array(tensor: torch.Tensor) -> Any:
    """numpy has no bfloat16."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _torch_type(graph: GraphBuilder) -> torch.dtype:
    return torch.float16 if graph.float_type is np.float16 else torch.float32
