"""A PyTorch LLaMA with the weights a reduced precision keeps: what the exported graph must compute.

Comparing with this model tells a wrong graph from coarse weights; comparing with the original tells how coarse.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from r2gen_export.exporting.decoder.fill import HEAD
from r2gen_export.exporting.decoder.quantize import ROWS, dequantize, quantize
from r2gen_export.precision import PRECISIONS


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
        module: a LLaMA, or one of its decoder layers. Its embeddings stay: see `round_embeddings`.
        precision: `fp32` changes nothing; blocks round the linear layers' weights; with float16 activations every other
            tensor is rounded to float16.
        head_precision: of `lm_head`, with the same activations; None: the same.
    """
    half = PRECISIONS[precision].half
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Embedding):
            continue
        blocks = PRECISIONS[(head_precision or precision) if name.endswith(HEAD) else precision].blocks
        for kind, parameter in layer.named_parameters(recurse=False):
            if blocks and kind == "weight" and isinstance(layer, nn.Linear):
                for part in parameter.split(ROWS):
                    part.copy_(torch.from_numpy(dequantize(quantize(part, *blocks), half=half)))
            elif half:
                parameter.copy_(parameter.half())
