"""A decoder or vision session over a double of TensorRT, a fake GPU, and a graph on the CPU behind both."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from r2gen_export.bundle import Dims
from tests.trt_engines.double import Double
from tests.trt_engines.fake_cuda import FakeRuntime
from tests.trt_engines.fake_engine import Plan, answers, decoder_output, decoder_ports, graph
from trt_engines.backends import Backend
from trt_engines.cuda import Cuda
from trt_engines.identity import PLAN

DIMS = Dims(image_tokens=16, d_llm=32, vocab_size=120, num_layers=2, num_kv_heads=2, head_dim=16, max_positions=256)
LENGTH = 64
"""Positions of the cache the fake engine was "built" for."""

PROFILES = ((4, 40, 1), (6, 9, 9))
"""Prefill and decode: rows, positions and positions with logits each goes up to."""


@dataclass
class Rig:
    """The parts, and what they recorded."""

    plan: Plan
    folder: Path
    runtime: FakeRuntime
    double: Double
    device_id: int
    cuda: Cuda = field(init=False)
    backend: Backend = field(init=False)

    def __post_init__(self) -> None:
        self.cuda = Cuda(self.runtime, self.device_id)
        # TensorRT-RTX has what compiles on the GPU, TensorRT has not.
        name = "tensorrt-rtx" if hasattr(self.double.module, "IRuntimeCache") else "tensorrt"
        self.backend = Backend(name, self.double.module, "1.2.3")


def make_rig(
    plan: Plan, folder: Path, stub: Path, cuda_runtime: Any, memory: int = 1 << 30, *, device_id: int = 0
) -> Rig:
    """Everything but the session. `folder`: where the plan's file goes. `device_id`: the last of the fake GPUs."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PLAN).write_bytes(b"a plan")
    runtime = FakeRuntime(cuda_runtime, memory, device_id + 1)
    double = Double(stub, {})
    double.answers = answers(plan, runtime, lambda: double)
    return Rig(plan, folder, runtime, double, device_id)


def decoder_plan(path: Path, profiles: tuple[tuple[int, int, int], ...] = PROFILES) -> Plan:
    """A decoder engine "built" from a graph of the `trt` dialect in fp32."""
    ports = decoder_ports(layers=DIMS.num_layers, dims=DIMS, length=LENGTH, profiles=profiles)
    outputs = tuple(port.name for port in ports if not port.is_input)
    return Plan(ports, graph(path, outputs), decoder_output(DIMS.vocab_size))


def in_a_new_thread(act: Callable[[], Any]) -> Any:
    """What it returns. The thread's current GPU is the first one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(act).result()
