"""Memory of the GPU, its one stream and its graphs, through the runtime API of `cuda-bindings`."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from r2gen_export.errors import R2GenError

ALIGNMENT: Final = 256
"""Bytes: what TensorRT wants the address of a tensor to be a multiple of, and less than what cudaMalloc gives."""

NON_BLOCKING: Final = 1  # cudaStreamNonBlocking: this stream does not wait for the default one


class Cuda:
    """A stream of one GPU and the memory used on it. What goes to the stream happens in order.

    Args:
        runtime: the module `cuda.bindings.runtime`; imported when None.
        device_id: which GPU, as CUDA numbers those it shows.

    Raises:
        R2GenError: `R2G-DEPENDENCY-MISSING` without cuda-bindings; `R2G-DEVICE-UNAVAILABLE` without a usable GPU of
            that number.
    """

    def __init__(self, runtime: Any = None, device_id: int = 0) -> None:
        self._runtime = import_runtime() if runtime is None else runtime
        self.device_id = device_id
        shown = int(self._check("cudaGetDeviceCount"))
        if not 0 <= device_id < shown:
            message = f"there is no GPU {device_id}: CUDA shows {shown} here, counted from 0"
            raise R2GenError("R2G-DEVICE-UNAVAILABLE", message, "name a GPU that is there, or --device cpu")
        self.make_current()
        self._stream = self._check("cudaStreamCreateWithFlags", NON_BLOCKING)
        self._device: list[int] = []
        self._pinned: list[int] = []

    @property
    def stream(self) -> int:
        """Handle of the stream, as TensorRT takes it."""
        return int(self._stream)

    def make_current(self) -> None:
        """Make this GPU the calling thread's.

        CUDA keeps that for each thread, GPU 0 at first: there memory would be taken, and engines be run. Other
        libraries set it too, so it is set anew rather than remembered.
        """
        self._check("cudaSetDevice", self.device_id)

    def free_bytes(self) -> int:
        """Memory of the GPU that nobody uses."""
        self.make_current()
        return int(self._check("cudaMemGetInfo")[0])

    def allocate(self, size: int) -> int:
        """Address of `size` zeroed bytes on the GPU.

        Raises:
            R2GenError: `R2G-RESOURCE-MEMORY`.
        """
        self.make_current()
        address = int(self._check("cudaMalloc", max(size, 1)))
        self._device.append(address)
        self.clear(address, size)
        return address

    def free(self, address: int) -> None:
        """Give back what `allocate` gave; nothing on the stream may use it any more."""
        self._device.remove(address)
        self._check("cudaFree", address)

    def clear(self, address: int, size: int) -> None:
        """Zeros, on the stream."""
        if size:
            self.make_current()
            self._check("cudaMemsetAsync", address, 0, size, self._stream)

    def pinned(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """An array in page-locked host memory: copies to and from it run on the stream, also inside a graph."""
        kind = np.dtype(dtype)
        size = max(math.prod(shape) * kind.itemsize, 1)
        self.make_current()
        address = int(self._check("cudaMallocHost", size))
        self._pinned.append(address)
        memory = memoryview((ctypes.c_byte * size).from_address(address))
        array: NDArray[Any] = np.frombuffer(memory, kind, math.prod(shape)).reshape(shape)
        array[...] = 0
        return array

    @contextmanager
    def undone_on_error(self) -> Iterator[None]:
        """Give back what was allocated within, of both kinds, when the block fails."""
        device, pinned = len(self._device), len(self._pinned)
        try:
            yield
        except BaseException:
            with suppress(R2GenError):  # a GPU that fails here too has nothing more to say than the first error
                self.synchronize()
                self._release(device, pinned)
            raise

    def upload(self, array: NDArray[Any], address: int) -> None:
        """Copy a contiguous pinned array to the GPU, on the stream."""
        self._copy(address, array.ctypes.data, array, self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice)

    def download(self, address: int, array: NDArray[Any]) -> None:
        """Copy from the GPU into a contiguous pinned array, on the stream; it is there after `synchronize`."""
        self._copy(array.ctypes.data, address, array, self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost)

    def _copy(self, target: int, source: int, array: NDArray[Any], kind: Any) -> None:
        self._check("cudaMemcpyAsync", target, source, array.nbytes, kind, self._stream)

    def copy_blocks(
        self, target: int, source: int, *, width: int, height: int, depth: int, pitch: int, slice_rows: int
    ) -> None:
        """Copy `depth` x `height` runs of `width` bytes within the GPU, on the stream, in one command.

        Args:
            target: address of the first run.
            source: likewise; the two do not overlap.
            width: bytes of a run.
            height: runs of a slice, `pitch` bytes apart.
            depth: slices, `slice_rows` times `pitch` bytes apart.
            pitch: see `height`.
            slice_rows: see `depth`.
        """
        self.make_current()
        cuda = self._runtime
        order = cuda.cudaMemcpy3DParms()
        order.srcPtr = cuda.make_cudaPitchedPtr(source, pitch, pitch, slice_rows)
        order.dstPtr = cuda.make_cudaPitchedPtr(target, pitch, pitch, slice_rows)
        order.extent = cuda.make_cudaExtent(width, height, depth)
        order.kind = cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._check("cudaMemcpy3DAsync", order, self._stream)

    def synchronize(self) -> None:
        """Wait until the stream has nothing left to do. Errors of what ran on it come up here."""
        self._check("cudaStreamSynchronize", self._stream)

    def capture(self, work: Callable[[], None]) -> Any:
        """A graph of what `work` puts on the stream, which does not run yet."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._check("cudaStreamBeginCapture", self._stream, mode)
        try:
            work()
        finally:
            graph = self._check("cudaStreamEndCapture", self._stream)
        ready = self._check("cudaGraphInstantiate", graph, 0)
        self._check("cudaGraphDestroy", graph)
        return ready

    def launch(self, graph: Any) -> None:
        """Run a captured graph on the stream."""
        self._check("cudaGraphLaunch", graph, self._stream)

    def drop(self, graph: Any) -> None:
        """Give back a captured graph."""
        self._check("cudaGraphExecDestroy", graph)

    def close(self) -> None:
        """Give back stream and memory; arrays from `pinned` are gone with it."""
        self.synchronize()
        self._release(0, 0)
        self._check("cudaStreamDestroy", self._stream)

    def _release(self, device: int, pinned: int) -> None:
        """Free all but the oldest so many blocks of each kind."""
        while len(self._device) > device:
            self._check("cudaFree", self._device.pop())
        while len(self._pinned) > pinned:
            self._check("cudaFreeHost", self._pinned.pop())

    def _check(self, name: str, *arguments: Any) -> Any:
        """Result of a call of the runtime API; its error as ours."""
        status, *values = getattr(self._runtime, name)(*arguments)
        if int(status):
            raise self._error(name, status, arguments)
        return values[0] if len(values) == 1 else tuple(values)

    def _error(self, name: str, status: Any, arguments: tuple[Any, ...]) -> R2GenError:
        text = self._runtime.cudaGetErrorString(status)[1]
        said = text.decode() if isinstance(text, bytes) else str(text)
        if name in ("cudaMalloc", "cudaMallocHost"):
            message = f"the GPU's runtime gives no {arguments[0] / 2**20:.0f} MiB ({said})"
            return R2GenError("R2G-RESOURCE-MEMORY", message, "free memory of the GPU (nvidia-smi), or --device cpu")
        return R2GenError("R2G-DEVICE-UNAVAILABLE", f"{name} failed: {said}", "see r2gen doctor; --device cpu")


def import_runtime() -> Any:
    """The module `cuda.bindings.runtime`.

    Raises:
        R2GenError: `R2G-DEPENDENCY-MISSING`.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise R2GenError(
            "R2G-DEPENDENCY-MISSING",
            "running an engine needs cuda-bindings",
            "pip install 'r2gen[tensorrt-rtx]', or 'r2gen[tensorrt]'",
        ) from error
    return runtime
