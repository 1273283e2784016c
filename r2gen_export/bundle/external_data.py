"""A graph's external data, written front to back: no tensor waits in memory for the next one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

ALIGNMENT: Final = 4096
"""Offsets of large tensors, so that each can be memory-mapped (ONNX, External Data)."""

INLINE: Final = 1024
"""Bytes up to which a tensor stays in the graph: shapes and scalars that engines want to see."""


class ExternalData:
    """Writes `path` and hands out the `TensorProto` that point into it. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = 0

    def __enter__(self) -> ExternalData:
        self._file = self._path.open("wb")
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def tensor(
        self, name: str, values: NDArray[Any], *, kind: int | None = None, dims: tuple[int, ...] | None = None
    ) -> onnx.TensorProto:
        """Append `values` in C order.

        Args:
            name: of the initializer.
            values: the bytes to write.
            kind: ONNX type when it is not numpy's (packed INT4).
            dims: shape when it is not numpy's.

        Raises:
            OSError: when the file cannot be written.
        """
        import onnx
        from onnx import helper

        proto = onnx.TensorProto(
            name=name,
            data_type=kind or helper.np_dtype_to_tensor_dtype(values.dtype),
            dims=values.shape if dims is None else dims,
        )
        values = np.ascontiguousarray(values)  # makes a scalar one-dimensional, hence after its shape was taken
        if values.nbytes <= INLINE:
            proto.raw_data = values.tobytes()
            return proto
        padding = -self._size % ALIGNMENT
        self._file.write(b"\0" * padding)
        self._file.write(values.data)
        entries = {"location": self._path.name, "offset": self._size + padding, "length": values.nbytes}
        self._size += padding + values.nbytes
        proto.data_location = onnx.TensorProto.EXTERNAL
        for key, value in entries.items():
            proto.external_data.add(key=key, value=str(value))
        return proto
