"""Loading a plan: the one place that makes a runtime and deserialises, and asks for a GPU before it does.

A runtime without a driver, or with one older than it asks for, may raise. That of TensorRT 11.4's lean release logs an
error and returns an object all the same, which ends the process with signal 11 when it is used and when it is let go.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from r2gen_export.errors import R2GenError
from r2gen_export.system.gpu import why_no_gpu
from trt_engines.backends import Backend

if TYPE_CHECKING:
    from tensorrt_stubs import ICudaEngine, ILogger, Runtime, TensorRT


@dataclass(frozen=True)
class LoadedPlan:
    """An engine with what has to live as long as it does. `said`: errors TensorRT has logged, the last one last."""

    engine: ICudaEngine
    runtime: Runtime
    logger: ILogger
    said: list[str]


def load_plan(backend: Backend, content: Any, name: str) -> LoadedPlan:
    """Deserialise a plan on the calling thread's current GPU.

    Args:
        backend: what it was built with.
        content: of the file; has the buffer protocol and may be a mapping.
        name: what errors call it.

    Raises:
        R2GenError: `R2G-DEVICE-UNAVAILABLE` without a GPU; `R2G-ENGINE-BACKEND` when the backend does not start;
            `R2G-ENGINE-MISMATCH` when it does not take the plan.
    """
    product = f"{backend.product} {backend.version}"
    if reason := why_no_gpu():
        message = f"{product} loads {name} on a GPU only: {reason}"
        raise R2GenError("R2G-DEVICE-UNAVAILABLE", message, "see r2gen doctor; --device cpu")
    said: list[str] = []
    logger = _make_logger(backend.trt, said)
    try:
        runtime = backend.trt.Runtime(logger)
    except (TypeError, RuntimeError) as error:  # the binding's way to say that the factory returned nothing
        raise _does_not_start(product, said[0] if said else str(error)) from error
    if said:
        # One reference too many: it is not even let go when the interpreter ends.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(runtime))
        raise _does_not_start(product, said[0])
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        reason = said[0] if said else "it gives no reason"
        message = f"{product} does not load {name}: {reason}"
        raise R2GenError("R2G-ENGINE-MISMATCH", message, "build it again on this machine: r2gen build BUNDLE")
    return LoadedPlan(engine, runtime, logger, said)


def _does_not_start(product: str, reason: str) -> R2GenError:
    return R2GenError("R2G-ENGINE-BACKEND", f"{product} does not start: {reason}", "see r2gen doctor; --device cpu")


def _make_logger(trt: TensorRT, said: list[str]) -> ILogger:
    """A logger that keeps what TensorRT complains of; nothing is printed."""
    base: Any = trt.ILogger

    class Collector(base):
        def __init__(self) -> None:
            base.__init__(self)  # pybind11 demands this very call

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                with suppress(UnicodeError):
                    said.append(" ".join(str(msg).split()))

    collector: ILogger = Collector()
    return collector
