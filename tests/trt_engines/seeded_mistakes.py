"""Mistakes against TensorRT's API, each of a kind that has been made. Never imported: mypy has to find every one.

`test_stubs.py` compares what mypy says of this file with the comments: `caught: CODE` on every release, `caught on
A, B: CODE` on these only. A line without such a comment has to pass.
"""

# ruff: noqa: B015, B018
from __future__ import annotations

from typing import TYPE_CHECKING

from trt_engines.backends import Backend

if TYPE_CHECKING:
    from tensorrt_stubs import (
        IBuilderConfig,
        ICudaEngine,
        IExecutionContext,
        INetworkDefinition,
        IOptimizationProfile,
        TensorRT,
    )


def build(trt: TensorRT, config: IBuilderConfig, profile: IOptimizationProfile, network: INetworkDefinition) -> None:
    """Mistakes of a builder."""
    builder = trt.Builder(trt.Logger(trt.Logger.WARNING))
    config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
    config.set_flag(trt.BuilderFlag.FP16)  # caught on 11.4, rtx-1.7: attr-defined
    builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH  # caught on 11.4, rtx-1.7: attr-defined
    builder.max_workspace_size = 1 << 30  # caught: attr-defined
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1 << 30)
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, "4G")  # caught: arg-type
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE)  # caught: call-arg
    config.builder_optimization_level = 3
    config.builder_optimisation_level = 3  # caught: attr-defined
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.profiling_verbosity = trt.LayerInformationFormat.JSON  # caught: assignment
    trt.OnnxParser(network, trt.Logger())
    trt.OnnxParser(network)  # caught: call-arg
    profile.set_shape("x", (1, 2), (2, 2), (4, 2))
    profile.set_shape("x", (1, 2), (4, 2))  # caught: call-arg
    len(builder.build_serialized_network(network, config))  # caught: arg-type
    builder.build_engine(network, config)  # caught: attr-defined
    network.mark_output("logits")  # caught: arg-type


def load(backend: Backend, content: bytes) -> ICudaEngine | None:
    """Mistakes of loading, through the backend that the package goes through."""
    trt = backend.trt
    trt.Runtime(trt.Logger.WARNING)  # caught: arg-type
    runtime = trt.Runtime(trt.Logger())
    runtime.deserialize_cuda_engine("engine.plan")  # caught: call-overload
    runtime.deserialize_cuda_engine(content).num_io_tensors  # caught: union-attr
    trt.Runtimes  # caught: attr-defined
    return runtime.deserialize_cuda_engine(content)


def run(trt: TensorRT, engine: ICudaEngine, context: IExecutionContext, stream: int) -> None:
    """Mistakes of running."""
    engine.num_bindings  # caught: attr-defined
    engine.num_io_tensors = 3  # caught: misc
    engine.get_tensor_name("logits")  # caught: arg-type
    engine.get_tensor_mode("logits") == trt.TensorIOMode.IN  # caught: attr-defined
    engine.create_execution_context().execute_async_v3(stream)  # caught: union-attr
    engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER)  # caught: attr-defined
    context.execute_async_v2([1, 2], stream)  # caught: attr-defined
    context.execute_async_v3(stream)
    context.execute_async_v3(stream=stream)  # caught: call-arg
    context.set_input_shape("x", (1, 2))
    context.set_input_shape("x", 1, 2)  # caught: call-overload
    context.set_tensor_address("x", "0x100")  # caught: arg-type
    context.set_optimization_profile_async(0)  # caught: call-arg
    context.set_device_memory(1)  # caught: call-arg
    engine.weight_streaming_budget_v2 = "1G"  # caught: assignment
    shape: list[int] = context.get_tensor_shape("x")  # caught: assignment
    del shape
