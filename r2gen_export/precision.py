"""The decoder's precisions: how weights are stored, what they are multiplied in, what that may cost. One table.

Nothing is imported here, so that the command line can list the names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Precision = Literal["fp32", "fp16", "int8", "int4", "int4-128", "int8-f16", "int4-f16", "int4-128-f16"]


@dataclass(frozen=True)
class WeightFormat:
    """One precision of the decoder.

    Attributes:
        name: as manifests and the command line have it.
        bits: of a stored weight.
        block: weights along the input features that share a scale; None: no scales.
        half: activations, scales and KV cache are float16, else float32.
        logits_tolerance: allowed max abs difference from PyTorch with the same rounded weights, per unit of the largest
            logit. It covers what rounded activations add: float16 ones, or 8-bit ones where ONNX Runtime's CPU kernels
            multiply blocks.
        layer_tolerance: the same for one layer, per unit of the largest change it makes to its input.
    """

    name: Precision
    bits: int
    block: int | None
    half: bool
    logits_tolerance: float
    layer_tolerance: float

    @property
    def blocks(self) -> tuple[int, int] | None:
        """Bits and block size of quantised weights, None where they are plain floats."""
        return None if self.block is None else (self.bits, self.block)

    @property
    def bytes_per_weight(self) -> float:
        """Bytes of one stored weight and its share of a scale."""
        return self.bits / 8 + (0.0 if self.block is None else (2 if self.half else 4) / self.block)


# Observed, as the tolerances count, on random LLaMAs of two layers (the models of test_decoder_export.py) and
# on the demo's trained one: logits differ by up to 1e-6 in fp32, 3e-3 in fp16, and in blocks 1e-1, trained 2e-2; layers
# by 8e-7, 2e-3, and in blocks of 32 by 3e-2, of 128 by 5e-2, trained 2e-2. What blocks add are activations rounded to
# 8 bits: without (accuracy level 0) logits differ by 1e-6 with float32 activations, by 4e-3 with float16 ones. An
# eighth of one matrix with the wrong sign shows as 5e-1 and more in every precision.
_TABLE: Final = (
    WeightFormat("fp32", 32, None, False, 5e-4, 1e-3),
    WeightFormat("fp16", 16, None, True, 2e-2, 2e-2),
    WeightFormat("int8", 8, 32, False, 1e-1, 8e-2),
    WeightFormat("int4", 4, 32, False, 1e-1, 8e-2),
    WeightFormat("int4-128", 4, 128, False, 1e-1, 1e-1),
    WeightFormat("int8-f16", 8, 32, True, 1e-1, 8e-2),
    WeightFormat("int4-f16", 4, 32, True, 1e-1, 8e-2),
    WeightFormat("int4-128-f16", 4, 128, True, 1e-1, 1e-1),
)

PRECISIONS: Final[dict[str, WeightFormat]] = {entry.name: entry for entry in _TABLE}
"""Every precision by name."""


TENSOR_PRECISIONS: Final = ("fp32", "fp16", "int8")
"""What the vision encoder and the embedding table are stored in."""


def with_half_activations(name: str) -> str:
    """The precision that stores weights alike and computes in float16: what a GPU runs fast. fp32 gives fp16."""
    entry = PRECISIONS[name]
    if entry.half:
        return name
    return "fp16" if entry.block is None else f"{name}-f16"
