"""A graph under construction: nodes in order, initializers streamed into external data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from r2gen_export.bundle.external_data import ExternalData

CONTRIB: Final = "com.microsoft"


class GraphBuilder:
    """Collects nodes and initializers.

    Attributes:
        float_type: numpy type of activations, norms and tables: float32, or float16 in a half precision graph.
    """

    def __init__(self, data: ExternalData, *, half: bool) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.float_type: Any = np.float16 if half else np.float32
        self._data = data

    def node(
        self, op: str, inputs: Sequence[str], outputs: Sequence[str] | str, *, domain: str = "", **attributes: Any
    ) -> str:
        """Append a node, named after its first output, and return that output's name."""
        outputs = [outputs] if isinstance(outputs, str) else list(outputs)
        node = helper.make_node(op, list(inputs), outputs, name=outputs[0], domain=domain, **attributes)
        self.nodes.append(node)
        return outputs[0]

    def constant(
        self, name: str, values: NDArray[Any], *, kind: int | None = None, dims: tuple[int, ...] | None = None
    ) -> str:
        """An initializer, written once; arguments as in `ExternalData.tensor`. Returns its name."""
        if name not in self.initializers:
            self.initializers[name] = self._data.tensor(name, values, kind=kind, dims=dims)
        return name

    def floats(self, name: str, values: Any) -> str:
        """An initializer of the graph's float type."""
        with np.errstate(over="ignore"):  # infinity in float16 does not pass the gate, which names the node
            return self.constant(name, np.asarray(values, self.float_type))

    def integers(self, values: int | Sequence[int]) -> str:
        """An int64 initializer named after its values."""
        array = np.array(values, np.int64)
        return self.constant(f"int64_{array.tolist()}".replace(" ", ""), array)
