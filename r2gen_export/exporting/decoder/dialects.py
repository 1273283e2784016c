"""What attention and quantised weights become: ONNX Runtime's own operators (`ort`) or opset 24 alone (`trt`).

Measured on two cores at the 1.1B shape, int4, in one process: both decode alike (within 4 %), `ort` prefills 9 % faster
and loads in a quarter of the time, because ONNX Runtime need not repack `DequantizeLinear` weights. TensorRT parses
`trt` only. In both, past and present may be one buffer: the cache has a fixed length and new positions go into place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
import onnx
from onnx import helper

from r2gen_export.exporting.decoder.graph import CONTRIB, GraphBuilder
from r2gen_export.exporting.decoder.quantize import BlockWeights

if TYPE_CHECKING:
    from transformers import LlamaConfig

ACCURACY_LEVEL: Final = 4
"""`MatMulNBits` may round activations to int8, block by block: what makes 4-bit weights fast."""

POSITIONS: Final = "position_ids"
COS: Final = "cos_cache"
SIN: Final = "sin_cache"
TOTAL: Final = "total_sequence_length"
"""Input int32 []: positions in use behind the pass. A pass of one position may give the cache's length instead."""


class Dialect(Protocol):
    """How one engine's graphs are written."""

    @property
    def packs(self) -> bool:
        """Whether projections of one input (q, k, v; gate, up) become one product; attention then gets q, k, v as one.

        Same numbers, fewer nodes to share out among threads: at the 1.1B shape, int4, a token takes 0.95 of the time.
        """

    @property
    def opsets(self) -> dict[str, int]:
        """Versions by domain."""

    @property
    def inputs(self) -> tuple[onnx.ValueInfoProto, ...]:
        """Inputs of the graph beside those of the skeleton."""

    def prologue(self, graph: GraphBuilder) -> None:
        """Nodes computed once, before the first layer."""

    def matmul(self, graph: GraphBuilder, x: str, name: str, weights: BlockWeights, out: str) -> None:
        """`out` [..., N] = `x` [..., K] times quantised weights [N, K], transposed."""

    def attention(self, graph: GraphBuilder, config: LlamaConfig, node: onnx.NodeProto, scaling: float) -> None:
        """In the place of the skeleton's attention node: rotary embedding, cache update, causal attention."""


def last_position(graph: GraphBuilder) -> str:
    """[B] int64, each row's last position. They ascend; a maximum would go through cuDNN on a GPU."""
    return graph.node("Gather", [POSITIONS, graph.integers(-1)], "last_position", axis=1)


class OrtDialect:
    """`GroupQueryAttention` with the rotary embedding inside, and `MatMulNBits`."""

    packs = True

    @property
    def opsets(self) -> dict[str, int]:
        return {"": 23, CONTRIB: 1}

    @property
    def inputs(self) -> tuple[onnx.ValueInfoProto, ...]:
        # GroupQueryAttention reads it in host memory: computed in the graph, it would cross the bus in every pass.
        return (helper.make_tensor_value_info(TOTAL, onnx.TensorProto.INT32, []),)

    def prologue(self, graph: GraphBuilder) -> None:
        graph.node("Cast", [last_position(graph)], "seqlens_k", to=onnx.TensorProto.INT32)

    def matmul(self, graph: GraphBuilder, x: str, name: str, weights: BlockWeights, out: str) -> None:
        codes = graph.constant(f"{name}.codes", weights.codes)
        scales = graph.floats(f"{name}.scales", weights.scales)
        graph.node(
            "MatMulNBits",
            [x, codes, scales],
            out,
            domain=CONTRIB,
            K=weights.in_features,
            N=len(weights.codes),
            bits=weights.bits,
            block_size=weights.block,
            accuracy_level=ACCURACY_LEVEL,
        )

    def attention(self, graph: GraphBuilder, config: LlamaConfig, node: onnx.NodeProto, scaling: float) -> None:
        q, k, v, past_key, past_value, *_ = node.input
        graph.node(
            "GroupQueryAttention",
            [q, k, v, past_key, past_value, "seqlens_k", TOTAL, COS, SIN],
            node.output,
            domain=CONTRIB,
            num_heads=config.num_attention_heads,
            kv_num_heads=config.num_key_value_heads,
            do_rotary=1,
            scale=scaling,
        )


class TrtDialect:
    """Opset 24: `RotaryEmbedding`, `TensorScatter` into the cache, `Attention` with an additive mask."""

    packs = False

    @property
    def opsets(self) -> dict[str, int]:
        return {"": 24}

    @property
    def inputs(self) -> tuple[onnx.ValueInfoProto, ...]:
        return ()

    def prologue(self, graph: GraphBuilder) -> None:
        length = graph.node("Shape", ["past_key_values.0.key"], "cache_shape", start=2, end=3)
        scalar = graph.node("Squeeze", [length], "cache_length")
        slots = graph.node("Range", [graph.integers(0), scalar, graph.integers(1)], "slots")
        # One mask for causality and for slots not yet written: a position sees slots up to its own.
        position = graph.node("Unsqueeze", [POSITIONS, graph.integers([1, 3])], "own_slot")
        seen = graph.node("LessOrEqual", [slots, position], "seen")
        values = [graph.floats("unmasked", 0.0), graph.floats("masked", -np.inf)]
        graph.node("Where", [seen, *values], "additive_mask")
        graph.node("Gather", [POSITIONS, graph.integers(0)], "write_indices", axis=1)
        graph.node("Add", [last_position(graph), graph.integers(1)], "nonpad_kv_seqlen")

    def matmul(self, graph: GraphBuilder, x: str, name: str, weights: BlockWeights, out: str) -> None:
        codes = weights.codes
        rows = len(codes)
        if weights.bits == 4:
            codes = np.stack([codes & 15, codes >> 4], axis=-1)
        # [N, K] unsigned around 2^(bits-1) -> [K, N] in two's complement
        half = 2 ** (weights.bits - 1)
        whole = codes.reshape(rows, -1)[:, : weights.in_features].T ^ np.uint8(half)
        kind = onnx.TensorProto.INT8
        if weights.bits == 4:
            flat = np.ascontiguousarray(whole).reshape(-1)
            if len(flat) % 2:
                flat = np.append(flat, np.uint8(0))
            whole, kind = flat[0::2] | (flat[1::2] << 4), onnx.TensorProto.INT4
        shape = (weights.in_features, rows)
        stored = graph.constant(f"{name}.codes", whole, kind=kind, dims=shape)
        scales = graph.floats(f"{name}.scales", weights.scales.T)
        full = graph.node("DequantizeLinear", [stored, scales], f"{name}.dequantized", axis=0, block_size=weights.block)
        graph.node("MatMul", [x, full], out)

    def attention(self, graph: GraphBuilder, config: LlamaConfig, node: onnx.NodeProto, scaling: float) -> None:
        q, k, v, past_key, past_value, *_ = node.input
        out, key, value = node.output
        heads = config.num_attention_heads
        split = {
            "q": self._heads(graph, q, heads, f"{out}_q"),
            "k": self._heads(graph, k, config.num_key_value_heads, f"{out}_k"),
        }
        for name, whole in split.items():
            split[name] = graph.node("RotaryEmbedding", [whole, COS, SIN, POSITIONS], f"{out}_{name}_rotated")
        values = self._heads(graph, v, config.num_key_value_heads, f"{out}_v")
        for past, new, present in ((past_key, split["k"], key), (past_value, values, value)):
            graph.node("TensorScatter", [past, new, "write_indices"], present, axis=2, mode="linear")
        inputs = [split["q"], key, value, "additive_mask", "", "", "nonpad_kv_seqlen"]
        mixed = graph.node("Attention", inputs, f"{out}_heads", scale=scaling)
        rows = graph.node("Transpose", [mixed], f"{out}_rows", perm=[0, 2, 1, 3])
        graph.node("Reshape", [rows, graph.integers([0, 0, -1])], out)

    def _heads(self, graph: GraphBuilder, x: str, heads: int, name: str) -> str:
        """[B, S, heads * head_dim] to [B, heads, S, head_dim]."""
        split = graph.node("Reshape", [x, graph.integers([0, 0, heads, -1])], f"{name}_split")
        return graph.node("Transpose", [split], f"{name}_heads", perm=[0, 2, 1, 3])


DIALECTS: Final[dict[str, Dialect]] = {"ort": OrtDialect(), "trt": TrtDialect()}
