"""The backend's side of a build: its parser, its builder's settings, its plan. Written to the common API subset.

Strongly typed networks only; flags are set through `1 << int(flag)` and kept by name, because their numbers moved
between TensorRT 10 and 11.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from r2gen_export.errors import R2GenError
from r2gen_export.system.gpu import why_no_gpu
from trt_engines.backends import Backend
from trt_engines.identity import Profile
from trt_engines.plans import load_plan
from trt_engines.progress import Progress, make_monitor

if TYPE_CHECKING:
    from tensorrt_stubs import Builder, IBuilderConfig, ILogger, INetworkDefinition, OnnxParser

SHOWN: Final = 5
"""Errors of a parser that are shown in full; the others are named by their node."""

SAID: Final = 3
"""Lines of the builder's log an error repeats."""

LONGEST: Final = 400
"""Characters of one of them; what follows repeats itself."""

NO_DRIVER: Final = re.compile(
    r"(ITensor::getDimensions: )?\[[^\]]*\] Error Code 1: Cuda Runtime \(.*?cudaError 35: [^)]*\)\)"
)
"""Said on every machine without a GPU beside the real error."""


@dataclass(frozen=True)
class Order:
    """What a backend is asked for. `capabilities`: compute capabilities (`8.9`), of TensorRT-RTX only."""

    capabilities: tuple[str, ...]
    profiles: tuple[Profile, ...]
    weight_streaming: bool


@dataclass(frozen=True)
class Plan:
    """A serialized engine. `content` has the buffer protocol. `flags`: names of the builder flags that were set.

    `layers` describes the parsed network, layer by layer. `timing_cache` is empty when the backend gives none.
    """

    content: Any
    flags: tuple[str, ...]
    layers: list[dict[str, Any]]
    timing_cache: bytes


class Toolchain:
    """A backend's builder with its logger.

    Raises:
        R2GenError: `R2G-ENGINE-BACKEND` when the builder does not start (TensorRT without a GPU).
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._said: list[str] = []
        self._logger = _make_logger(backend.trt, self._said)
        # Before the library is asked: one that needs a driver may end the process instead (see `plans.py`).
        if not backend.builds_without_gpu and (reason := why_no_gpu()):
            raise self._starts_no_builder(reason)
        try:
            self._builder: Builder = backend.trt.Builder(self._logger)
        except (TypeError, RuntimeError) as error:  # the binding's way to say that the factory returned nothing
            raise self._starts_no_builder(self._said[0] if self._said else str(error)) from error
        self._probe = self._network()

    def _starts_no_builder(self, reason: str) -> R2GenError:
        message = f"{self.backend.product} {self.backend.version} starts no builder: {reason}"
        fix = "TensorRT needs a GPU and its driver to build; --backend tensorrt-rtx builds without"
        return R2GenError("R2G-ENGINE-BACKEND", message, fix)

    def supports(self, operator: str) -> bool:
        """Whether the parser knows an ONNX operator, by name alone."""
        _, parser = self._probe
        return bool(parser.supports_operator(operator))

    def capability(self, name: str) -> Any:
        """The backend's name for a compute capability such as `8.9`.

        Raises:
            R2GenError: `R2G-CONFIG-VALUE`, naming those there are.
        """
        known: dict[str, Any] = dict(getattr(self.backend.trt, "ComputeCapability").__members__)  # noqa: B009
        wanted = f"SM{name.replace('.', '', 1)}"
        if wanted not in known or "." not in name:
            numbers = sorted(int(one[2:]) for one in known if one.startswith("SM") and one[2:].isdigit())
            listed = ", ".join(f"{number // 10}.{number % 10}" for number in numbers)
            message = f"{self.backend.product} {self.backend.version} builds nothing for compute capability {name}"
            raise R2GenError("R2G-CONFIG-VALUE", message, f"choose from {listed}")
        return known[wanted]

    def build(self, model: Path, order: Order, timing_cache: bytes, progress: Progress) -> Plan:
        """Parse a graph and build its engine.

        Args:
            model: the ONNX file, its weights beside it.
            order: what to build.
            timing_cache: of an earlier build, or empty.
            progress: told how far it is.

        Raises:
            R2GenError: `R2G-ENGINE-PARSE` with every error of the parser; `R2G-ENGINE-BUILD`.
        """
        network, parser = self._network()
        if not parser.parse_from_file(str(model)):
            raise _parse_error(self.backend, parser)
        config = self._config(order)
        monitor = make_monitor(self.backend.trt, progress)
        config.progress_monitor = monitor
        self._said.clear()
        with _quiet_deprecations():
            self._use_timing_cache(config, timing_cache)
            content = self._builder.build_serialized_network(network, config)
            if content is None:
                raise self._build_error()
            cache = config.get_timing_cache()
            kept = bytes(cache.serialize()) if cache else b""
        return Plan(content, _flags(self.backend.trt, config), list(_layers(network)), kept)

    def _network(self) -> tuple[INetworkDefinition, OnnxParser]:
        trt = self.backend.trt
        network = self._builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        return network, trt.OnnxParser(network, self._logger)

    def _config(self, order: Order) -> IBuilderConfig:
        trt = self.backend.trt
        config = self._builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        # TF32 keeps 10 bits of mantissa: tokens would differ from the fp32 ones the parity gate passed.
        config.clear_flag(trt.BuilderFlag.TF32)
        if order.weight_streaming:
            config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
        if order.capabilities:
            targets: Any = config  # TensorRT has no such settings
            targets.num_compute_capabilities = len(order.capabilities)
            for index, name in enumerate(order.capabilities):
                targets.set_compute_capability(self.capability(name), index)
        for wanted in order.profiles:
            profile = self._builder.create_optimization_profile()
            for name, shapes in wanted.inputs.items():
                profile.set_shape(name, shapes.minimum, shapes.optimum, shapes.maximum)
            if config.add_optimization_profile(profile) < 0:
                reason = self._said[0] if self._said else "it says no more"
                message = f"{self.backend.product} does not take the profile {wanted.name!r}: {reason}"
                raise R2GenError("R2G-ENGINE-BUILD", message, "smaller --max-length, --max-batch or --max-views")
        return config

    def _use_timing_cache(self, config: IBuilderConfig, content: bytes) -> None:
        """Start from a cache of an earlier build; one the backend does not take is left out, the build is only slower.

        TensorRT-RTX times nothing ahead of time: its caches are empty and its releases from 1.2 on do not read them.
        """
        cache = config.create_timing_cache(content)
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
            empty = config.create_timing_cache(b"")
            if empty is not None:
                config.set_timing_cache(empty, ignore_mismatch=False)
        self._said.clear()

    def _build_error(self) -> R2GenError:
        said = "; ".join(dict.fromkeys(self._said[:SAID])) or "it gives no reason"
        message = f"{self.backend.product} {self.backend.version} parsed the graph but built no engine: {said}"
        return R2GenError("R2G-ENGINE-BUILD", message, _mend(said))


def _make_logger(trt: Any, said: list[str]) -> ILogger:
    """A logger that keeps errors and drops the rest. No exception may leave it: C++ calls it."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR) and (line := _plain(msg)):
                said.append(line)

    return Logger()


def _plain(text: str) -> str:
    """What a message says, on one line, without the driver that is not there."""
    line = " ".join(NO_DRIVER.sub(" ", " ".join(text.split())).split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."


def _parse_error(backend: Backend, parser: OnnxParser) -> R2GenError:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    lines = []
    for error in errors[:SHOWN]:
        name = f"{error.node_operator()} {error.node_name()!r}" if error.node_operator() else f"node {error.node()}"
        lines.append(f"{name} ({error.code().name}): {_plain(error.desc())}")
    if rest := [f"{error.node_operator()} {error.node_name()!r}" for error in errors[SHOWN:]]:
        lines.append(f"and {', '.join(rest)}")
    found = "; ".join(lines) or "it gives no reason"
    message = f"{backend.product} {backend.version} does not parse the graph, {len(errors)} errors: {found}"
    return R2GenError("R2G-ENGINE-PARSE", message, "export the bundle again with --dialect trt, or report it")


def _mend(said: str) -> str:
    if "memory" in said.lower():
        return "free memory, or smaller --max-length and --max-batch"
    return "--precision fp32 or fp16 instead, or report it with this message"


def _flags(trt: Any, config: IBuilderConfig) -> tuple[str, ...]:
    members: dict[str, Any] = trt.BuilderFlag.__members__
    return tuple(sorted(name for name, flag in members.items() if config.get_flag(flag)))


def _layers(network: INetworkDefinition) -> Iterator[dict[str, Any]]:
    """Name, type and tensors of every layer of a parsed network."""
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        inputs = [tensor for at in range(layer.num_inputs) if (tensor := layer.get_input(at)) is not None]
        outputs = [layer.get_output(at) for at in range(layer.num_outputs)]
        yield {
            "name": layer.name,
            "type": layer.type.name,
            "inputs": [tensor.name for tensor in inputs],
            "outputs": [
                {"name": tensor.name, "type": tensor.dtype.name, "shape": list(tensor.shape)} for tensor in outputs
            ],
        }


@contextmanager
def _quiet_deprecations() -> Iterator[None]:
    """TensorRT-RTX warns that timing caches do nothing there; TensorRT needs them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def inspect_plan(backend: Backend, content: Any) -> Any:
    """What the engine's own inspector says of its layers. Needs a GPU the plan was built for.

    Returns:
        The parsed JSON.

    Raises:
        R2GenError: what `load_plan` raises.
    """
    loaded = load_plan(backend, content, "the plan just built")
    inspector = loaded.engine.create_engine_inspector()
    return json.loads(inspector.get_engine_information(backend.trt.LayerInformationFormat.JSON))
