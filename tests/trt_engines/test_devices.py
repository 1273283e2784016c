"""The GPU engines are asked to run on: that it is there, and that whatever thread works, works on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r2gen_export.errors import R2GenError
from tests.trt_engines.fake_cuda import FakeRuntime
from tests.trt_engines.fake_engine import Plan, Port
from tests.trt_engines.rig import in_a_new_thread, make_rig
from trt_engines.cuda import Cuda
from trt_engines.identity import PLAN
from trt_engines.runner import EngineRunner

MEMORY = 1 << 20


@pytest.mark.parametrize("device_id", [2, -1])
def test_a_gpu_that_is_not_there_is_a_coded_error(cuda_runtime: Any, device_id: int) -> None:
    runtime = FakeRuntime(cuda_runtime, devices=2)
    with pytest.raises(R2GenError, match=f"no GPU {device_id}: CUDA shows 2 here, counted from 0") as caught:
        Cuda(runtime, device_id)
    assert caught.value.code == "R2G-DEVICE-UNAVAILABLE"
    assert runtime.calls == ["cudaGetDeviceCount"]


@pytest.mark.parametrize(
    "act",
    [
        lambda cuda, address: cuda.allocate(8),
        lambda cuda, address: cuda.pinned((8,), np.int8),
        lambda cuda, address: cuda.clear(address, 8),
        lambda cuda, address: cuda.copy_blocks(
            address + 256, address, width=8, height=1, depth=1, pitch=8, slice_rows=1
        ),
    ],
    ids=["allocate", "pinned", "clear", "copy_blocks"],
)
def test_a_thread_of_its_own_works_on_the_same_gpu(cuda_runtime: Any, act: Callable[[Cuda, int], Any]) -> None:
    runtime = FakeRuntime(cuda_runtime, MEMORY, devices=2)
    cuda = Cuda(runtime, 1)
    address = cuda.allocate(512)
    in_a_new_thread(lambda: act(cuda, address))
    cuda.synchronize()
    assert {home for _, _, home in runtime.blocks.values()} == {1}


def test_free_memory_is_that_of_the_same_gpu(cuda_runtime: Any) -> None:
    cuda = Cuda(FakeRuntime(cuda_runtime, MEMORY, devices=2), 1)
    cuda.allocate(512)
    assert in_a_new_thread(cuda.free_bytes) == MEMORY - 512


def test_an_engine_is_given_back_on_its_own_gpu(tmp_path: Path, stub_file: Path, cuda_runtime: Any) -> None:
    """Its destructor is TensorRT's, which no double has: what counts is the GPU that is current then."""
    ports = (Port("x", "FLOAT", (1,), (((1,), (1,)),)), Port("y", "FLOAT", (1,)))
    plan = Plan(ports, lambda tensors: None, lambda name, inputs: (1,))
    rig = make_rig(plan, tmp_path, stub_file, cuda_runtime, device_id=1)
    runner = EngineRunner(rig.folder / PLAN, rig.backend, rig.cuda)

    def close() -> int:
        runner.close()
        return rig.runtime.current

    assert in_a_new_thread(close) == 1
