"""CUDA's runtime API over host memory: the real module's names, signatures, structures and enumerations, other bodies.

What goes to the stream waits there until somebody synchronises, as it may on a GPU. Fresh memory holds garbage; access
beyond an allocation, after it was freed, or at odds with a capture fails the test. Each thread has a current GPU, 0 at
first, and work for the stream of another one fails too, copies included, which CUDA itself would let pass.
"""

from __future__ import annotations

import inspect
import itertools
import re
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

OK = 0
Work = Callable[[], None]
NUMBERS = {"size_t", "int", "unsigned int", "unsigned long long"}


class FakeRuntime:
    """Stands for `cuda.bindings.runtime`.

    Args:
        real: that module.
        memory: bytes of each GPU; asking for more is answered with the real module's out-of-memory error.
        devices: how many GPUs.

    Attributes:
        calls: names of the functions called, in order; `cudaSetDevice` left out, which what follows depends on.
        blocks: allocations by address, each with its kind and the GPU that was current.
    """

    def __init__(self, real: Any, memory: int = 1 << 30, devices: int = 1) -> None:
        self._real, self._memory, self._devices = real, memory, devices
        self._thread = threading.local()
        self.calls: list[str] = []
        self.blocks: dict[int, tuple[str, NDArray[np.uint8], int]] = {}
        self._streams: dict[int, list[Work]] = {}
        self._homes: dict[int, int] = {}
        self._graph_homes: dict[int, int] = {}
        self._graphs: dict[int, list[Work]] = {}
        self._handles = itertools.count(0x5000)
        self.captured: list[Work] | None = None

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._real, name)
        if isinstance(real, type) or name.startswith("make_") or name == "cudaGetErrorString":
            return real
        body = inspect.getattr_static(type(self), f"_{name}", None)
        assert body is not None, f"{name} was called and the test has no body for it"

        def call(*arguments: Any) -> tuple[Any, ...]:
            self._check(name, real, arguments)
            if name != "cudaSetDevice":
                self.calls.append(name)
            if name == "cudaMalloc" and arguments[0] > self._cudaMemGetInfo()[0]:
                return (self._real.cudaError_t.cudaErrorMemoryAllocation, None)
            return (self._real.cudaError_t(OK), *(body(self, *arguments) or ()))

        return call

    def _check(self, name: str, real: Any, arguments: tuple[Any, ...]) -> None:
        """Against the signature in the real function's docstring, which says more than `inspect` knows."""
        inspect.signature(real).bind(*arguments)
        declared = re.match(rf"{name}\((.*?)\)$", real.__doc__.strip().splitlines()[0])[1]
        for value, text in zip(arguments, (one.strip() for one in declared.split(",") if one), strict=True):
            kind, _, rest = text.rpartition(" ")
            if kind in NUMBERS:
                fits = isinstance(value, int) and (value >= 0 or kind == "int")
            elif found := re.search(r"(?:Optional\[)?(cuda\w+)\]?$", rest if ":" in text else ""):
                fits = isinstance(value, getattr(self._real, found[1]))
            else:
                fits = hasattr(value, "__int__")
            assert fits, f"{name}: {value!r} is not {text}"

    # GPUs

    @property
    def current(self) -> int:
        """The calling thread's GPU."""
        return getattr(self._thread, "device", 0)

    def _cudaGetDeviceCount(self) -> tuple[int]:
        return (self._devices,)

    def _cudaSetDevice(self, device: int) -> None:
        assert 0 <= device < self._devices
        self._thread.device = device

    # Memory

    def _cudaMemGetInfo(self) -> tuple[int, int]:
        used = [len(block) for kind, block, home in self.blocks.values() if (kind, home) == ("device", self.current)]
        return self._memory - sum(used), self._memory

    def _allocate(self, kind: str, size: int) -> tuple[int]:
        assert self.captured is None, "memory is asked for during a capture"
        block = np.full(size + 256, 0xCD, np.uint8)
        block = block[-block.ctypes.data % 256 :][:size]
        self.blocks[block.ctypes.data] = (kind, block, self.current)
        return (block.ctypes.data,)

    def _cudaMalloc(self, size: int) -> tuple[int]:
        return self._allocate("device", size)

    def _cudaMallocHost(self, size: int) -> tuple[int]:
        return self._allocate("pinned", size)

    def _free(self, kind: str, address: int) -> None:
        assert not any(self._streams.values()), "memory is freed which the stream may still use"
        found, block, _ = self.blocks.pop(address)
        assert found == kind
        block[:] = 0xDD

    def _cudaFree(self, address: int) -> None:
        self._free("device", address)

    def _cudaFreeHost(self, address: int) -> None:
        self._free("pinned", address)

    def bytes_at(self, kind: str, address: int, size: int) -> NDArray[np.uint8]:
        """Memory of an allocation; fails when it is not all within one of that kind."""
        for start, (found, block, _) in self.blocks.items():
            if found == kind and start <= address and address + size <= start + len(block):
                return block[address - start :][:size]
        raise AssertionError(f"{size} bytes at {address:#x} are not within {kind} memory")

    # The stream

    def enqueue(self, stream: Any, work: Work) -> None:
        """Put work on a stream, or into the graph that is being captured."""
        assert self.current == self._homes[int(stream)], "the stream belongs to another GPU than this thread's"
        pending = self._streams[int(stream)]
        (pending if self.captured is None else self.captured).append(work)

    def _cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any]:
        handle = next(self._handles)
        self._streams[handle], self._homes[handle] = [], self.current
        return (self._real.cudaStream_t(handle),)

    def _cudaStreamDestroy(self, stream: Any) -> None:
        assert not self._streams.pop(int(stream)), "a stream with work on it is destroyed"

    def _cudaStreamSynchronize(self, stream: Any) -> None:
        assert self.captured is None, "synchronised during a capture"
        pending = self._streams[int(stream)]
        while pending:
            pending.pop(0)()

    def _cudaMemsetAsync(self, address: int, value: int, count: int, stream: Any) -> None:
        self.enqueue(stream, lambda: self.bytes_at("device", address, count).fill(value))

    def _cudaMemcpyAsync(self, target: int, source: int, count: int, kind: Any, stream: Any) -> None:
        kinds = {1: ("device", "pinned"), 2: ("pinned", "device"), 3: ("device", "device")}[int(kind)]
        self.enqueue(stream, lambda: self._copy(*kinds, target, source, count))

    def _copy(self, to: str, come: str, target: int, source: int, count: int) -> None:
        self.bytes_at(to, target, count)[:] = self.bytes_at(come, source, count)

    def _cudaMemcpy3DAsync(self, order: Any, stream: Any) -> None:
        one = SimpleNamespace(
            width=order.extent.width, height=order.extent.height, depth=order.extent.depth,
            pitch=order.srcPtr.pitch, rows=order.srcPtr.ysize,
            target=int(order.dstPtr.ptr), source=int(order.srcPtr.ptr),
        )  # fmt: skip
        assert (order.dstPtr.pitch, order.dstPtr.ysize) == (one.pitch, one.rows)
        assert int(order.kind) == 3
        assert one.width <= one.pitch
        assert one.height <= one.rows

        def copy() -> None:
            for offset in _offsets(one):
                self._copy("device", "device", one.target + offset, one.source + offset, one.width)

        self.enqueue(stream, copy)

    # Graphs

    def _cudaStreamBeginCapture(self, stream: Any, mode: Any) -> None:
        assert int(stream) in self._streams
        assert self.captured is None
        self.captured = []

    def _cudaStreamEndCapture(self, stream: Any) -> tuple[Any]:
        assert self.captured is not None
        handle = next(self._handles)
        self._graphs[handle], self.captured = self.captured, None
        return (self._real.cudaGraph_t(handle),)

    def _cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[Any]:
        assert flags == 0
        handle = next(self._handles)
        self._graphs[handle], self._graph_homes[handle] = self._graphs[int(graph)], self.current
        return (self._real.cudaGraphExec_t(handle),)

    def _cudaGraphDestroy(self, graph: Any) -> None:
        self._graphs[int(graph)] = []

    def _cudaGraphExecDestroy(self, graph: Any) -> None:
        home = self._graph_homes.pop(int(graph))
        assert self.current == home, "a graph is given back by a thread of another GPU"
        assert self._graphs.pop(int(graph)), "an empty graph"

    def _cudaGraphLaunch(self, graph: Any, stream: Any) -> None:
        for work in self._graphs[int(graph)]:
            self.enqueue(stream, work)


def _offsets(one: SimpleNamespace) -> Iterator[int]:
    for layer in range(one.depth):
        for row in range(one.height):
            yield (layer * one.rows + row) * one.pitch


def array_at(runtime: FakeRuntime, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """A tensor on the fake GPU."""
    size = int(np.prod(shape)) * dtype.itemsize
    return runtime.bytes_at("device", address, size).view(dtype).reshape(shape)
