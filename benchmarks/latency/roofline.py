"""How far from the hardware's limit a run was: bytes and operations counted from the bundle, over measured rates."""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.latency.graph import read_graph
from benchmarks.machine_rates import LARGE, Machine, last_level_cache, read_bandwidth
from r2gen_export import bundle as layout
from r2gen_export.bundle import Manifest
from r2gen_export.errors import R2GenError
from r2gen_export.precision import PRECISIONS
from r2gen_export.runtime.backends.ort_session import bad_graph, first_line, session_options

PRODUCTS: Final = frozenset(
    ("MatMul", "FusedMatMul", "Gemm", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits")
)
CONVOLUTIONS: Final = frozenset(("Conv", "FusedConv", "ConvInteger", "QLinearConv"))

FP32, INT8 = "gemm_fp32_gops", "gemm_int8_gops"
RATE: Final = {name: FP32 if entry.block is None else INT8 for name, entry in PRECISIONS.items()}
"""What weights of a precision are multiplied at on a CPU: ONNX Runtime widens fp16, and rounds activations to int8."""


@dataclass(frozen=True)
class Work:
    """What one bundle asks of the hardware. Operations: multiplications and additions, each counted.

    `encode_ops`: one image. `weights`: the LLM's parameters in products; `head`: those of its output layer.
    `positions`: of the prompt; `shared`: of them, computed once for all reports. `vision_weights`: the vision
    encoder's and projector's parameters in products and convolutions; `table`: those of the token embeddings.
    """

    encode_ops: float
    encode_bytes: float
    weights: int
    head: int
    decoder_bytes: float
    positions: int
    shared: int
    all_logits: bool
    layers: int
    width: int
    kv_bytes: float
    precision: str
    vision_precision: str
    vision_weights: int
    table: int

    def prefill_ops(self) -> float:
        """Of one prompt, what is shared left out."""
        new = self.positions - self.shared
        body = 2.0 * (self.weights - self.head) * new + 2.0 * self.head * (new if self.all_logits else 1)
        seen = sum(range(self.shared + 1, self.positions + 1))
        return body + 4.0 * self.layers * self.width * seen

    def token_ops(self, position: float) -> float:
        """Of one decoded position, behind `position` others."""
        return 2.0 * self.weights + 4.0 * self.layers * self.width * (position + 1)

    def token_bytes(self, position: float, rows: int = 1) -> float:
        """Of one pass over `rows` sequences behind `position` others: the weights once, each row's cache."""
        return self.decoder_bytes + rows * self.kv_bytes * (position + 1)


def count_work(bundle: Path, manifest: Manifest) -> Work:
    """Count from the graphs and sizes of a bundle; runs its vision encoder once, for the shapes of its products.

    Raises:
        R2GenError: `R2G-BUNDLE-GRAPH`; `R2G-OUTPUT-WRITE` when the temporary folder is full.
    """
    decoder = read_graph(bundle / layout.DECODER)
    vision = read_graph(bundle / layout.VISION)
    dims = manifest.dims
    products = decoder.products()
    static = manifest.dialect != "standard"
    half = PRECISIONS[manifest.precision["decoder"]].half
    return Work(
        encode_ops=encode_ops(bundle / layout.VISION, manifest.image.height, manifest.image.width),
        encode_bytes=vision.bytes_per_pass(),
        weights=sum(k * n for k, n in products),
        head=max((k * n for k, n in products if n == dims.vocab_size), default=0),
        decoder_bytes=decoder.bytes_per_pass(),
        positions=manifest.prompt.length(dims.image_tokens),
        shared=1 + len(manifest.prompt.before_ids) if static else 0,
        all_logits=not static,
        layers=dims.num_layers,
        width=dims.d_llm,
        kv_bytes=2.0 * dims.num_layers * dims.num_kv_heads * dims.head_dim * (2 if half else 4),
        precision=manifest.precision["decoder"],
        vision_precision=manifest.precision["vision"],
        vision_weights=sum(k * n for k, n in vision.products()) + vision.convolved(),
        table=dims.vocab_size * dims.d_llm,
    )


def encode_ops(path: Path, height: int, width: int) -> float:
    """Operations of the vision encoder's products and convolutions for one image, from ONNX Runtime's own profile.

    Raises:
        R2GenError: as `count_work`.
    """
    import onnxruntime

    options = session_options()
    options.enable_profiling = True
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with tempfile.TemporaryDirectory() as scratch:
        options.profile_file_prefix = str(Path(scratch) / "vision")
        try:
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            session.run(None, {"pixel_values": np.zeros((1, 3, height, width), np.float32)})
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise bad_graph(path, f"ONNX Runtime does not run it ({first_line(error, path)})") from error
        try:
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        except ValueError as error:  # ONNX Runtime says nothing when it cannot write
            message = "the encoder's profile in the temporary folder is cut off, most likely the disk is full"
            raise R2GenError("R2G-OUTPUT-WRITE", message, "free space in the temporary folder") from error
    return sum(_event_ops(one["args"]) for one in events if one.get("cat") == "Node" and "op_name" in one["args"])


def _event_ops(facts: dict[str, Any]) -> float:
    """Two for each element of the output and each element it is a sum over."""
    if facts["op_name"] not in PRODUCTS | CONVOLUTIONS or not facts.get("output_type_shape"):
        return 0.0
    shapes = [next(iter(one.values())) for one in facts["input_type_shape"]]
    out = next(iter(facts["output_type_shape"][0].values()))
    depth = math.prod(shapes[1][1:]) if facts["op_name"] in CONVOLUTIONS else shapes[0][-1]
    return 2.0 * math.prod(out) * depth


def floors(work: Work, machine: Machine, *, tokens: float, views: float, batch: int, beams: int) -> dict[str, Any]:
    """The shortest time this machine could take for each stage: the larger of bytes / bandwidth and operations / rate.

    Args:
        work: of the bundle.
        machine: its best rates of this run are taken.
        tokens: of a typical report; decoding is judged in its middle.
        views: images of a typical study.
        batch: studies decoded together.
        beams: sequences of each.

    Returns:
        For `encode`, `prefill` and `decode` (one token): `bytes`, `ops`, `bandwidth_gb_s`, `rate_gops`, `memory_ms`,
        `compute_ms`, `floor_ms` and `bound`.
    """
    rows = batch * beams
    middle = work.positions + tokens / 2
    stages = {
        "encode": (work.encode_bytes, work.encode_ops * views * batch, work.vision_precision),
        "prefill": (work.decoder_bytes, work.prefill_ops() * batch, work.precision),
        "decode": (work.token_bytes(middle, rows), work.token_ops(middle) * rows, work.precision),
    }
    # A small model may stay in the caches, which read faster than memory.
    small = {size: read_bandwidth(machine.threads, int(size)) for size, *_ in stages.values() if size < LARGE / 4}
    found = {}
    for stage, (size, ops, precision) in stages.items():
        # What is read from a larger place cannot come slower from a smaller one.
        bandwidth = max([machine.best("read_gb_s"), *(rate for other, rate in small.items() if other >= size)])
        found[stage] = _floor(size, ops, bandwidth, machine.best(RATE[precision]))
    return {**found, "work": asdict(work)}


def _floor(size: float, ops: float, bandwidth: float, rate: float) -> dict[str, Any]:
    memory, compute = size / 1e6 / bandwidth, ops / 1e6 / rate
    return {
        "bytes": size,
        "ops": ops,
        "bandwidth_gb_s": bandwidth,
        "rate_gops": rate,
        "memory_ms": memory,
        "compute_ms": compute,
        "floor_ms": max(memory, compute),
        "bound": "memory" if memory >= compute else "arithmetic",
        "in_cache": size < last_level_cache(),
    }
