"""What an engine of TensorRT answers, with a function on the CPU behind it: the rules of its execution contexts.

Each answer follows what NVIDIA documents for the call; a sequence that is undefined there fails the test here. The
double checks names, arities and types, `FakeRuntime` what happens to memory and stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from r2gen_export.runtime.backends.ort_session import session_options
from tests.trt_engines.double import Answer, Double
from tests.trt_engines.fake_cuda import FakeRuntime, array_at

Shape = tuple[int, ...]
Arrays = dict[str, NDArray[Any]]
TYPES = {"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64, "INT32": np.int32}


@dataclass(frozen=True)
class Port:
    """An input or output. `ranges`: of an input, smallest and largest shape in each profile. `alias`: of an output."""

    name: str
    kind: str
    shape: Shape
    ranges: tuple[tuple[Shape, Shape], ...] = ()
    alias: str | None = None

    @property
    def is_input(self) -> bool:
        """Outputs have no ranges."""
        return bool(self.ranges)


@dataclass(frozen=True)
class Plan:
    """A fake engine. `compute` gets every tensor by name, views of the fake GPU's memory, and writes the outputs.

    `output_shape`: shape of an output for the inputs' shapes.
    """

    ports: tuple[Port, ...]
    compute: Callable[[Arrays], None]
    output_shape: Callable[[str, dict[str, Shape]], Shape]
    scratch: int = 4096
    streamable: int = 0

    @property
    def profiles(self) -> int:
        """Optimisation profiles."""
        return max(len(port.ranges) for port in self.ports)


def answers(plan: Plan, cuda: FakeRuntime, make: Callable[[], Double]) -> dict[str, Answer]:
    """Answers for a `Double` that loads this plan and no other. `make`: that double, once it is there."""
    ports = {port.name: port for port in plan.ports}

    def dims(shape: Shape) -> Any:
        return make().make("Dims", values=shape)

    def engine(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        return lambda answer: found.setdefault(f"ICudaEngine.{name}", answer)

    found: dict[str, Answer] = {
        "nptype": lambda kind: TYPES[kind.state.name],
        "Runtime.deserialize_cuda_engine": lambda this, content: make().make(
            "ICudaEngine", budget=None, contexts=0, home=cuda.current
        ),
        "ICudaEngine.num_io_tensors": lambda this: len(plan.ports),
        "ICudaEngine.num_optimization_profiles": lambda this: plan.profiles,
        "ICudaEngine.device_memory_size_v2": lambda this: plan.scratch,
        "ICudaEngine.streamable_weights_size": lambda this: plan.streamable,
        "ICudaEngine.get_weight_streaming_automatic_budget": lambda this: plan.streamable // 2,
        "ICudaEngine.get_tensor_name": lambda this, index: plan.ports[index].name,
        "ICudaEngine.get_tensor_shape": lambda this, name: dims(ports[name].shape),
        "ICudaEngine.get_aliased_input_tensor": lambda this, name: ports[name].alias,
        "ICudaEngine.get_tensor_location": lambda this, name: make().module.TensorLocation.DEVICE,
        "ICudaEngine.get_tensor_dtype": lambda this, name: getattr(make().module.DataType, ports[name].kind),
    }

    @engine("get_tensor_mode")
    def _mode(this: Any, name: str) -> Any:
        return getattr(make().module.TensorIOMode, "INPUT" if ports[name].is_input else "OUTPUT")

    @engine("get_tensor_profile_shape")
    def _ranges(this: Any, name: str, profile: int) -> list[Any]:
        low, high = ports[name].ranges[profile]
        return [dims(low), dims(high), dims(high)]

    @engine("weight_streaming_budget_v2=")
    def _budget(this: Any, value: int) -> None:
        assert not this.state.contexts, "the budget is set before the first context"
        assert 0 <= value <= plan.streamable
        this.state.budget = value

    @engine("create_execution_context")
    def _context(this: Any, how: Any) -> Any:
        strategy = how.state.strategy if hasattr(how.state, "strategy") else how
        assert strategy is make().module.ExecutionContextAllocationStrategy.USER_MANAGED
        assert this.state.home == cuda.current, "the engine belongs to another GPU than this thread's"
        this.state.contexts += 1
        return make().make("IExecutionContext", context=Context(plan, cuda))

    for name in ("set_device_memory", "set_optimization_profile_async", "set_input_shape", "infer_shapes"):
        found[f"IExecutionContext.{name}"] = _forward(name)
    for name in ("set_tensor_address", "execute_async_v3"):
        found[f"IExecutionContext.{name}"] = _forward(name)
    found["IExecutionContext.is_stream_capturable"] = lambda this, stream: True
    found |= _jit_answers(make)
    found["IExecutionContext.get_tensor_shape"] = lambda this, name: dims(this.state.context.shape(name))
    return found


def _jit_answers(make: Callable[[], Double]) -> dict[str, Answer]:
    """TensorRT-RTX's compiled kernels: a cache that grows with every context, and takes back what it wrote."""

    def config(this: Any) -> Any:
        lazy = make().module.DynamicShapesKernelSpecializationStrategy.LAZY
        return make().make("IRuntimeConfig", strategy=None, eager=lazy)

    def serialize(this: Any) -> Any:
        contexts = sum(call.name == "create_execution_context" for call in make().calls)
        return make().make("IHostMemory", content=b"compiled" + bytes(contexts))

    return {
        "ICudaEngine.create_runtime_config": config,
        "IRuntimeConfig.set_execution_context_allocation_strategy": lambda this, how: setattr(
            this.state, "strategy", how
        ),
        "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy": lambda this: this.state.eager,
        "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy=": lambda this, how: setattr(
            this.state, "eager", how
        ),
        "IRuntimeConfig.create_runtime_cache": lambda this: make().make("IRuntimeCache"),
        "IRuntimeConfig.set_runtime_cache": lambda this, cache: True,
        "IRuntimeCache.deserialize": lambda this, content: bytes(content).startswith(b"compiled"),
        "IRuntimeCache.serialize": serialize,
    }


def _forward(name: str) -> Answer:
    return lambda this, *arguments: getattr(this.state.context, name)(*arguments)


class Context:
    """An execution context that user-managed memory was promised to."""

    def __init__(self, plan: Plan, cuda: FakeRuntime) -> None:
        self._plan, self._cuda = plan, cuda
        self._scratch: tuple[int, int] | None = None
        self._profile: int | None = None
        self._shapes: dict[str, Shape] = {}
        self._addresses: dict[str, int] = {}
        self._prepared = self._captured = False

    def set_device_memory(self, memory: int, size: int) -> None:
        self._change()
        assert size >= self._plan.scratch, "less memory than the engine asks for"
        assert memory % 256 == 0
        self._cuda.bytes_at("device", memory, size)
        self._scratch = (memory, size)

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self._change()
        self._shapes, self._addresses, self._profile = {}, {}, profile
        self._cuda.enqueue(stream, lambda: None)
        return 0 <= profile < self._plan.profiles

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        self._change()
        port = self._port(name)
        if self._profile is None or not port.is_input:
            return False
        low, high = port.ranges[self._profile]
        fits = len(shape) == len(low) and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
        self._shapes[name] = tuple(shape)
        return fits

    def infer_shapes(self) -> list[str]:
        return [port.name for port in self._plan.ports if port.is_input and port.name not in self._shapes]

    def shape(self, name: str) -> Shape:
        """Known of outputs once all inputs' are."""
        assert not self.infer_shapes()
        return self._shapes[name] if name in self._shapes else self._plan.output_shape(name, self._shapes)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._change()
        self._port(name)
        self._addresses[name] = memory
        return memory % 256 == 0

    def execute_async_v3(self, stream: int) -> bool:
        if self._scratch is None or self.infer_shapes() or len(self._addresses) < len(self._plan.ports):
            return False
        if any(port.alias and self._addresses[port.name] != self._addresses[port.alias] for port in self._plan.ports):
            return False
        if self._cuda.captured is None:
            self._prepared = True
        else:
            assert self._prepared, "captured before a plain pass of these shapes"
            self._captured = True
        shapes, addresses = dict(self._shapes), dict(self._addresses)
        self._cuda.enqueue(stream, lambda: self._run(shapes, addresses))
        return True

    def _run(self, shapes: dict[str, Shape], addresses: dict[str, int]) -> None:
        assert self._scratch is not None
        self._cuda.bytes_at("device", *self._scratch).fill(0xEE)
        tensors = {}
        for port in self._plan.ports:
            shape = shapes[port.name] if port.is_input else self._plan.output_shape(port.name, shapes)
            tensors[port.name] = array_at(self._cuda, addresses[port.name], shape, np.dtype(TYPES[port.kind]))
        inputs = {name: tensor.ctypes.data for name, tensor in tensors.items()}
        assert len(set(inputs.values())) >= len(inputs) - sum(port.alias is not None for port in self._plan.ports)
        self._plan.compute(tensors)

    def _port(self, name: str) -> Port:
        (port,) = (one for one in self._plan.ports if one.name == name)
        return port

    def _change(self) -> None:
        assert not self._captured, "a context is changed which a graph was captured from"
        self._prepared = False


def decoder_ports(
    *, layers: int, dims: SimpleNamespace, length: int, profiles: tuple[tuple[int, int, int], ...], kind: str = "FLOAT"
) -> tuple[Port, ...]:
    """Tensors of a decoder engine. `profiles`: rows, positions and positions with logits each goes up to."""

    def ranges(shape: Callable[[int, int, int], Shape]) -> tuple[tuple[Shape, Shape], ...]:
        return tuple((shape(1, 1, 1), shape(*one)) for one in profiles)

    head = (dims.num_kv_heads, length, dims.head_dim)
    ports = [
        Port("inputs_embeds", kind, (-1, -1, dims.d_llm), ranges(lambda rows, size, _: (rows, size, dims.d_llm))),
        Port("position_ids", "INT64", (-1, -1), ranges(lambda rows, size, _: (rows, size))),
        Port("logits_to_keep", "INT64", (-1,), ranges(lambda _, __, kept: (kept,))),
        Port("logits", kind, (-1, -1, dims.vocab_size)),
    ]
    for layer in range(layers):
        for part in ("key", "value"):
            past = f"past_key_values.{layer}.{part}"
            ports.append(Port(past, kind, (-1, *head), ranges(lambda rows, _, __: (rows, *head))))
            ports.append(Port(f"present.{layer}.{part}", kind, (-1, *head), alias=past))
    return tuple(ports)


def decoder_output(vocab_size: int) -> Callable[[str, dict[str, Shape]], Shape]:
    """`Plan.output_shape` of a decoder."""

    def shape(name: str, inputs: dict[str, Shape]) -> Shape:
        if name == "logits":
            return (inputs["inputs_embeds"][0], inputs["logits_to_keep"][0], vocab_size)
        return inputs[name.replace("present", "past_key_values")]

    return shape


def graph(path: Any, outputs: tuple[str, ...]) -> Callable[[Arrays], None]:
    """`Plan.compute` by ONNX Runtime on the CPU: the same graph the engine would be built from."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, session_options(), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def compute(tensors: Arrays) -> None:
        results = session.run(list(outputs), {name: tensors[name] for name in names})
        for name, result in zip(outputs, results, strict=True):
            assert math.prod(result.shape) == tensors[name].size
            tensors[name][...] = result

    return compute
