"""Small ONNX graphs that move the rows of a KV cache on a GPU, written without the package `onnx`.

The base install has ONNX Runtime and not `onnx`; a few operators in protobuf's wire format take less than that package.
Source of field numbers: `onnx.proto` (ONNX 1.20).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

OPSET: Final = 18
"""Has every operator used here, and kernels for them in all providers."""

IR_VERSION: Final = 9

INT64: Final = 7
FLOAT_KINDS: Final[dict[Any, int]] = {np.dtype(np.float32): 1, np.dtype(np.float16): 10}
"""`TensorProto.DataType`."""

_INT, _TENSOR, _INTS = 2, 4, 7  # AttributeProto.AttributeType


def move_rows_graph(dtype: Any) -> bytes:
    """Rows of a cache of fixed length: `moved` is `target` with rows of `source` in some places.

    Inputs: `source` [A, kv_heads, L, head_dim], `target` [B, kv_heads, L, head_dim], `take` int64 [M], rows of the one,
    `put` int64 [M, 1], places in the other. Output `moved`, shaped as `target`; it may share its memory, and that of
    `source`: every row is taken before the first one is put.
    """
    nodes = [
        _node("Gather", ["source", "take"], "taken", axis=0),
        _node("ScatterND", ["target", "put", "taken"], "moved"),
    ]
    floats = FLOAT_KINDS[np.dtype(dtype)]
    inputs = [
        _value("source", floats, 4),
        _value("target", floats, 4),
        _value("take", INT64, 1),
        _value("put", INT64, 2),
    ]
    return _model(nodes, inputs, [_value("moved", floats, 4)])


def take_rows_graph(dtype: Any, count: int) -> bytes:
    """Rows of a cache that grows. Inputs: `past.N` [B, kv_heads, P, head_dim], `count` of them, and `rows` int64 [B'].

    Outputs `taken.N` [B', kv_heads, P, head_dim].
    """
    nodes = [_node("Gather", [f"past.{index}", "rows"], f"taken.{index}", axis=0) for index in range(count)]
    return _growing(dtype, count, nodes, "rows")


def take_slots_graph(dtype: Any, count: int) -> bytes:
    """First slots of a cache that grows. Inputs: as in `take_rows_graph`, but `last` int64 [1] for `rows`.

    Outputs `taken.N` [B, kv_heads, last, head_dim].
    """
    nodes = [_node("Constant", [], "axis", value_ints=[2]), _node("Constant", [], "first", value_ints=[0])]
    nodes += [_node("Slice", [f"past.{index}", "first", "last", "axis"], f"taken.{index}") for index in range(count)]
    return _growing(dtype, count, nodes, "last")


def _growing(dtype: Any, count: int, nodes: list[bytes], choice: str) -> bytes:
    floats = FLOAT_KINDS[np.dtype(dtype)]
    inputs = [_value(f"past.{index}", floats, 4) for index in range(count)]
    return _model(
        nodes, [*inputs, _value(choice, INT64, 1)], [_value(f"taken.{index}", floats, 4) for index in range(count)]
    )


def zeros_graph(dtype: Any) -> bytes:
    """`zeros` of the float type and of `shape` int64 [5]."""
    kind = np.dtype(dtype)
    zero = _field(1, 1) + _field(2, FLOAT_KINDS[kind]) + _field(9, bytes(kind.itemsize))  # TensorProto [1]
    attribute = _field(1, b"value") + _field(5, zero) + _field(20, _TENSOR)
    fill = _node("ConstantOfShape", ["shape"], "zeros") + _field(5, attribute)
    return _model([fill], [_value("shape", INT64, 1)], [_value("zeros", FLOAT_KINDS[kind], 5)])


def _node(op: str, inputs: Sequence[str], output: str, **attributes: int | list[int]) -> bytes:
    """NodeProto."""
    parts = [_field(1, name.encode()) for name in inputs] + [_field(2, output.encode()), _field(4, op.encode())]
    for name, value in attributes.items():
        body = _field(1, name.encode())
        if isinstance(value, int):
            body += _field(3, value) + _field(20, _INT)
        else:
            body += b"".join(_field(8, item) for item in value) + _field(20, _INTS)
        parts.append(_field(5, body))
    return b"".join(parts)


def _value(name: str, kind: int, rank: int) -> bytes:
    """ValueInfoProto of a tensor with `rank` open dimensions."""
    dims = b"".join(_field(1, _field(2, f"{name}_{axis}".encode())) for axis in range(rank))
    tensor = _field(1, kind) + _field(2, dims)
    return _field(1, name.encode()) + _field(2, _field(1, tensor))


def _model(nodes: Sequence[bytes], inputs: Sequence[bytes], outputs: Sequence[bytes]) -> bytes:
    """ModelProto."""
    graph = b"".join(_field(1, node) for node in nodes) + _field(2, b"rows")
    graph += b"".join(_field(11, value) for value in inputs) + b"".join(_field(12, value) for value in outputs)
    return _field(1, IR_VERSION) + _field(7, graph) + _field(8, _field(2, OPSET))


def _field(number: int, value: int | bytes) -> bytes:
    """One field of protobuf's wire format: a varint, or bytes with their length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
