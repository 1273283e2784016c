"""Weight-only block quantisation: 4 or 8 bits, blocks of 32 or 128 along the input features, symmetric.

A block's scale is the value of largest magnitude over -2^(bits - 1), so that this value is met exactly and the whole
range [-2^(bits - 1), 2^(bits - 1) - 1] is used. Source: `Q4_0` of ggml; ONNX Runtime's `MatMulNBits` reads the result
with its default zero point 2^(bits - 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

BLOCK: Final = 32

ROWS: Final = 2048
"""Output features quantised together; bounds the float32 copies."""

HALF_HOLDS: Final = 2**-6
"""Relative error up to which a scale counts as held by float16: 2^-11 above 6e-5, where it begins to lose bits."""


@dataclass(frozen=True)
class BlockWeights:
    """A weight [N, K] in blocks of `block` along K, K padded with zeros to whole blocks.

    `codes`: uint8 [N, K / block, block / 2] (4 bits, first value in the low half) or [N, K / block, block] (8 bits),
    unsigned, zero at 2^(bits - 1). `scales`: float32 [N, K / block].
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    bits: int
    in_features: int
    block: int = BLOCK


def quantize(weight: torch.Tensor, bits: int, block: int = BLOCK) -> BlockWeights:
    """Quantise a weight [N, K] of any float type."""
    rows, features = weight.shape
    blocks = -(-features // block)
    codes = np.empty((rows, blocks, block * bits // 8), np.uint8)
    scales = np.empty((rows, blocks), np.float32)
    for start in range(0, rows, ROWS):
        stop = min(rows, start + ROWS)
        codes[start:stop], scales[start:stop] = _quantize_rows(weight[start:stop], bits, blocks, block)
    return BlockWeights(codes, scales, bits, features, block)


def dequantize(weights: BlockWeights, *, half: bool = False) -> NDArray[np.float32]:
    """The float32 weight [N, K] the codes stand for; `half`: with scales stored in float16.

    A scale float16 cannot hold counts as it is: a graph whose scales overflow or underflow then differs from what is
    computed here by as much as that matters, and does not pass its gate.
    """
    codes, scales = weights.codes, weights.scales
    if half:
        with np.errstate(over="ignore"):
            rounded = scales.astype(np.float16).astype(np.float32)
        scales = np.where(np.isclose(rounded, scales, rtol=HALF_HOLDS, atol=0), rounded, scales)
    if weights.bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:2], weights.block)
    values = (codes.astype(np.float32) - 2 ** (weights.bits - 1)) * scales[..., None]
    whole: NDArray[np.float32] = values.reshape(len(values), -1)[:, : weights.in_features]
    return whole


def _quantize_rows(
    weight: torch.Tensor, bits: int, blocks: int, block: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    half = 2 ** (bits - 1)
    values = weight.float()
    values = torch.nn.functional.pad(values, (0, blocks * block - values.shape[1])).view(-1, blocks, block)
    low, high = values.amin(-1), values.amax(-1)
    scale = torch.where(-low > high, low, high) / -half
    inverse = torch.where(scale == 0, 0.0, 1.0 / scale)
    codes = (values * inverse[..., None]).round_().add_(half).clamp_(0, 2 * half - 1).to(torch.uint8)
    if bits == 4:
        codes = codes[..., 0::2] | (codes[..., 1::2] << 4)
    return codes.numpy(), scale.numpy()
