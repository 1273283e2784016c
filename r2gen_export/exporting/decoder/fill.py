"""From the skeleton to a graph an engine runs: real operators in the place of the stand-ins, weights streamed by."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
import torch
from onnx import helper

from r2gen_export.exporting.decoder.dialects import COS, SIN, Dialect
from r2gen_export.exporting.decoder.graph import GraphBuilder
from r2gen_export.exporting.decoder.quantize import quantize
from r2gen_export.exporting.decoder.skeleton import DOMAIN
from r2gen_export.precision import PRECISIONS

if TYPE_CHECKING:
    from transformers import LlamaConfig

    from r2gen_export.exporting.decoder.weights import Weights

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
        precision: of the layers' weights, one of `PRECISIONS` with the graph's activations.
        head_precision: of the output layer's.
        advance: called behind each decoder layer.

    Returns:
        The graph as `trace_skeleton` describes it, but without `attention_mask`, with the dialect's own inputs, and a
        cache [B, kv_heads, max_sequence_length, head_dim] whose first `position_ids[:, 0]` positions are in use.
    """
    for name, table in zip((COS, SIN), rope_tables(config), strict=True):
        graph.floats(name, table)
    dialect.prologue(graph)
    for node in _packed(skeleton) if dialect.packs else skeleton.graph.node:
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
            names = _name(attributes).split(",")
            _linear(graph, dialect, weights, node, names, head_precision if names == [HEAD] else precision)
            if names[0].endswith("down_proj"):
                advance()
    return _model(skeleton, config, graph, dialect)


def _packed(skeleton: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The skeleton's nodes, the projections of one input as one: q, k and v, then gate and up.

    A packed node's `name` lists its parameters' names. Attention takes q, k and v packed; others are split again.
    """
    together: dict[str, list[onnx.NodeProto]] = {}
    for node in skeleton.graph.node:
        if (node.domain, node.op_type) == (DOMAIN, "Linear"):
            together.setdefault(node.input[0], []).append(node)
    packed = {name: _pack(group) for group in together.values() if len(group) > 1 for name in group[0].output}
    inside = {name for group in together.values() if len(group) > 1 for node in group for name in node.output}
    nodes: list[onnx.NodeProto] = []
    for node in skeleton.graph.node:
        name = node.output[0]
        if name in packed:
            nodes += packed[name]
        elif name not in inside:
            nodes.append(node)
    for node in nodes:
        if (node.domain, node.op_type) == (DOMAIN, "Attention"):
            node.input[:3] = [packed[node.input[0]][0].output[0], "", ""]
    return nodes


def _pack(group: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """One node for the projections of one input; where they are two, gate and up, with the node that parts them."""
    attributes = [{one.name: helper.get_attribute_value(one) for one in node.attribute} for node in group]
    names = [_name(one) for one in attributes]
    out = f"{group[0].output[0]}_packed"
    whole = helper.make_node("Linear", group[0].input, [out], name=out, domain=DOMAIN, bias=attributes[0]["bias"])
    whole.attribute.append(helper.make_attribute("name", ",".join(names)))
    if len(group) == 3:
        return [whole]
    outputs = [node.output[0] for node in group]
    return [whole, helper.make_node("Split", [out], outputs, name=f"{out}_split", axis=-1, num_outputs=len(group))]


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
    names: list[str],
    precision: str,
) -> None:
    """`node` with the weights of the layers `names`, one below the other."""
    out = node.output[0]
    has_bias = any(one.name == "bias" and one.i for one in node.attribute)
    product = f"{out}_product" if has_bias else out
    weight = _joined(weights, names, "weight")  # [N, K]
    title = _title(names)
    if form := PRECISIONS[precision].blocks:
        dialect.matmul(graph, node.input[0], title, quantize(weight, *form), product)
    else:
        transposed = graph.floats(f"{title}.weight", _array(weight.to(_torch_type(graph)).t()))
        graph.node("MatMul", [node.input[0], transposed], product)
    if has_bias:
        bias = graph.floats(f"{title}.bias", _array(_joined(weights, names, "bias")))
        graph.node("Add", [product, bias], out)


def _joined(weights: Weights, names: list[str], parameter: str) -> torch.Tensor:
    tensors = [weights.read(f"{name}.{parameter}") for name in names]
    return torch.cat(tensors) if len(tensors) > 1 else tensors[0]


def _title(names: list[str]) -> str:
    """`model.layers.0.self_attn.q_k_v_proj` for q_proj, k_proj and v_proj of that layer."""
    if len(names) == 1:
        return names[0]
    parent = names[0].rpartition(".")[0]
    return f"{parent}.{'_'.join(name.rpartition('.')[2].removesuffix('_proj') for name in names)}_proj"


def _model(skeleton: onnx.ModelProto, config: LlamaConfig, graph: GraphBuilder, dialect: Dialect) -> onnx.ModelProto:
    inputs = [*(one for one in skeleton.graph.input if one.name != "attention_mask"), *dialect.inputs]
    outputs = list(skeleton.graph.output)
    for value in (*inputs, *outputs):
        kind = value.type.tensor_type
        if value.name.startswith(("past_key_values.", "present.")):
            kind.shape.dim[2].dim_param = CACHE_AXIS
        if value.name == "logits":
            kind.shape.dim[2].dim_value = config.vocab_size  # the trace gives it the stand-in's input's width
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
