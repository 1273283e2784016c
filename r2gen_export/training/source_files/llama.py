"""config.json and generation_config.json of an LLM, as transformers 4 and 5 write them, into one record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from r2gen_export.errors import R2GenError
from r2gen_export.training.source_files.fields import Fields, read_object
from r2gen_export.training.source_files.place import required_file, source_file, source_name
from r2gen_export.training.source_files.rope import Rope, read_rope

WHAT: Final = "LLM"

ACTIVATIONS: Final = ("silu", "swish", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "relu")
"""Names transformers and ONNX both know."""

FLOATS: Final = tuple(
    prefix + name for prefix in ("", "torch.") for name in ("float32", "float16", "bfloat16", "float64", "auto")
)

FOREIGN: Final[dict[str, tuple[Any, ...]]] = {
    "quantization_config": ({},),
    "compression_config": ({},),
    "auto_map": ({},),
    "partial_rotary_factor": (1.0,),
    "sliding_window": (),
    "attention_multiplier": (),
    "query_pre_attn_scalar": (),
    "embedding_multiplier": (1.0,),
    "residual_multiplier": (1.0,),
    "logits_scaling": (1.0,),
    "logit_scale": (1.0,),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "clip_qkv": (),
    "use_qk_norm": (False,),
    "qk_layernorm": (False,),
    "no_rope_layers": ([],),
}
"""Fields that change the arithmetic, which transformers' LLaMA ignores: with values under which they change nothing."""

FOREIGN_FIX: Final = "use the plain model in float32, float16 or bfloat16, without this field"


@dataclass(frozen=True)
class LlamaSettings:
    """What a LLaMA computes. `stops`: ids its own `generate` stops at, None where its files do not say."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    max_positions: int
    epsilon: float
    rope: Rope
    activation: str
    attention_bias: bool
    mlp_bias: bool
    tied: bool
    bos: int | None
    pad: int | None
    stops: tuple[int, ...] | None

    def arguments(self) -> dict[str, Any]:
        """Arguments of transformers 4's `LlamaConfig`; `model_type` included."""
        return {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.max_positions,
            "rms_norm_eps": self.epsilon,
            "rope_theta": self.rope.theta,
            "rope_scaling": self.rope.rope_scaling(),
            "hidden_act": self.activation,
            "attention_bias": self.attention_bias,
            "mlp_bias": self.mlp_bias,
            "tie_word_embeddings": self.tied,
            "bos_token_id": self.bos,
            "pad_token_id": self.pad,
            "eos_token_id": self.stops[0] if self.stops is not None and len(self.stops) == 1 else None,
        }


def read_llama(source: str | Path) -> LlamaSettings:
    """What an LLM's config.json and generation_config.json say.

    Raises:
        R2GenError: `R2G-MODEL-MISSING` without a readable config.json; `R2G-MODEL-UNSUPPORTED` naming the field for
            another type of model, a quantised one, one with an adapter or code of its own, and for malformed values.
    """
    owner = f"the LLM {source_name(source)!r}"
    config = Fields(read_object(required_file(source, "config.json", WHAT), WHAT, source), "config.json", owner)
    if config.values.get("model_type") != "llama":
        message = f"the LLM {source_name(source)!r} is of type {config.values.get('model_type')!r}, expected 'llama'"
        raise R2GenError("R2G-MODEL-UNSUPPORTED", message, "name a llama model")
    refuse_adapter(source, owner)
    config.require_neutral(FOREIGN, FOREIGN_FIX)
    for name in ("dtype", "torch_dtype"):
        config.text(name, None, choices=FLOATS)
    return _checked(config, _stops(source, owner, config))


def _checked(config: Fields, stops: tuple[int, ...] | None) -> LlamaSettings:
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    if "head_dim" not in config and hidden % heads:
        raise config.refusal("num_attention_heads", f"a divisor of hidden_size, {hidden}")
    kv_heads = config.integer("num_key_value_heads", None) or heads
    if heads % kv_heads:
        raise config.refusal("num_key_value_heads", f"a divisor of num_attention_heads, {heads}")
    head_dim = config.integer("head_dim", None) or hidden // heads
    if head_dim % 2:
        raise config.refusal("head_dim", "an even number")
    layers = config.values.get("layer_types")
    if layers is not None and (not isinstance(layers, list) or any(kind != "full_attention" for kind in layers)):
        raise config.refusal("layer_types", "full_attention throughout", FOREIGN_FIX)
    vocab = config.integer("vocab_size")
    pad = config.integer("pad_token_id", None, low=-1)  # -1 in files of LLaMA 1: none
    return LlamaSettings(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=config.integer("intermediate_size"),
        layers=config.integer("num_hidden_layers", high=10_000),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        max_positions=config.integer("max_position_embeddings", 2048, high=1 << 22),
        epsilon=config.number("rms_norm_eps", up_to=0.1),
        rope=read_rope(config),
        activation=config.text("hidden_act", "silu", choices=ACTIVATIONS),
        attention_bias=config.flag("attention_bias", False, null=True),
        mlp_bias=config.flag("mlp_bias", False, null=True),
        tied=config.flag("tie_word_embeddings", False, null=True),
        bos=config.integer("bos_token_id", None, low=0),
        pad=pad if pad is not None and 0 <= pad < vocab else None,
        stops=stops,
    )


def refuse_adapter(source: str | Path, owner: str) -> None:
    """Refuse a folder that holds adapter_config.json: transformers would load the base model that it names instead.

    Raises:
        R2GenError: `R2G-MODEL-UNSUPPORTED`.
    """
    if source_file(source, "adapter_config.json", WHAT) is None:
        return
    message = (
        f"{owner} holds adapter_config.json, which names another base model; r2gen exports the folder's own weights "
        "and follows no adapter"
    )
    fix = "move adapter_config.json out of the folder; or merge the adapter (peft merge_and_unload) into a new folder"
    raise R2GenError("R2G-MODEL-UNSUPPORTED", message, fix)


def _stops(source: str | Path, owner: str, config: Fields) -> tuple[int, ...] | None:
    """Ids that `generate` of transformers stops at: generation_config.json's, else config.json's."""
    said = _ids(config, "eos_token_id")
    path = source_file(source, "generation_config.json", WHAT)
    if path is not None:
        generation = Fields(read_object(path, WHAT, source), path.name, owner)
        if "eos_token_id" in generation:
            return _ids(generation, "eos_token_id")
    return said


def _ids(fields: Fields, name: str) -> tuple[int, ...] | None:
    """One id or a list of ids, without repetitions; None for null, -1 or nothing."""
    value = fields.values.get(name)
    if value is None or value == -1:
        return None
    if isinstance(value, list):
        return tuple(dict.fromkeys(fields.integers(name, low=0)))
    return (fields.integer(name, low=0),)
