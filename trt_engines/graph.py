"""An ONNX graph taken apart to be rewritten: nodes in order, weights read only when they are written again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from r2gen_export.bundle.external_data import ExternalData
from r2gen_export.errors import R2GenError

FLOAT, HALF, INT4 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.INT4
FLOATS: Final = (FLOAT, HALF)
IR_VERSION: Final = 11
DATA: Final = "weights.data"


@dataclass(frozen=True)
class Tensor:
    """A weight or constant. `kind`: ONNX type; `load`: its values, for packed INT4 the bytes [ceil(size / 2)]."""

    kind: int
    dims: tuple[int, ...]
    load: Callable[[], NDArray[Any]]

    @classmethod
    def of(cls, values: NDArray[Any]) -> Tensor:
        """A small constant."""
        return cls(helper.np_dtype_to_tensor_dtype(values.dtype), values.shape, lambda: values)

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        count = int(np.prod(self.dims, dtype=np.int64))
        if self.kind == INT4:
            return -(-count // 2)
        return count * helper.tensor_dtype_to_np_dtype(self.kind).itemsize


class Graph:
    """A model under rewriting.

    Attributes:
        nodes: in the order of execution, none of them `Constant`.
        tensors: initializers by name.
        inputs: what the caller feeds, initializers excepted.
        outputs: what the graph gives.
        opsets: versions by domain.
    """

    def __init__(self, model: onnx.ModelProto, folder: Path) -> None:
        graph = model.graph
        self.opsets = {one.domain: one.version for one in model.opset_import}
        self.tensors = {one.name: _stored(one, folder) for one in graph.initializer}
        self.nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            value = _constant(node, folder)
            if value is None:
                self.nodes.append(node)
            else:
                self.tensors[node.output[0]] = value
        self.inputs = [one for one in graph.input if one.name not in self.tensors]
        self.outputs = list(graph.output)
        self._names = {name for node in self.nodes for name in (*node.input, *node.output)} | self.tensors.keys()

    @classmethod
    def load(cls, path: Path) -> Graph:
        """Read a graph; weights outside it stay on the disk.

        Raises:
            R2GenError: `R2G-BUNDLE-GRAPH`.
        """
        try:
            return cls(onnx.load(path, load_external_data=False), path.parent)
        except Exception as error:  # protobuf's own exception type differs between its releases
            message = f"{path.name} cannot be read as ONNX ({type(error).__name__})"
            raise R2GenError("R2G-BUNDLE-GRAPH", message, "export the bundle again with r2gen export") from error

    def add(
        self, op: str, inputs: Sequence[str], out: str, *, at: list[onnx.NodeProto] | None = None, **attributes: Any
    ) -> str:
        """Append a node to `at` (default: the graph) and return the name of its output, made unique from `out`."""
        out = self.fresh(out)
        node = helper.make_node(op, list(inputs), [out], name=out, **attributes)
        (self.nodes if at is None else at).append(node)
        return out

    def constant(self, values: NDArray[Any], name: str) -> str:
        """A constant under a name made unique from `name`."""
        name = self.fresh(name)
        self.tensors[name] = Tensor.of(values)
        return name

    def integers(self, *values: int) -> str:
        """An int64 constant [n], shared by all who ask for the same one."""
        name = f"trt_int64_{'_'.join(map(str, values))}"
        self.tensors.setdefault(name, Tensor.of(np.array(values, np.int64)))
        return name

    def integer(self, value: int) -> str:
        """An int64 scalar constant, shared likewise."""
        name = f"trt_int64_scalar_{value}"
        self.tensors.setdefault(name, Tensor.of(np.array(value, np.int64)))
        return name

    def fresh(self, name: str) -> str:
        """A name nothing in the graph has yet, now taken."""
        unique, count = name, 0
        while unique in self._names:
            count += 1
            unique = f"{name}_{count}"
        self._names.add(unique)
        return unique

    def producers(self) -> dict[str, onnx.NodeProto]:
        """The node behind every computed value."""
        return {name: node for node in self.nodes for name in node.output if name}

    def consumers(self) -> dict[str, list[onnx.NodeProto]]:
        """The nodes that read each value."""
        found: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                found.setdefault(name, []).append(node)
        return found

    def prune(self) -> None:
        """Drop nodes and weights no output depends on, and inputs nothing reads."""
        needed = {one.name for one in self.outputs}
        kept = []
        for node in reversed(self.nodes):
            if any(name in needed for name in node.output):
                needed.update(name for name in node.input if name)
                kept.append(node)
        self.nodes = kept[::-1]
        self.tensors = {name: one for name, one in self.tensors.items() if name in needed}
        self.inputs = [one for one in self.inputs if one.name in needed]

    def parameter_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(one.nbytes for one in self.tensors.values())

    def structure(self) -> onnx.ModelProto:
        """The model without the values of its weights, those that are shapes excepted: enough to check it."""
        return self._model(_described(name, one) for name, one in self.tensors.items())

    def write(self, folder: Path) -> Path:
        """Write `model.onnx` and its weights, one tensor in memory at a time.

        Returns:
            The path of the graph.

        Raises:
            OSError: when a file cannot be written.
        """
        with ExternalData(folder / DATA) as data:
            written = [
                data.tensor(name, one.load(), kind=one.kind, dims=one.dims) for name, one in self.tensors.items()
            ]
        path = folder / "model.onnx"
        path.write_bytes(self._model(written).SerializeToString(deterministic=True))
        return path

    def _model(self, initializers: Iterable[onnx.TensorProto]) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "r2gen", self.inputs, self.outputs, list(initializers))
        opsets = [helper.make_opsetid(domain, version) for domain, version in self.opsets.items()]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="r2gen")


def _described(name: str, tensor: Tensor) -> onnx.TensorProto:
    if tensor.kind == onnx.TensorProto.INT64:
        return numpy_helper.from_array(tensor.load(), name)
    return onnx.TensorProto(name=name, data_type=tensor.kind, dims=tensor.dims)


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes as Python values."""
    return {one.name: helper.get_attribute_value(one) for one in node.attribute}


def float_array(tensor: Tensor) -> NDArray[np.float32]:
    """Its values as float32."""
    return np.asarray(tensor.load(), np.float32)


def graph_sha256(path: Path) -> str:
    """SHA-256 of a written graph, weights outside it not included."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _constant(node: onnx.NodeProto, folder: Path) -> Tensor | None:
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    ((name, value),) = attributes_of(node).items()
    if name == "value":
        return _stored(value, folder)
    kind = np.int64 if name.startswith("value_int") else np.float32
    return Tensor.of(np.array(value, kind))


def _stored(proto: onnx.TensorProto, folder: Path) -> Tensor:
    """A tensor of a file. External data is mapped when it is read; their place was checked by `open_bundle`."""
    dims, kind = tuple(proto.dims), proto.data_type
    if kind == INT4 and proto.data_location != onnx.TensorProto.EXTERNAL:
        packed = np.frombuffer(proto.raw_data or bytes(value & 255 for value in proto.int32_data), np.uint8)
        return Tensor(kind, dims, lambda: packed)
    if proto.data_location != onnx.TensorProto.EXTERNAL:
        return Tensor(kind, dims, lambda: numpy_helper.to_array(proto))
    entries = {one.key: one.value for one in proto.external_data}
    where, offset = folder / entries["location"], int(entries.get("offset", 0))

    def read() -> NDArray[Any]:
        if kind == INT4:
            size = -(-int(np.prod(dims, dtype=np.int64)) // 2)
            return np.memmap(where, np.uint8, "r", offset, (size,))
        return np.memmap(where, helper.tensor_dtype_to_np_dtype(kind), "r", offset, dims)

    return Tensor(kind, dims, read)
