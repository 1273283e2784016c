"""Weights and nodes of an ONNX file, read without the onnx package (the base install has none).

Follows the field numbers of `onnx/onnx.proto` (IR version 11).
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from r2gen_export.bundle.wire import Bytes, Span, read_fields, read_varint
from r2gen_export.errors import R2GenError

BYTES: Final = {1: 4.0, 2: 1.0, 3: 1.0, 6: 4.0, 7: 8.0, 9: 1.0, 10: 2.0, 11: 8.0, 16: 2.0, 21: 0.5, 22: 0.5}
"""Of one element, by `TensorProto.DataType`."""

TABLES: Final = {"Gather": (0,), "GroupQueryAttention": (7, 8), "RotaryEmbedding": (1, 2)}
"""Operators and their inputs of which a pass reads single rows only."""


@dataclass(frozen=True)
class Weight:
    """An initializer: its shape, and the bytes it is stored in."""

    shape: tuple[int, ...]
    size: float


@dataclass(frozen=True)
class Node:
    """An operator with its inputs, outputs and whole-number attributes."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    integers: dict[str, int]


@dataclass(frozen=True)
class ModelGraph:
    """A model's main graph."""

    weights: dict[str, Weight]
    nodes: tuple[Node, ...]

    def bytes_per_pass(self) -> float:
        """Bytes of weights that one pass reads: every one, but for tables whose rows are looked up."""
        rows_only: set[str] = set()
        whole: set[str] = set()
        for node in self.nodes:
            tables = TABLES.get(node.op, ())
            for place, name in enumerate(node.inputs):
                (rows_only if place in tables else whole).add(name)
        return sum(weight.size for name, weight in self.weights.items() if name in whole or name not in rows_only)

    def convolved(self) -> int:
        """Weights of convolutions."""
        return sum(
            math.prod(self.weights[name].shape)
            for node in self.nodes
            if "Conv" in node.op
            for name in node.inputs
            if name in self.weights and len(self.weights[name].shape) == 4
        )

    def products(self) -> list[tuple[int, int]]:
        """(K, N) of every product with a weight matrix: `x` [..., K] to [..., N].

        Weights may lie behind `DequantizeLinear`, `Transpose` or `Cast`.
        """
        shapes = {name: weight.shape for name, weight in self.weights.items()}
        found = []
        for node in self.nodes:
            given = [shapes[name] for name in node.inputs if name in shapes]
            if node.op == "MatMulNBits":
                found.append((node.integers["K"], node.integers["N"]))
            elif node.op in ("MatMul", "MatMulInteger", "Gemm", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"):
                matrix = next((shape for shape in given if len(shape) == 2), None)
                if matrix is not None:
                    turned = node.op == "Gemm" and node.integers.get("transB") == 1
                    found.append((matrix[1], matrix[0]) if turned else (matrix[0], matrix[1]))
            elif node.op in ("DequantizeLinear", "Cast", "Identity") and given:
                shapes[node.outputs[0]] = given[0]
            elif node.op == "Transpose" and given:
                shapes[node.outputs[0]] = given[0][::-1]
        return found


def read_graph(path: Path) -> ModelGraph:
    """The main graph of an ONNX file.

    Raises:
        R2GenError: `R2G-BUNDLE-GRAPH` when the file is not one.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            spans = [span for number, span in _fields(data, (0, len(data))) if number == 7 and isinstance(span, tuple)]
            return _graph(data, spans[0])
    except (IndexError, ValueError, KeyError) as error:
        message = f"{path.name} is not an ONNX file"
        raise R2GenError("R2G-BUNDLE-GRAPH", message, "export the bundle again with r2gen export") from error


def _graph(data: Bytes, span: Span) -> ModelGraph:
    weights: dict[str, Weight] = {}
    nodes = []
    for number, value in _fields(data, span):
        if number == 1 and isinstance(value, tuple):
            nodes.append(_node(data, value))
        elif number == 5 and isinstance(value, tuple):
            name, weight = _tensor(data, value)
            weights[name] = weight
    return ModelGraph(weights, tuple(nodes))


def _tensor(data: Bytes, span: Span) -> tuple[str, Weight]:
    shape: list[int] = []
    kind, name = 1, ""
    for number, value in _fields(data, span):
        if number == 1:
            shape += [value] if isinstance(value, int) else list(_varints(data, value))
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number == 8 and isinstance(value, tuple):
            name = _text(data, value)
    return name, Weight(tuple(shape), math.prod(shape) * BYTES.get(kind, 4.0))


def _node(data: Bytes, span: Span) -> Node:
    inputs, outputs, op = [], [], ""
    integers: dict[str, int] = {}
    for number, value in _fields(data, span):
        if not isinstance(value, tuple):
            continue
        if number == 1:
            inputs.append(_text(data, value))
        elif number == 2:
            outputs.append(_text(data, value))
        elif number == 4:
            op = _text(data, value)
        elif number == 5:
            fields = dict(_fields(data, value))
            name, integer = fields.get(1), fields.get(3)
            if isinstance(name, tuple) and isinstance(integer, int):
                integers[_text(data, name)] = integer
    return Node(op, tuple(inputs), tuple(outputs), integers)


def _text(data: Bytes, span: Span) -> str:
    return data[span[0] : span[1]].decode("utf-8")


def _varints(data: Bytes, span: Span) -> Iterator[int]:
    at = span[0]
    while at < span[1]:
        value, at = read_varint(data, at)
        yield value


def _fields(data: Bytes, span: Span) -> Iterator[tuple[int, int | Span]]:
    """(field number, number or span) of a message's fields."""
    return ((number, value) for number, _, value in read_fields(data, *span))
