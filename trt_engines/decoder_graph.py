"""The decoder's graph as an engine wants it: a KV cache of fixed length written in place, and logits where asked for.

Both of a bundle's dialects that engines are built from come out alike: inputs `inputs_embeds` [B, S, d],
`position_ids` int64 [B, S], `logits_to_keep` int64 [K], `past_key_values.N.{key,value}` [B, kv_heads, L, head_dim];
outputs `logits` [B, K, vocab], `present.N.{key,value}` shaped as past and meant to share its memory.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnx
from onnx import helper

from r2gen_export.errors import R2GenError
from trt_engines.graph import Graph, attributes_of

OPSET: Final = 24
"""The first with `TensorScatter`."""

POSITIONS, KEEP, LOGITS = "position_ids", "logits_to_keep", "logits"
PAST, PRESENT = "past_key_values.", "present."
REEXPORT: Final = "export it again: r2gen export ... --dialect trt"


def make_static(graph: Graph) -> None:
    """Turn the `standard` dialect's graph, whose cache grows by `Concat`, into one with `TensorScatter`.

    Raises:
        R2GenError: `R2G-ENGINE-GRAPH` when the graph is not built as optimum builds a LLaMA.
    """
    if POSITIONS not in {one.name for one in graph.inputs}:
        raise _unknown(f"it has no input {POSITIONS}")
    graph.opsets[""] = max(graph.opsets[""], OPSET)
    prologue: list[onnx.NodeProto] = []
    mask = _additive_mask(graph, prologue)
    slot = graph.add("Gather", [POSITIONS, graph.integer(0)], "write_indices", at=prologue, axis=1)
    producers = graph.producers()
    softmaxes = [node for node in graph.nodes if node.op_type == "Softmax"]
    for node in softmaxes:
        added = producers.get(node.input[0])
        if added is None or added.op_type != "Add":
            raise _unknown(f"no mask is added before {node.name}")
        scores = [index for index, name in enumerate(added.input) if _is_product(producers.get(name))]
        if len(scores) != 1:
            raise _unknown(f"the scores before {node.name} are not found")
        added.input[1 - scores[0]] = mask
    written = 0
    for node in graph.nodes:
        if node.op_type == "Concat" and node.output[0].startswith(PRESENT):
            scatter = helper.make_node(
                "TensorScatter", [*node.input, slot], list(node.output), name=node.name, axis=2, mode="linear"
            )
            node.CopyFrom(scatter)
            written += 1
    if not softmaxes or written != 2 * len(softmaxes):
        raise _unknown(f"{len(softmaxes)} softmaxes and {written} tensors of cache")
    graph.nodes = [*prologue, *graph.nodes]
    _skip_nan_guards(graph)
    _keep_logits(graph)
    graph.prune()


def _additive_mask(graph: Graph, nodes: list[onnx.NodeProto]) -> str:
    """[B, 1, S, L] float32: 0 where a position sees a slot of the cache, those up to its own, else -inf."""
    past = next(one.name for one in graph.inputs if one.name.startswith(PAST))
    length = graph.add("Shape", [past], "cache_shape", at=nodes, start=2, end=3)
    last = graph.add("Squeeze", [length], "cache_length", at=nodes)
    slots = graph.add("Range", [graph.integer(0), last, graph.integer(1)], "slots", at=nodes)
    own = graph.add("Unsqueeze", [POSITIONS, graph.integers(1, 3)], "own_slot", at=nodes)
    seen = graph.add("LessOrEqual", [slots, own], "seen", at=nodes)
    values = [
        graph.constant(np.array(value, np.float32), name) for value, name in ((0, "seen_bias"), (-np.inf, "hidden"))
    ]
    return graph.add("Where", [seen, *values], "additive_mask", at=nodes)


def _is_product(node: onnx.NodeProto | None) -> bool:
    """Whether a value is scores: the product of queries and keys, scaled or not."""
    return node is not None and node.op_type in ("MatMul", "Mul", "Div")


def _skip_nan_guards(graph: Graph) -> None:
    """Take out `Where(IsNaN(x), 0, x)` behind softmax: every row sees its own slot, so none is all hidden."""
    producers, same = graph.producers(), {}
    for node in graph.nodes:
        if node.op_type == "Where":
            guard = producers.get(node.input[0])
            if guard is not None and guard.op_type == "IsNaN" and guard.input[0] == node.input[2]:
                same[node.output[0]] = node.input[2]
    for node in graph.nodes:
        for index, name in enumerate(node.input):
            node.input[index] = same.get(name, name)


def _keep_logits(graph: Graph) -> None:
    """Compute logits of the positions `logits_to_keep` names only."""
    head = graph.producers().get(LOGITS)
    if head is None or head.op_type != "MatMul":
        raise _unknown(f"{LOGITS} are not a product with the output layer")
    at = graph.nodes.index(head)
    kept = graph.fresh("kept_positions")
    graph.nodes.insert(at, helper.make_node("Gather", [head.input[0], KEEP], [kept], name=kept, axis=1))
    head.input[0] = kept
    graph.inputs.append(helper.make_tensor_value_info(KEEP, onnx.TensorProto.INT64, ["num_logits"]))
    logits = next(one for one in graph.outputs if one.name == LOGITS)
    logits.type.tensor_type.shape.dim[1].dim_param = "num_logits"


def fix_length(graph: Graph, length: int) -> None:
    """Give the cache a fixed length: TensorRT writes in place only where it knows it.

    Raises:
        R2GenError: `R2G-ENGINE-GRAPH` when the graph has no cache.
    """
    caches = [one for one in (*graph.inputs, *graph.outputs) if one.name.startswith((PAST, PRESENT))]
    if not caches:
        raise _unknown("it has no KV cache")
    for one in caches:
        one.type.tensor_type.shape.dim[2].dim_value = length


def drop_lengths(graph: Graph) -> None:
    """Take the count of valid keys out of `Attention`: the additive mask hides the same slots."""
    for node in graph.nodes:
        if node.op_type == "Attention" and len(node.input) > 6:
            del node.input[4:]
    graph.prune()


def decompose_attention(graph: Graph) -> None:
    """Write `Attention` out in plain operators: there is no float32 kernel for the whole of it.

    Q [B, H, S, hd], K and V [B, kv, L, hd] and the additive mask [B, 1, S, L]; the heads that share keys are a
    dimension of their own, so that keys are not repeated in memory.
    """
    sizes = {
        one.name.replace(PAST, PRESENT): [dim.dim_value for dim in one.type.tensor_type.shape.dim]
        for one in graph.inputs
        if one.name.startswith(PAST)
    }
    nodes: list[onnx.NodeProto] = []
    for node in graph.nodes:
        if node.op_type == "Attention":
            _, groups, length, width = sizes[node.input[1]]
            scale = float(attributes_of(node).get("scale", width**-0.5))
            _plain_attention(graph, node, nodes, groups=groups, length=length, width=width, scale=scale)
        else:
            nodes.append(node)
    graph.nodes = nodes


def _plain_attention(
    graph: Graph,
    node: onnx.NodeProto,
    nodes: list[onnx.NodeProto],
    *,
    groups: int,
    length: int,
    width: int,
    scale: float,
) -> None:
    query, key, value, mask = node.input[:4]
    out = node.output[0]

    def add(op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        return graph.add(op, inputs, f"{out}_{name}", at=nodes, **attributes)

    # [B, H, S, hd] -> [B, kv, H / kv * S, hd]
    rows = add("Reshape", [query, graph.integers(0, groups, -1, width)], "rows")
    turned = add("Transpose", [key], "turned", perm=[0, 1, 3, 2])
    flat = add("MatMul", [rows, turned], "flat_scores")
    split = add("Concat", [add("Shape", [query], "batch_heads_rows", end=3), graph.integers(length)], "split", axis=0)
    scaled = add("Mul", [flat, graph.constant(np.array(scale, np.float32), "scale")], "scaled")
    scores = add("Reshape", [scaled, split], "scores")
    weights = add("Softmax", [add("Add", [scores, mask], "masked")], "weights", axis=-1)
    grouped = add("Reshape", [weights, graph.integers(0, groups, -1, length)], "grouped_weights")
    mixed = add("MatMul", [grouped, value], "mixed")
    nodes.append(helper.make_node("Reshape", [mixed, add("Shape", [query], "shape")], [out], name=out))


def _unknown(what: str) -> R2GenError:
    message = f"the decoder's graph is not one r2gen rewrites for engines: {what}"
    return R2GenError("R2G-ENGINE-GRAPH", message, REEXPORT)
