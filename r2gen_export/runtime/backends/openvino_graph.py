"""A decoder of the `ort` dialect as OpenVINO runs it best: the KV cache inside, and taken-back positions masked.

OpenVINO's CPU plugin keeps a cache in place only around one pattern (its `StatefulSDPAFusion`): a variable read, its
rows gathered by `beam_idx`, the new positions behind it, heads repeated by a product with ones, one
`ScaledDotProductAttention`, the variable written. Each `GroupQueryAttention` node becomes that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from r2gen_export.runtime.backends.openvino_import import import_openvino

if TYPE_CHECKING:
    import openvino

GROUPED: Final = "GroupQueryAttention"

SLOTS: Final = "slot_positions"
"""Input [B, L] int64: the position each cached or new slot of a row holds; `NEVER` where it is unused or taken back."""

ROWS: Final = "beam_idx"
"""Input [B] int32: which row of the last pass each row goes on from."""

NEVER: Final = 2**31 - 1
"""Later than any position, so that no position sees such a slot. OpenVINO computes with 32 bits."""


def make_stateful(model: openvino.Model) -> openvino.Model:
    """Put the KV cache of a decoder into variables.

    Args:
        model: as OpenVINO reads `decoder/model.onnx`: float32, inputs and outputs as `exporting/decoder` writes them.

    Returns:
        A model with inputs `inputs_embeds` [B, S, d], `position_ids` [B, S], `logits_to_keep` [K], `slot_positions` and
        `beam_idx`, and output `logits` [B, K, vocab].

    Raises:
        ValueError: when it is no such model.
    """
    library = import_openvino()
    from openvino import Type
    from openvino import opset13 as ops

    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() == GROUPED]
    inputs = {one.get_friendly_name(): one for one in model.get_parameters()}
    if not nodes or "position_ids" not in inputs:
        raise ValueError(f"it has no {GROUPED} nodes: it is not of the ort dialect")
    if inputs["inputs_embeds"].get_element_type() != Type.f32:
        raise ValueError("its activations are not float32")
    slots = ops.parameter([-1, -1], Type.i64, name=SLOTS)
    rows = ops.parameter([-1], Type.i32, name=ROWS)
    for added in (slots, rows):
        added.get_output_tensor(0).set_names({added.get_friendly_name()})
    attention = _Attention(inputs["position_ids"], slots, rows, nodes[0])
    writes = []
    for layer, node in enumerate(nodes):
        out, sinks = attention.of(node, layer)
        writes += sinks
        for target in node.output(0).get_target_inputs():
            target.replace_source_output(out.output(0))
    logits = [one for one in model.get_results() if "logits" in one.input_value(0).get_names()]
    # The cache and its length are the variables' business now.
    gone = ("past_key_values.", "total_sequence_length")
    kept = [one for name, one in inputs.items() if not name.startswith(gone)]
    return library.Model(logits, writes, [*kept, slots, rows], "decoder")


def has_quantised_weights(model: openvino.Model) -> bool:
    """Whether any of its constants with two dimensions or more holds 4-bit or 8-bit numbers."""
    constants = (node for node in model.get_ordered_ops() if node.get_type_name() == "Constant")
    names = {node.get_element_type().get_type_name() for node in constants if len(node.get_output_shape(0)) > 1}
    return bool(names & {"u4", "i4", "u8", "i8"})


class _Attention:
    """What all layers have in common: rotary tables, mask, empty cache; and one layer's subgraph."""

    def __init__(self, positions: Any, slots: Any, rows: Any, first: Any) -> None:
        from openvino import opset13 as ops

        settings = first.get_attributes()
        self._rows = rows
        self._heads, self._kv_heads = int(settings["num_heads"]), int(settings["kv_num_heads"])
        self._width = int(first.input(3).get_partial_shape()[3].get_length())
        # [positions, head_dim / 2] twice over, as transformers rotates: first half with second half.
        halves = [ops.gather(first.input_value(place), positions, _int(0)) for place in (7, 8)]
        self._cos, self._sin = (ops.unsqueeze(ops.concat([half, half], -1), _int(1)) for half in halves)
        seen = ops.less_equal(ops.unsqueeze(slots, _int([1, 2])), ops.unsqueeze(positions, _int([1, 3])))
        # Finite, because OpenVINO adds it to scores and the kernel subtracts the maximum.
        self._mask = ops.select(seen, _float(0), _float(float(np.finfo(np.float32).min)))  # [B, 1, S, L]
        batch = ops.gather(ops.shape_of(positions), _int([0]), _int(0))
        shape = ops.concat([batch, _int([self._kv_heads, 0, self._width])], 0)
        self._empty = ops.broadcast(_float(0), shape)

    def of(self, node: Any, layer: int) -> tuple[Any, list[Any]]:
        """The layer's output [B, S, heads * head_dim], and the writes of its cache."""
        from openvino import PartialShape, Type
        from openvino import opset13 as ops

        query, key, value = (node.input_value(place) for place in range(3))
        shape = PartialShape([-1, self._kv_heads, -1, self._width])
        whole, writes = [], []
        for name, new in (("key", self._rotate(key)), ("value", value)):
            cached = ops.read_value(self._empty, f"{layer}.{name}", Type.f32, shape)
            both = ops.concat([ops.gather(cached, self._rows, _int(0)), new], 2)
            writes.append(ops.assign(both, f"{layer}.{name}"))
            whole.append(self._repeat(both))
        scale = _float(node.get_attributes()["scale"])
        mixed = ops.scaled_dot_product_attention(self._rotate(query), *whole, self._mask, scale, causal=False)
        flat = _int([0, 0, self._heads * self._width])
        return ops.reshape(ops.transpose(mixed, _int([0, 2, 1, 3])), flat, True), writes

    def _rotate(self, x: Any) -> Any:
        """Rotary embedding of x [B, heads, S, head_dim] (transformers `apply_rotary_pos_emb`)."""
        from openvino import opset13 as ops

        halves = ops.variadic_split(x, _int(-1), _int([self._width // 2] * 2))
        turned = ops.concat([ops.multiply(halves.output(1), _float(-1)), halves.output(0)], -1)
        return ops.add(ops.multiply(x, self._cos), ops.multiply(turned, self._sin))

    def _repeat(self, cache: Any) -> Any:
        """[B, kv_heads, L, head_dim] to [B, heads, L, head_dim]."""
        from openvino import opset13 as ops

        if self._heads == self._kv_heads:
            return cache
        ones = ops.constant(np.ones((1, 1, self._heads // self._kv_heads, 1, 1), np.float32))
        return ops.reshape(ops.multiply(ops.unsqueeze(cache, _int(2)), ones), _int([0, self._heads, -1, 0]), True)


def _int(value: int | list[int]) -> Any:
    from openvino import opset13 as ops

    return ops.constant(np.array(value, np.int64))


def _float(value: float) -> Any:
    from openvino import opset13 as ops

    return ops.constant(np.array(value, np.float32))
