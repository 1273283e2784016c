"""Where ONNX Runtime put a graph's nodes: a GPU session that leaves its heavy ones on the CPU is refused.

ONNX Runtime moves a node whose kernel a provider lacks to the CPU without a word; its inputs then cross the bus in
every pass, and a bound KV cache is read as it was when it was bound.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

from r2gen_export.errors import R2GenError
from r2gen_export.precision import PRECISIONS, with_half_activations

if TYPE_CHECKING:
    import onnxruntime

    from r2gen_export.bundle import Manifest

RECORD: Final = "session.record_ep_graph_assignment_info"
"""Session setting without which `nodes_on_cpu` has nothing to read (ONNX Runtime 1.24 and newer)."""

CPU: Final = "CPUExecutionProvider"

HEAVY: Final = frozenset(
    {
        *("GroupQueryAttention", "Attention", "MultiHeadAttention", "TensorScatter", "RotaryEmbedding"),
        *("MatMul", "MatMulNBits", "Gemm", "FusedMatMul", "Conv", "FusedConv", "ConvInteger", "MatMulInteger"),
        *("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QLinearMatMul", "QLinearConv"),
        *("DequantizeLinear", "LayerNormalization", "SkipLayerNormalization", "RMSNormalization", "Softmax"),
        *("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"),
    }
)
"""Attention, and operators with weights or whole activations. Arithmetic on shapes may stay on the CPU."""


def nodes_on_cpu(session: onnxruntime.InferenceSession) -> Counter[str]:
    """How many nodes of each operator a session runs on the CPU; it was opened with `RECORD`."""
    return Counter(
        node.op_type
        for subgraph in session.get_provider_graph_assignment_info()
        if subgraph.ep_name == CPU
        for node in subgraph.get_nodes()
    )


def check_placement(path: Path, session: onnxruntime.InferenceSession) -> None:
    """Refuse a session on a GPU whose attention, or whose nodes with weights, run on the CPU.

    Raises:
        R2GenError: `R2G-DEVICE-UNAVAILABLE`.
    """
    heavy = {name: count for name, count in nodes_on_cpu(session).items() if name in HEAVY}
    if heavy:
        listed = ", ".join(f"{count} {name}" for name, count in sorted(heavy.items()))
        message = f"{path.name}: ONNX Runtime has no kernel for the GPU for {listed}; they would run on the CPU"
        fix = "export it for a GPU (r2gen export ... --for gpu), or --device cpu"
        raise R2GenError("R2G-DEVICE-UNAVAILABLE", message, fix)


def require_gpu_kernels(manifest: Manifest, *, vision: bool, decoder: bool) -> None:
    """Refuse, before it is loaded, a part that is known not to run wholly on CUDA; `check_placement` sees it after.

    `GroupQueryAttention` has CUDA kernels for 16-bit floats only, and int8 vision encoders round their activations on
    the CPU.

    Args:
        manifest: the bundle's.
        vision: the vision encoder is to run there.
        decoder: the decoder is to run there.

    Raises:
        R2GenError: `R2G-DEVICE-UNAVAILABLE`, with the precision that works.
    """
    precision = manifest.precision["decoder"]
    if decoder and manifest.dialect == "ort" and not PRECISIONS[precision].half:
        message = f"attention of a decoder in dialect ort and {precision} has no kernel for the GPU"
        better = f"--precision {with_half_activations(precision)}, or --dialect trt"
        raise R2GenError("R2G-DEVICE-UNAVAILABLE", message, f"export it again with {better}; or --device cpu")
    if vision and manifest.precision["vision"] == "int8":
        message = "an int8 vision encoder rounds its activations in operators without a kernel for the GPU"
        fix = "export it again with --vision-precision fp16; or --device cpu"
        raise R2GenError("R2G-DEVICE-UNAVAILABLE", message, fix)
