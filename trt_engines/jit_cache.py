"""What TensorRT-RTX compiles for the GPU at hand: for the shapes of a pass, before it first runs; kept between starts.

A CUDA graph keeps the kernels it was captured with, so they are compiled at once (`EAGER`), not while fallbacks run.
TensorRT itself compiles everything when it builds.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r2gen_export.errors import R2GenError
from r2gen_export.system.files import atomic_file

if TYPE_CHECKING:
    from tensorrt_stubs import ICudaEngine, IExecutionContext, TensorRT


class JitCache:
    """An engine's way to contexts, with the cache of compiled kernels they share.

    Args:
        trt: TensorRT-RTX's module.
        engine: the loaded plan.
        path: where the cache is kept; None: it is not.
    """

    def __init__(self, trt: TensorRT, engine: ICudaEngine, path: Path | None) -> None:
        self._engine, self._path = engine, path
        config = self._config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        self._cache: Any = None
        self._kept = b""
        if (
            hasattr(trt, "DynamicShapesKernelSpecializationStrategy")
            and hasattr(config, "dynamic_shapes_kernel_specialization_strategy")
            and hasattr(config, "create_runtime_cache")
            and hasattr(config, "set_runtime_cache")
        ):
            eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            config.dynamic_shapes_kernel_specialization_strategy = eager
            self._cache = config.create_runtime_cache()
            self._restore()
            config.set_runtime_cache(self._cache)

    def new_context(self) -> IExecutionContext | None:
        """A context whose memory is given to it; None when TensorRT makes none."""
        return self._engine.create_execution_context(self._config)

    def keep(self) -> None:
        """Write the cache when something was compiled. A folder that cannot be written costs the next start time."""
        if self._cache is None or self._path is None:
            return
        content = bytes(self._cache.serialize())
        if content == self._kept:
            return
        self._kept = content
        with suppress(OSError, R2GenError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(self._path) as scratch:
                scratch.write_bytes(content)

    def _restore(self) -> None:
        """TensorRT-RTX checks release, GPU and driver itself, and leaves out what does not fit."""
        with suppress(OSError):
            content = self._path.read_bytes() if self._path is not None else b""
            if content and self._cache.deserialize(content):
                self._kept = content
