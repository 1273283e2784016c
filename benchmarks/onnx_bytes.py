"""ONNX files of one matrix product, written without the onnx package (the base install has none)."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

TYPES: Final = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6}
"""`TensorProto.DataType`."""

IR_VERSION, OPSET = 8, 17


def matmul_model(shape: tuple[int, ...], kind: np.dtype[Any], weights: NDArray[Any]) -> bytes:
    """A model `y = x @ weights` for x of `shape`: `MatMul` of float32, or `MatMulInteger` of uint8 by int8."""
    whole = kind == np.uint8
    out = "int32" if whole else "float32"
    node = _bytes(1, b"x") + _bytes(1, b"w") + _bytes(2, b"y") + _bytes(4, b"MatMulInteger" if whole else b"MatMul")
    tensor = b"".join(_number(1, size) for size in weights.shape) + _number(2, TYPES[weights.dtype.name])
    tensor += _bytes(8, b"w") + _bytes(9, np.ascontiguousarray(weights).tobytes())
    graph = _bytes(1, node) + _bytes(2, b"product") + _bytes(5, tensor)
    graph += _bytes(11, _value(b"x", kind.name, shape)) + _bytes(12, _value(b"y", out, (shape[0], weights.shape[1])))
    return _number(1, IR_VERSION) + _bytes(7, graph) + _bytes(8, _bytes(1, b"") + _number(2, OPSET))


def _value(name: bytes, kind: str, shape: tuple[int, ...]) -> bytes:
    dims = b"".join(_bytes(1, _number(1, size)) for size in shape)
    tensor = _number(1, TYPES[kind]) + _bytes(2, dims)
    return _bytes(1, name) + _bytes(2, _bytes(1, tensor))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
