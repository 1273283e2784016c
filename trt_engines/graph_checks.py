"""What is known about a graph before a parser sees it: nodes a backend does not take, each with its mend.

The verdicts were found with TensorRT-RTX 1.7.1 (parse and build without a GPU); the parser is TensorRT's own too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import onnx

from r2gen_export.errors import R2GenError
from trt_engines.graph import FLOAT, FLOATS, HALF, Graph, attributes_of

OWN_DOMAINS: Final = ("", "ai.onnx")

CONTRIB_MEND: Final = "export the bundle again with --dialect trt"

SAME_TYPE: Final = frozenset(("Add", "Sub", "Mul", "Div", "Pow", "MatMul", "Gemm", "Conv", "Concat", "Min", "Max"))
"""Operators whose float inputs are of one type in a strongly typed network."""

NEW: Final = frozenset(("Attention", "TensorScatter", "RotaryEmbedding", "RMSNormalization"))
"""Operators of opset 23 and 24, which earlier releases of TensorRT do not parse."""

NORMS: Final = frozenset(("LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization"))

SHOWN: Final = 3
"""Nodes named for one reason; a decoder has the same fault in every layer."""

TYPE_NAMES: Final[dict[int, str]] = {FLOAT: "float32", HALF: "float16", onnx.TensorProto.BFLOAT16: "bfloat16"}


@dataclass(frozen=True)
class Problem:
    """A node a backend does not take: its name and operator, why, and what mends it."""

    node: str
    op: str
    why: str
    mend: str


def find_problems(graph: Graph, supports: Callable[[str], bool]) -> list[Problem]:
    """Every node with a known fault.

    Args:
        graph: the one to be parsed.
        supports: whether the backend's parser knows an operator, by name.
    """
    types = _Types(graph)
    found = [problem for node in graph.nodes for problem in _of_node(node, types, supports)]
    return [*found, *_shared_masks(graph, types)]


def require_clean(problems: Iterable[Problem], product: str, what: str) -> None:
    """Refuse a graph with known faults, every reason with its nodes and mend.

    Raises:
        R2GenError: `R2G-ENGINE-NODE`.
    """
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for one in problems:
        reasons.setdefault((one.op, one.why, one.mend), []).append(one.node)
    if not reasons:
        return
    lines = []
    for (op, why, _), nodes in reasons.items():
        more = f" and {len(nodes) - SHOWN} more" if len(nodes) > SHOWN else ""
        lines.append(f"{op} ({', '.join(nodes[:SHOWN])}{more}): {why}")
    mends = "; ".join(dict.fromkeys(mend for _, _, mend in reasons))
    raise R2GenError("R2G-ENGINE-NODE", f"{product} does not take {what}: {'; '.join(lines)}", mends)


class _Types:
    """Element types and ranks of a graph's values, as far as ONNX infers them."""

    def __init__(self, graph: Graph) -> None:
        model = graph.structure()
        values: list[Any] = [*model.graph.input, *model.graph.output]
        # What is wrong with a graph that contradicts itself, the parser names.
        with suppress(onnx.shape_inference.InferenceError):
            values += onnx.shape_inference.infer_shapes(model).graph.value_info
        self.kinds: dict[str, int] = {one.name: one.type.tensor_type.elem_type for one in values}
        self.kinds |= {name: one.kind for name, one in graph.tensors.items()}
        self.shapes: dict[str, list[int | str]] = {
            one.name: [
                dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in one.type.tensor_type.shape.dim
            ]
            for one in values
        }
        self.stored = graph.tensors

    def floats(self, names: Iterable[str]) -> set[int]:
        """Float types among some values."""
        kinds = {self.kinds.get(name, 0) for name in names}
        return kinds & {*FLOATS, onnx.TensorProto.BFLOAT16}


def _of_node(node: onnx.NodeProto, types: _Types, supports: Callable[[str], bool]) -> Iterator[Problem]:
    def problem(why: str, mend: str) -> Problem:
        return Problem(node.name or node.output[0], node.op_type, why, mend)

    if node.domain not in OWN_DOMAINS:
        yield problem(f"an operator of {node.domain}, not of ONNX", CONTRIB_MEND)
    elif not supports(node.op_type):
        yield problem("its parser does not know this operator", _mend_unknown(node))
    else:
        rule = _RULES.get(node.op_type)
        if rule is not None:
            yield from (problem(*one) for one in rule(node, types))
        if node.op_type in SAME_TYPE and len(kinds := types.floats(node.input)) > 1:
            yield problem(f"its inputs are {_names(kinds)}, networks are strongly typed", "put a Cast before it")
        if node.op_type in NORMS and len(kinds := types.floats(node.input)) > 1:
            why = f"input and scale are {_names(kinds)}, networks are strongly typed"
            yield problem(why, "give both one type, float32 to be safe from overflow")


def _mend_unknown(node: onnx.NodeProto) -> str:
    if node.op_type in ("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"):
        return "export the bundle again with --vision-precision fp32"
    if node.op_type in NEW:
        return "a newer release of the backend"
    return "export the bundle again with this release of r2gen"


def _attention(node: onnx.NodeProto, types: _Types) -> Iterator[tuple[str, str]]:
    attributes = attributes_of(node)
    if any(node.input[4:6]) or any(node.output[1:3]):
        yield "the cache is inside the operator", "write it outside, with TensorScatter: --dialect trt does"
    if attributes.get("softcap"):
        yield f"softcap {attributes['softcap']:g} is not implemented", "export a model without attention soft-capping"
    kinds = types.floats(node.input[:4])
    if len(kinds) > 1:
        yield f"its inputs are {_names(kinds)}, networks are strongly typed", "put a Cast before it"
    if FLOAT in kinds:
        yield "there is no float32 kernel for it", "build with --precision fp16, or write it in plain operators"


def _scatter(node: onnx.NodeProto, types: _Types) -> Iterator[tuple[str, str]]:
    shape = types.shapes.get(node.input[0])
    if shape is not None and len(shape) == 4 and not isinstance(shape[2], int):
        yield f"the cache's length is open ({shape[2] or 'unnamed'})", "give it a fixed one: r2gen build --max-length"


def _dequantize(node: onnx.NodeProto, types: _Types) -> Iterator[tuple[str, str]]:
    codes, scales = types.stored.get(node.input[0]), types.stored.get(node.input[1])
    if codes is not None and scales is not None and codes.kind == onnx.TensorProto.INT8 and scales.load().min() < 0:
        yield "it has negative scales for INT8 codes", "build with --precision fp16 or int4"
    block = attributes_of(node).get("block_size", 0)
    if codes is not None and block and codes.dims[0] % block:
        yield f"blocks of {block} do not fill {codes.dims[0]} rows", "build with --precision fp16"


_RULES: Final[dict[str, Callable[[onnx.NodeProto, _Types], Iterator[tuple[str, str]]]]] = {
    "Attention": _attention,
    "TensorScatter": _scatter,
    "DequantizeLinear": _dequantize,
}


def _shared_masks(graph: Graph, types: _Types) -> Iterator[Problem]:
    """One boolean mask for several layers parses, and then no engine comes of it."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.nodes:
        if node.op_type == "Attention" and len(node.input) > 3 and node.input[3]:
            readers.setdefault(node.input[3], []).append(node)
    for mask, nodes in readers.items():
        if len(nodes) > 1 and types.kinds.get(mask) == onnx.TensorProto.BOOL:
            why = f"the boolean mask {mask} is shared by {len(nodes)} layers"
            mend = "turn it into an additive mask once, with Where"
            yield from (Problem(node.name or node.output[0], node.op_type, why, mend) for node in nodes)


def _names(kinds: Iterable[int]) -> str:
    return " and ".join(sorted(TYPE_NAMES.get(kind, str(kind)) for kind in kinds))
