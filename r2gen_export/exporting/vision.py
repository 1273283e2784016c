"""vision.onnx: pixel_values [V, 3, H, W] -> image_embeds [1, T, d] (Swin, mean over views, projector, LayerNorm)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from r2gen_export.exporting.quiet import quiet
from r2gen_export.system.interrupts import interrupt_later

if TYPE_CHECKING:
    from r2gen_export.training.model import R2GenGPT

OPSET: Final = 18
"""Plain decomposed operators every provider runs. TensorRT-RTX takes fp32 at 18; at 23 its fused Attention has none."""

INPUT: Final = "pixel_values"
OUTPUT: Final = "image_embeds"

INLINE_LIMIT: Final = 1_900_000_000
"""Bytes of weights that still fit into one protobuf file (2 GiB) beside the graph."""


class VisionGraph(nn.Module):
    """`R2GenGPT.encode_images` as a module of its own, without the language model's weights."""

    def __init__(self, model: R2GenGPT) -> None:
        super().__init__()
        # A shallow copy runs the model's own arithmetic; dropping `llama_model` keeps 7 B weights out of the trace.
        self.model = copy.copy(model)
        self.model._modules = {name: part for name, part in model._modules.items() if name != "llama_model"}
        self.training = model.training

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """pixel_values [V, 3, H, W] float32 -> image_embeds [1, T, d] float32."""
        return self.model.encode_images(pixel_values)


def export_vision(model: R2GenGPT, path: Path, *, height: int, width: int) -> int:
    """Write vision.onnx in fp32 with a dynamic number of views; LoRA weights must be merged already.

    Args:
        model: the source model, on the CPU in eval mode.
        path: the file to write. Weights are inside it unless they exceed `INLINE_LIMIT`, then in `PATH.data`.
        height: rows of the input image in pixels.
        width: columns of the input image in pixels.

    Returns:
        The graph's opset.

    Raises:
        OSError: when the file cannot be written.
    """
    graph = VisionGraph(model)
    weights = sum(value.numel() * value.element_size() for value in graph.state_dict().values())
    # Two views: torch.export takes an example size of one for a constant.
    example = torch.zeros(2, 3, height, width)
    with interrupt_later(), quiet(), torch.no_grad():
        program = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={INPUT: {0: torch.export.Dim("views", min=1)}},
        )
        assert program is not None
        for item in _annotated(program.model):
            item.metadata_props.clear()
            item.doc_string = None
        program.save(path, external_data=weights > INLINE_LIMIT)
    return OPSET


def _annotated(model: Any) -> Iterator[Any]:
    """Everything of an onnx-ir model that carries the exporter's notes: stack traces with this machine's folders."""
    yield model
    yield model.graph
    yield from model.graph.inputs
    yield from model.graph.initializers.values()
    for node in model.graph.all_nodes():
        yield node
        yield from node.outputs
