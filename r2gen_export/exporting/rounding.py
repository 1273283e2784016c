"""A PyTorch LLaMA with the weights a reduced precision keeps: what the exported graph must compute.

Comparing with this model tells a wrong graph from coarse weights; comparing with the original tells how coarse.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from r2gen_export.exporting.streamed.lowering import BLOCKS, HEAD
from r2gen_export.exporting.streamed.quantize import ROWS, dequantize, quantize


@torch.no_grad()
def round_embeddings(rows: torch.Tensor, precision: str) -> torch.Tensor:
    """Embeddings [n, d] as a bundle's table gives them back, float32."""
    if precision == "fp16":
        return rows.half().float()
    if precision == "int8":
        parts = [dequantize(quantize(rows[start : start + ROWS], 8)) for start in range(0, len(rows), ROWS)]
        return torch.from_numpy(np.concatenate(parts))
    return rows.float()


@torch.no_grad()
def round_weights(module: nn.Module, precision: str, head_precision: str | None = None) -> None:
    """Replace every weight of a float32 module, LoRA merged, by what `precision` stores of it, in place.

    Args:
        module: a LLaMA, or one of its decoder layers.
        precision: `fp32` changes nothing; `fp16` rounds every tensor; the others the linear layers'.
        head_precision: of `lm_head`, None: the same.
    """
    if precision == "fp16":
        for parameter in module.parameters():
            parameter.copy_(parameter.half())
        return
    for name, layer in module.named_modules():
        form = BLOCKS.get((head_precision or precision) if name.endswith(HEAD) else precision)
        if form and isinstance(layer, nn.Linear):
            for start in range(0, len(layer.weight), ROWS):
                part = layer.weight[start : start + ROWS]
                part.copy_(torch.from_numpy(dequantize(quantize(part, *form))))
