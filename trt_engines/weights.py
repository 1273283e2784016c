"""Weights in the precision an engine is built in: blocks of 4 bits to dense ones and back."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from trt_engines.graph import FLOATS, HALF, INT4, Graph, Tensor, attributes_of, float_array

BLOCK: Final = 32

INT4_OPSET: Final = 23
"""From here on `DequantizeLinear` has blocks of INT4 in every release that builds engines."""


def dequantised(graph: Graph, *, keep: Container[int] = ()) -> None:
    """Replace every `DequantizeLinear` of constants by the weight it stands for, in its scale's float type.

    Args:
        graph: rewritten in place.
        keep: ONNX types of codes that stay. `INT4` where the engine's precision is; never those of 8 bits, for which
            TensorRT wants positive scales: r2gen's carry the sign of the largest weight.
    """
    kept = []
    for node in graph.nodes:
        stored = _stored(graph, node)
        if stored is None or stored.codes.kind in keep:
            kept.append(node)
        else:
            graph.tensors[node.output[0]] = stored.dense()
    graph.nodes = kept


def filled(graph: Graph) -> None:
    """Replace blocks that do not fill a weight's rows, which ONNX admits and engines do not: by blocks of 32 with
    the same codes and scales where those fill them, else by the dense weight.
    """
    kept = []
    for node in graph.nodes:
        stored = _stored(graph, node)
        if stored is None or not stored.block or stored.codes.dims[0] % stored.block == 0:
            kept.append(node)
        elif stored.codes.dims[0] % BLOCK == 0 and stored.block % BLOCK == 0:
            name = graph.fresh(node.input[1])
            rows, scales = stored.codes.dims[0] // BLOCK, stored.scales
            graph.tensors[name] = Tensor(
                scales.kind, (rows, scales.dims[1]), _Repeated(scales, stored.block // BLOCK, rows).load
            )
            small = helper.make_node(
                "DequantizeLinear", [node.input[0], name], node.output, name=node.name, axis=0, block_size=BLOCK
            )
            kept.append(small)
        else:
            graph.tensors[node.output[0]] = stored.dense()
    graph.nodes = kept


def quantised(graph: Graph) -> None:
    """Store every weight of a `MatMul` in 4 bits, blocks of 32 along its rows, as `r2gen export --precision int4` does.

    A weight whose rows do not fill whole blocks stays dense, in the graph's float type.
    """
    nodes = []
    replaced: dict[str, str] = {}
    for node in graph.nodes:
        weight = graph.tensors.get(node.input[1]) if node.op_type == "MatMul" else None
        if weight is None or weight.kind not in FLOATS or len(weight.dims) != 2 or weight.dims[0] % BLOCK:
            nodes.append(node)
            continue
        name = node.input[1]
        if name not in replaced:
            codes, scales = _Codes(weight), _Scales(weight)
            rows, columns = weight.dims
            stored = graph.fresh(f"{name}.codes")
            graph.tensors[stored] = Tensor(INT4, weight.dims, codes.load)
            scale = graph.fresh(f"{name}.scales")
            graph.tensors[scale] = Tensor(weight.kind, (rows // BLOCK, columns), scales.load)
            replaced[name] = graph.add(
                "DequantizeLinear", [stored, scale], f"{name}.dequantised", at=nodes, axis=0, block_size=BLOCK
            )
        node.input[1] = replaced[name]
        nodes.append(node)
    graph.nodes = nodes
    graph.opsets[""] = max(graph.opsets[""], INT4_OPSET)


@dataclass(frozen=True)
class _Quantised:
    """Codes [K, N] with a scale for each `block` rows, 0: for each column."""

    codes: Tensor
    scales: Tensor
    block: int

    def dense(self) -> Tensor:
        """Their values [K, N], computed when they are written."""
        return Tensor(self.scales.kind, self.codes.dims, self._load)

    def _load(self) -> NDArray[Any]:
        codes = self.codes.load()
        if self.codes.kind == INT4:
            # Two's complement of four bits: shift the sign up and back.
            pairs = np.stack([(codes << 4).view(np.int8) >> 4, codes.view(np.int8) >> 4], axis=-1)
            codes = pairs.reshape(-1)[: int(np.prod(self.codes.dims))].reshape(self.codes.dims)
        scales = float_array(self.scales)
        if self.block:
            scales = np.repeat(scales, self.block, axis=0)[: len(codes)]
        dense = codes.astype(np.float32) * scales
        return dense.astype(np.float16) if self.scales.kind == HALF else dense


def _stored(graph: Graph, node: onnx.NodeProto) -> _Quantised | None:
    """What a `DequantizeLinear` of constants reads; None of any other node."""
    codes, scales = (graph.tensors.get(name) for name in (*node.input, "", "")[:2])
    if node.op_type != "DequantizeLinear" or codes is None or scales is None:
        return None
    return _Quantised(codes, scales, int(attributes_of(node).get("block_size", 0)))


class _Repeated:
    """Scales [rows, N]: each of a weight's `times` over, as many as there are rows."""

    def __init__(self, scales: Tensor, times: int, rows: int) -> None:
        self._scales, self._times, self._rows = scales, times, rows

    def load(self) -> NDArray[Any]:
        return np.repeat(self._scales.load(), self._times, axis=0)[: self._rows]


class _Scales:
    """Scales [K / 32, N] of a weight [K, N]: the value of largest magnitude of a block becomes code -8."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight

    def load(self) -> NDArray[Any]:
        """In the weight's float type."""
        return self._scales(self._blocks()).astype(helper.tensor_dtype_to_np_dtype(self._weight.kind))

    def _blocks(self) -> NDArray[np.float32]:
        """The weight as [K / 32, 32, N]."""
        values = float_array(self._weight)
        return values.reshape(-1, BLOCK, values.shape[1])

    def _scales(self, blocks: NDArray[np.float32]) -> NDArray[np.float32]:
        low, high = blocks.min(axis=1), blocks.max(axis=1)
        return np.where(-low > high, low, high) / np.float32(-8)


class _Codes(_Scales):
    """Packed codes of a weight [K, N], the first of a pair in the low half."""

    def load(self) -> NDArray[Any]:
        blocks = self._blocks()
        scales = self._scales(blocks)[:, None]
        inverse = np.divide(1.0, scales, out=np.zeros_like(scales), where=scales != 0)
        codes = np.clip(np.rint(blocks * inverse), -8, 7).astype(np.int8).reshape(-1).view(np.uint8) & 15
        if len(codes) % 2:
            codes = np.append(codes, np.uint8(0))
        packed: NDArray[Any] = codes[0::2] | (codes[1::2] << 4)
        return packed
