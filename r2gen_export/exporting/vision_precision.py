"""vision.onnx with smaller weights: float16, or int8 with activations rounded as they come (dynamic).

Activation scales fixed beforehand on phantoms (static, QDQ) bring nothing (`python -m
benchmarks.quality.vision_precision`): a
Swin-base takes 0.55 to 0.59 of float32's time where dynamic takes 0.49, the demo's image tokens come out no nearer to
float32's (cosine 0.99993 at best, 0.99996), and an export would need images to calibrate on.
The projector stays in float32: its LayerNorm spreads every error over all the LLM sees.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from r2gen_export.exporting.quiet import quiet

PROJECTOR: Final = "llama_proj"

SENSITIVE: Final = ("LayerNormalization", "Softmax", "ReduceMean", "Pow", "Sqrt", "Div")
"""Stay in float32 inside a float16 graph: Swin's activations leave float16's range there."""


def lower_precision(path: Path, precision: str) -> None:
    """Rewrite `vision.onnx` in place; inputs and outputs stay float32.

    Args:
        path: the float32 graph, its weights inside it.
        precision: one of `TENSOR_PRECISIONS`. `int8`: weights per output channel, activations per tensor at run time
            (ONNX Runtime's `quantize_dynamic`; convolutions stay float32, their integer kernel is slower).

    Raises:
        OSError: when the file cannot be written.
    """
    if precision == "fp32":
        return
    scratch = path.with_suffix(".part")
    try:
        with quiet():
            (_to_half if precision == "fp16" else _to_int8)(path, scratch)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _to_int8(path: Path, scratch: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        path,
        scratch,
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=projector_nodes(onnx.load(path)),
        extra_options={"MatMulConstBOnly": True},
    )


def _to_half(path: Path, scratch: Path) -> None:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(path)
    half = convert_float_to_float16(
        model, keep_io_types=True, op_block_list=list(SENSITIVE), node_block_list=projector_nodes(model)
    )
    # A tensor that several float32 nodes read is widened once for each of them, under one and the same name.
    kept = list({node.output[0]: node for node in reversed(half.graph.node)}.values())[::-1]
    del half.graph.node[:]
    half.graph.node.extend(kept)
    scratch.write_bytes(half.SerializeToString())


def projector_nodes(model: Any) -> list[str]:
    """Names of the nodes that read the projector's parameters."""
    aliases = {name for node in model.graph.node if any(PROJECTOR in one for one in node.input) for name in node.output}
    return [
        node.name
        for node in model.graph.node
        if any(PROJECTOR in one or one in aliases for one in node.input) and node.op_type in ("MatMul", "Gemm", "Add")
    ]
