"""Precision written into the graph: TensorRT's networks are strongly typed and compute what each node says.

In half precision, float32 islands stay where float16 would overflow or lose the meaning: norms, softmax with the mask
added before it, the mean over views and the projector (its LayerNorm spreads every error over all the LLM sees), and
whatever follows from positions alone, which are larger than float16 counts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from r2gen_export.errors import R2GenError
from trt_engines.graph import FLOAT, FLOATS, HALF, Graph, Tensor, attributes_of, float_array

PROJECTOR: Final = "llama_proj"

SINGLE: Final = frozenset(
    ("LayerNormalization", "RMSNormalization", "Softmax", "ReduceMean", "ReduceSum", "Pow", "Sqrt", "Div")
)
"""Computed in float32. Swin's and LLaMA's squares leave float16's range; so do sums before a division."""

BOOLS: Final = frozenset(("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Not", "IsNaN"))
INTEGERS: Final = frozenset(("Shape", "Size", "ArgMax", "ArgMin", "NonZero"))


def make_half(graph: Graph, half_values: Collection[str]) -> None:
    """Turn a float32 (or float16) graph into a strongly typed float16 one with float32 islands.

    Args:
        graph: rewritten in place.
        half_values: names of its inputs and outputs that become float16; others keep their type.

    Raises:
        R2GenError: `R2G-ENGINE-GRAPH` (when weights are written) for a weight float16 cannot hold.
    """
    for value in (*graph.inputs, *graph.outputs):
        if value.name in half_values and value.type.tensor_type.elem_type in FLOATS:
            value.type.tensor_type.elem_type = HALF
    _Retyper(graph, half=True).run()


def make_single(graph: Graph) -> None:
    """Turn a graph into a strongly typed float32 one, inputs and outputs too."""
    for value in (*graph.inputs, *graph.outputs):
        if value.type.tensor_type.elem_type == HALF:
            value.type.tensor_type.elem_type = FLOAT
    _Retyper(graph, half=False).run()


class _Retyper:
    """Walks the nodes once: knows the new type of every value, and casts where a node wants another one."""

    def __init__(self, graph: Graph, *, half: bool) -> None:
        self._graph, self._half = graph, half
        _drop_float_casts(graph)
        self._stored = dict(graph.tensors)
        self._kinds = {one.name: one.type.tensor_type.elem_type for one in graph.inputs}
        self._active = {name for name, kind in self._kinds.items() if kind in FLOATS}
        """What depends on a float input."""
        self._fixed: set[str] = set()
        """What depends on no input at all."""
        self._casts: dict[tuple[str, int], str] = {}
        self._producers, self._consumers = graph.producers(), graph.consumers()
        self._kinds |= {name: one.kind for name, one in self._stored.items()}
        self._projector = _projector(graph)
        self._nodes: list[onnx.NodeProto] = []

    def run(self) -> None:
        nodes, self._graph.nodes = self._graph.nodes, self._nodes
        for node in nodes:
            self._retype(node)
        for value in self._graph.outputs:
            wanted = value.type.tensor_type.elem_type
            if wanted in FLOATS and self._kinds[value.name] != wanted:
                self._cast_output(value.name, wanted)
        self._graph.prune()

    def _retype(self, node: onnx.NodeProto) -> None:
        inputs = [name for name in node.input if name]
        if all(name in self._stored or name in self._fixed for name in inputs):
            self._fixed.update(node.output)
        wanted = FLOAT if self._single(node) else HALF
        # Whoever asks for a shape takes any type.
        floats = [name for name in inputs if self._kinds[name] in FLOATS and node.op_type not in INTEGERS]
        for index, name in enumerate(node.input):
            if name in floats:
                node.input[index] = self._as(name, wanted)
        self._write_type(node, wanted)
        produced = _produced(node, self._kinds)
        self._kinds.update(dict.fromkeys((name for name in node.output if name), produced))
        # Shapes and truth values carry no float's range on: a mask made of them is not activations.
        if produced in FLOATS and any(name in self._active for name in floats):
            self._active.update(node.output)
        self._nodes.append(node)

    def _single(self, node: onnx.NodeProto) -> bool:
        """Whether a node computes in float32."""
        if not self._half or node.op_type in SINGLE or node.name in self._projector:
            return True
        if node.op_type == "DequantizeLinear" and node.output[0] in self._fixed:
            return False
        if not any(name in self._active for name in node.input):
            return True
        readers = {one.op_type for one in self._consumers.get(node.output[0], [])}
        sources = {self._producers[name].op_type for name in node.input if name in self._producers}
        if node.op_type == "Add":
            return "Softmax" in readers or "ReduceMean" in sources
        return node.op_type == "Mul" and "Div" in sources  # x / rms(x), the other half of an RMS norm

    def _as(self, name: str, wanted: int) -> str:
        """The name under which a float value has the wanted type."""
        if self._kinds[name] == wanted:
            return name
        key = (name, wanted)
        if key not in self._casts:
            suffix = "half" if wanted == HALF else "single"
            if name in self._stored:
                out = self._graph.fresh(f"{name}_{suffix}")
                self._graph.tensors[out] = _converted(self._stored[name], name, wanted)
            else:
                out = self._graph.add("Cast", [name], f"{name}_{suffix}", at=self._nodes, to=wanted)
            self._casts[key], self._kinds[out] = out, wanted
        return self._casts[key]

    def _write_type(self, node: onnx.NodeProto, wanted: int) -> None:
        """Attributes that name a float type."""
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype", "output_dtype") and attribute.i in FLOATS:
                attribute.i = wanted
            elif node.op_type == "ConstantOfShape" and attribute.t.data_type in FLOATS:
                value = np.array([float_array(_of(attribute.t)).item()])
                attribute.t.CopyFrom(_tensor(value, wanted))

    def _cast_output(self, name: str, wanted: int) -> None:
        inner = self._graph.fresh(f"{name}_inner")
        for node in self._nodes:
            for names in (node.input, node.output):
                for index, one in enumerate(names):
                    if one == name:
                        names[index] = inner
        self._nodes.append(helper.make_node("Cast", [inner], [name], name=name, to=wanted))


def _drop_float_casts(graph: Graph) -> None:
    """Take out casts between float types; the walk puts in those that are needed."""
    kinds = {one.name: one.type.tensor_type.elem_type for one in graph.inputs}
    kinds |= {name: one.kind for name, one in graph.tensors.items()}
    outputs = {one.name for one in graph.outputs}
    same: dict[str, str] = {}
    kept = []
    for node in graph.nodes:
        for index, name in enumerate(node.input):
            node.input[index] = same.get(name, name)
        kind = _produced(node, kinds)
        kinds.update(dict.fromkeys((name for name in node.output if name), kind))
        if (
            node.op_type == "Cast"
            and kind in FLOATS
            and kinds[node.input[0]] in FLOATS
            and node.output[0] not in outputs
        ):
            same[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    graph.nodes = kept


def _produced(node: onnx.NodeProto, kinds: Mapping[str, int]) -> int:
    """Type of a node's outputs, given the types of its inputs (the operators of a vision encoder and a decoder)."""
    attributes = attributes_of(node)
    if node.op_type in BOOLS:
        return onnx.TensorProto.BOOL
    if node.op_type in INTEGERS:
        return onnx.TensorProto.INT64
    if node.op_type == "Cast":
        return int(attributes["to"])
    if node.op_type == "ConstantOfShape":
        return int(attributes["value"].data_type) if "value" in attributes else FLOAT
    return kinds[node.input[{"Where": 1, "DequantizeLinear": 1}.get(node.op_type, 0)]]


def _projector(graph: Graph) -> set[str]:
    """Names of the nodes that multiply by the projector's weight and add its bias."""
    aliases = {name for node in graph.nodes if any(PROJECTOR in one for one in node.input) for name in node.output}
    return {
        node.name
        for node in graph.nodes
        if any(PROJECTOR in one or one in aliases for one in node.input) and node.op_type in ("MatMul", "Gemm", "Add")
    }


def _converted(tensor: Tensor, name: str, wanted: int) -> Tensor:
    def load() -> NDArray[Any]:
        values = tensor.load()
        if wanted == FLOAT:
            return np.asarray(values, np.float32)
        with np.errstate(over="ignore"):
            half: NDArray[Any] = np.asarray(values, np.float16)
        if np.isinf(half).sum() > np.isinf(values).sum():
            largest = float(np.abs(values[np.isfinite(values)]).max())
            message = f"{name} holds values up to {largest:.3g}, float16 ends at 65504"
            raise R2GenError("R2G-ENGINE-GRAPH", message, "build with --precision fp32")
        return half

    return Tensor(wanted, tensor.dims, load)


def _of(proto: onnx.TensorProto) -> Tensor:
    return Tensor.of(onnx.numpy_helper.to_array(proto))


def _tensor(values: NDArray[Any], kind: int) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(values.astype(helper.tensor_dtype_to_np_dtype(kind)))
