"""ONNX files of one matrix product, written without the onnx package (the base install has none)."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from r2gen_export.bundle.wire import bytes_field, number_field

TYPES: Final = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6}
"""`TensorProto.DataType`."""

IR_VERSION, OPSET = 8, 17


def matmul_model(shape: tuple[int, ...], kind: np.dtype[Any], weights: NDArray[Any]) -> bytes:
    """A model `y = x @ weights` for x of `shape`: `MatMul` of float32, or `MatMulInteger` of uint8 by int8."""
    whole = kind == np.uint8
    out = "int32" if whole else "float32"
    node = (
        bytes_field(1, b"x")
        + bytes_field(1, b"w")
        + bytes_field(2, b"y")
        + bytes_field(4, b"MatMulInteger" if whole else b"MatMul")
    )
    tensor = b"".join(number_field(1, size) for size in weights.shape) + number_field(2, TYPES[weights.dtype.name])
    tensor += bytes_field(8, b"w") + bytes_field(9, np.ascontiguousarray(weights).tobytes())
    graph = bytes_field(1, node) + bytes_field(2, b"product") + bytes_field(5, tensor)
    graph += bytes_field(11, _value(b"x", kind.name, shape)) + bytes_field(
        12, _value(b"y", out, (shape[0], weights.shape[1]))
    )
    return (
        number_field(1, IR_VERSION)
        + bytes_field(7, graph)
        + bytes_field(8, bytes_field(1, b"") + number_field(2, OPSET))
    )


def _value(name: bytes, kind: str, shape: tuple[int, ...]) -> bytes:
    dims = b"".join(bytes_field(1, number_field(1, size)) for size in shape)
    tensor = number_field(1, TYPES[kind]) + bytes_field(2, dims)
    return bytes_field(1, name) + bytes_field(2, bytes_field(1, tensor))
