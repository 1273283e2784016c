"""A TensorRT engine on the GPU: a plan becomes passes of fixed shapes, each with its own context and CUDA graph.

Follows NVIDIA's rules for graphs: one execution context for each captured graph, never changed afterwards; the first
pass of a shape is enqueued plainly, because TensorRT then still prepares it; the second is captured, others replay it.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from r2gen_export.errors import R2GenError
from trt_engines.backends import Backend
from trt_engines.cuda import Cuda
from trt_engines.jit_cache import JitCache
from trt_engines.plans import load_plan

if TYPE_CHECKING:
    from tensorrt_stubs import DataType, ICudaEngine, IExecutionContext, TensorRT

Shape = tuple[int, ...]

RESERVE: Final = 1 << 30
"""Bytes of the GPU kept free of weights, for the cache, activations and others, when weights can be streamed."""


@dataclass(frozen=True)
class EngineTensor:
    """An input or output. `shape` has -1 where it depends on the pass.

    `smallest` and `largest`: an input's shape in each optimisation profile. `alias`: the input whose memory an output
    shares, which is how a KV cache is written in place; empty for others.
    """

    name: str
    is_input: bool
    dtype: np.dtype[Any]
    shape: Shape
    smallest: tuple[Shape, ...] = ()
    largest: tuple[Shape, ...] = ()
    alias: str = ""


class EngineRunner:
    """A loaded plan.

    Args:
        plan: the file.
        backend: what it was built with.
        cuda: where it runs.
        jit_cache: file for what TensorRT-RTX compiles on this machine; None: it is not kept.
        weight_budget: bytes of weights kept on the GPU when the plan was built for weight streaming; None: all when
            they fit, else what TensorRT proposes.

    Raises:
        R2GenError: what `load_plan` raises; `R2G-RESOURCE-MEMORY`.
    """

    def __init__(
        self,
        plan: Path,
        backend: Backend,
        cuda: Cuda,
        *,
        jit_cache: Path | None = None,
        weight_budget: int | None = None,
    ) -> None:
        self._trt, self.cuda = backend.trt, cuda
        cuda.make_current()
        with plan.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            # Mapped: a plan of gigabytes is not copied into this process first.
            loaded = load_plan(backend, content, plan.parent.name)
        # The engine needs the runtime, and the runtime the logger, for as long as it lives.
        engine = self._engine = loaded.engine
        self._runtime, self._logger, self._said = loaded.runtime, loaded.logger, loaded.said
        self._stream_weights(weight_budget)
        self._jit = JitCache(self._trt, engine, jit_cache) if backend.name == "tensorrt-rtx" else None
        self.tensors = {one.name: one for one in _tensors(self._trt, engine)}
        # One block for all contexts: passes run one after the other.
        self._scratch_bytes = int(engine.device_memory_size_v2)
        self._scratch = cuda.allocate(self._scratch_bytes)

    @property
    def inputs(self) -> list[EngineTensor]:
        """In the engine's order."""
        return [one for one in self.tensors.values() if one.is_input]

    @property
    def outputs(self) -> list[EngineTensor]:
        """In the engine's order."""
        return [one for one in self.tensors.values() if not one.is_input]

    def profile_of(self, shapes: Mapping[str, Shape]) -> int | None:
        """The optimisation profile that takes these input shapes and is made for the most alike, None without one."""
        fitting = [
            index
            for index in range(int(self._engine.num_optimization_profiles))
            if all(_within(self.tensors[name], shape, index) for name, shape in shapes.items())
        ]

        def excess(index: int) -> float:
            sizes = ((self.tensors[name].largest[index], shape) for name, shape in shapes.items())
            return max(math.prod(largest) / math.prod(shape) for largest, shape in sizes)

        return min(fitting, key=excess, default=None)

    def bind(self, shapes: Mapping[str, Shape], addresses: Mapping[str, int]) -> BoundPass:
        """A pass of fixed shapes over fixed memory.

        Args:
            shapes: of every input.
            addresses: on the GPU, of every input, and of every output that shares none.

        Raises:
            R2GenError: `R2G-ENGINE-MISMATCH` when no profile takes the shapes; `R2G-RESOURCE-MEMORY`.
        """
        profile = self.profile_of(shapes)
        if profile is None:
            wanted = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            message = f"the engine was built for other shapes than {wanted}"
            raise R2GenError("R2G-ENGINE-MISMATCH", message, "r2gen build BUNDLE with wider profiles, or --device cpu")
        self.cuda.make_current()
        context = self._new_context()
        # Shapes and addresses belong to the profile: it comes first.
        if not context.set_optimization_profile_async(profile, self.cuda.stream):
            raise self.failed(f"optimisation profile {profile} was refused")
        self.cuda.synchronize()
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise self.failed(f"shape {list(shape)} of {name} was refused")
        if missing := context.infer_shapes():
            raise self.failed(f"the shape of {', '.join(missing)} is not known")
        for one in self.tensors.values():
            if not context.set_tensor_address(one.name, addresses[one.alias or one.name]):
                raise self.failed(f"the address of {one.name} was refused")
        return BoundPass(self, context)

    def compiled(self) -> None:
        """Called after the first run of a pass: what was compiled for it is kept."""
        if self._jit is not None:
            self._jit.keep()

    def failed(self, what: str) -> R2GenError:
        """A failure of TensorRT, with the last thing it said."""
        said = f": {self._said[-1]}" if self._said else ""
        return R2GenError("R2G-DEVICE-UNAVAILABLE", f"TensorRT: {what}{said}", "see r2gen doctor; --device cpu")

    def close(self) -> None:
        """Give back engine and scratch memory; passes must be gone before."""
        self.cuda.make_current()
        self.cuda.synchronize()
        self.cuda.free(self._scratch)
        del self._jit, self._engine, self._runtime, self._logger

    def _new_context(self) -> IExecutionContext:
        own = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._jit.new_context() if self._jit else self._engine.create_execution_context(own)
        if context is None:
            raise self.failed("no execution context was made")
        context.set_device_memory(self._scratch, self._scratch_bytes)
        return context

    def _stream_weights(self, budget: int | None) -> None:
        """Before the first context: how many bytes of weights stay on the GPU."""
        streamable = int(self._engine.streamable_weights_size)
        if not streamable:
            return
        if budget is None:
            fits = streamable + RESERVE <= self.cuda.free_bytes()
            budget = streamable if fits else int(self._engine.get_weight_streaming_automatic_budget())
        self._engine.weight_streaming_budget_v2 = min(budget, streamable)


class BoundPass:
    """An execution context whose profile, shapes and addresses stay as they are; made by `EngineRunner.bind`."""

    def __init__(self, runner: EngineRunner, context: IExecutionContext) -> None:
        self._runner, self._context = runner, context
        self._passes = 0
        self._graph: Any = None
        self._before: list[tuple[Any, int]] = []
        self._after: list[tuple[int, Any]] = []

    def shape(self, name: str) -> Shape:
        """Shape of a tensor in this pass."""
        return tuple(self._context.get_tensor_shape(name))

    def stage(self, before: Sequence[tuple[Any, int]], after: Sequence[tuple[int, Any]]) -> None:
        """Copies that belong to every run.

        Args:
            before: pinned arrays and the addresses they go to.
            after: addresses and the pinned arrays they come into.
        """
        self._before, self._after = list(before), list(after)

    def run(self, *, captured: bool) -> None:
        """Copy in, compute, copy out, and wait.

        Args:
            captured: as a CUDA graph from the second run on. For passes that come often: a graph takes memory.

        Raises:
            R2GenError: `R2G-DEVICE-UNAVAILABLE`.
        """
        cuda = self._runner.cuda
        # A report that is streamed is generated in a thread of its own, not in the one that loaded the engine.
        cuda.make_current()
        if captured and self._graph is None and self._passes and self._capturable():
            self._graph = cuda.capture(self._enqueue)
        if self._graph is not None:
            cuda.launch(self._graph)
        else:
            self._enqueue()
        self._passes += 1
        cuda.synchronize()
        if self._passes == 1:
            self._runner.compiled()

    def _capturable(self) -> bool:
        """TensorRT-RTX says so itself; with TensorRT, these graphs have nothing in them that needs the CPU."""
        if hasattr(self._context, "is_stream_capturable"):
            return bool(self._context.is_stream_capturable(self._runner.cuda.stream))
        return True

    def _enqueue(self) -> None:
        cuda = self._runner.cuda
        for array, address in self._before:
            cuda.upload(array, address)
        if not self._context.execute_async_v3(cuda.stream):
            raise self._runner.failed("a pass could not be enqueued")
        for address, array in self._after:
            cuda.download(address, array)

    def close(self) -> None:
        """Give back the graph; the context goes with this object."""
        self._runner.cuda.make_current()
        if self._graph is not None:
            self._runner.cuda.drop(self._graph)
            self._graph = None


def _within(tensor: EngineTensor, shape: Shape, profile: int) -> bool:
    bounds = zip(tensor.smallest[profile], shape, tensor.largest[profile], strict=True)
    return all(low <= size <= high for low, size, high in bounds)


def _tensors(trt: TensorRT, engine: ICudaEngine) -> list[EngineTensor]:
    found = []
    for index in range(int(engine.num_io_tensors)):
        name = engine.get_tensor_name(index)
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
            message = f"the engine takes {name} from the host, which is not how it was built to be"
            raise R2GenError("R2G-ENGINE-MISMATCH", message, "build it again: r2gen build BUNDLE")
        dtype, shape = _numpy_type(trt, engine.get_tensor_dtype(name)), tuple(engine.get_tensor_shape(name))
        if not is_input:
            found.append(EngineTensor(name, False, dtype, shape, alias=engine.get_aliased_input_tensor(name) or ""))
            continue
        ranges = [
            engine.get_tensor_profile_shape(name, profile) for profile in range(int(engine.num_optimization_profiles))
        ]
        smallest, largest = (tuple(tuple(one[end]) for one in ranges) for end in (0, 2))
        found.append(EngineTensor(name, True, dtype, shape, smallest, largest))
    return found


def _numpy_type(trt: TensorRT, kind: DataType) -> np.dtype[Any]:
    try:
        return np.dtype(trt.nptype(kind))
    except TypeError as error:
        message = f"a tensor of type {kind} has no counterpart in numpy"
        raise R2GenError("R2G-ENGINE-MISMATCH", message, "r2gen build BUNDLE with --precision fp16 or fp32") from error
