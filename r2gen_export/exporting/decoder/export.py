"""decoder/model.onnx: the LLaMA through optimum, with `inputs_embeds` in place of `input_ids`, and its KV cache.

Inputs `inputs_embeds` [B, S, d], `attention_mask` int64 [B, P + S], `position_ids` int64 [B, S],
`past_key_values.N.{key,value}` [B, kv_heads, P, head_dim]; outputs `logits` [B, S, vocab],
`present.N.{key,value}` [B, kv_heads, P + S, head_dim]. P may be 0.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from r2gen_export.errors import R2GenError
from r2gen_export.exporting.decoder.standard import OPSET, write_standard_fp32
from r2gen_export.precision import PRECISIONS

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


def dialects() -> dict[str, tuple[str, ...]]:
    """The dialects, and the precisions each can be written in."""
    from r2gen_export.exporting.decoder.dialects import DIALECTS

    return {"standard": ("fp32",), **dict.fromkeys(DIALECTS, tuple(PRECISIONS))}


def check_variant(dialect: str, precision: str, head_precision: str | None = None) -> None:
    """Refuse a decoder that cannot be written.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE`; the message names what there is.
    """
    choices = dialects()
    known = choices.get(dialect, ())
    if precision not in known or (head_precision or precision) not in known:
        listed = "; ".join(f"--dialect {one} --precision {'|'.join(each)}" for one, each in sorted(choices.items()))
        message = f"the decoder cannot be written in dialect {dialect!r} with precision {precision!r}"
        raise R2GenError("R2G-CONFIG-VALUE", message, f"choose from: {listed}")
    half = PRECISIONS[precision].half
    if head_precision is not None and PRECISIONS[head_precision].half != half:
        message = f"precision {precision} with an output layer in {head_precision}: the two use other activations"
        alike = ", ".join(name for name, entry in PRECISIONS.items() if entry.half == half)
        raise R2GenError("R2G-CONFIG-VALUE", message, f"give --head-precision one of {alike}")


def write_decoder(
    model: LlamaForCausalLM,
    folder: Path,
    *,
    dialect: str,
    precision: str,
    head_precision: str | None = None,
    advance: Callable[[], None] = lambda: None,
) -> int:
    """Write the bundle's `decoder/`.

    Args:
        model: the language model; for `standard` in float32 with its LoRA merged, else of any float type, its
            parameters possibly mapped from files.
        folder: made when it is not there.
        dialect: a key of `dialects()`.
        precision: one of its values.
        head_precision: of the output layer, None: that of the other layers.
        advance: called behind each decoder layer.

    Returns:
        The graph's opset.

    Raises:
        R2GenError: `R2G-MODEL-UNSUPPORTED`.
        OSError: when a file cannot be written.
    """
    if dialect == "standard":
        write_standard_fp32(model, folder)
        return OPSET
    from r2gen_export.exporting.decoder.weights import ModuleWeights
    from r2gen_export.exporting.decoder.write import write_streamed

    opset = write_streamed(
        model.config,
        ModuleWeights(model),
        folder,
        dialect=dialect,
        precision=precision,
        head_precision=head_precision,
        advance=advance,
    )
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    return opset
