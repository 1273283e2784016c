"""config.json of a Swin vision encoder into one record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from r2gen_export.errors import R2GenError
from r2gen_export.training.source_files.fields import Fields, read_object
from r2gen_export.training.source_files.llama import ACTIVATIONS, FLOATS, FOREIGN_FIX
from r2gen_export.training.source_files.place import required_file, source_name

WHAT: Final = "vision encoder"

FOREIGN: Final[dict[str, tuple[Any, ...]]] = {
    "quantization_config": ({},),
    "compression_config": ({},),
    "auto_map": ({},),
    "num_channels": (3,),
}


@dataclass(frozen=True)
class SwinSettings:
    """What a Swin computes; sizes in pixels, `depths` and `heads` per stage."""

    image_size: int
    patch_size: int
    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int
    mlp_ratio: float
    epsilon: float
    activation: str
    qkv_bias: bool
    absolute_positions: bool
    drop_path: float
    dropout: float
    attention_dropout: float

    def arguments(self) -> dict[str, Any]:
        """Arguments of transformers' `SwinConfig`; `model_type` included."""
        return {
            "model_type": "swin",
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "num_channels": 3,
            "embed_dim": self.width,
            "depths": list(self.depths),
            "num_heads": list(self.heads),
            "window_size": self.window,
            "mlp_ratio": self.mlp_ratio,
            "layer_norm_eps": self.epsilon,
            "hidden_act": self.activation,
            "qkv_bias": self.qkv_bias,
            "use_absolute_embeddings": self.absolute_positions,
            "drop_path_rate": self.drop_path,
            "hidden_dropout_prob": self.dropout,
            "attention_probs_dropout_prob": self.attention_dropout,
        }

    def stage_width(self, stage: int) -> int:
        """Features of a stage."""
        return int(self.width * 2**stage)


def read_swin(source: str | Path) -> SwinSettings:
    """What a vision encoder's config.json says.

    Raises:
        R2GenError: `R2G-MODEL-MISSING` without a readable file; `R2G-MODEL-UNSUPPORTED` naming the field.
    """
    owner = f"the vision encoder {source_name(source)!r}"
    config = Fields(read_object(required_file(source, "config.json", WHAT), WHAT, source), "config.json", owner)
    if config.values.get("model_type") != "swin":
        message = f"the {WHAT} {source_name(source)!r} is of type {config.values.get('model_type')!r}, expected 'swin'"
        raise R2GenError("R2G-MODEL-UNSUPPORTED", message, "name a swin model")
    config.require_neutral(FOREIGN, FOREIGN_FIX)
    for name in ("dtype", "torch_dtype"):
        config.text(name, None, choices=FLOATS)
    depths = config.integers("depths", high=1000)
    if len(depths) > 8:
        raise config.refusal("depths", "at most 8 stages")
    heads = config.integers("num_heads", length=len(depths))
    width = config.integer("embed_dim", high=100_000)
    for stage, count in enumerate(heads):
        if width * 2**stage % count:
            raise config.refusal("num_heads", f"divisors of the widths of the stages, {width} doubled at each")
    patch = config.integer("patch_size", high=10_000)
    image = config.integer("image_size", high=100_000)
    if image < patch:
        raise config.refusal("image_size", f"at least patch_size, {patch}")
    return SwinSettings(
        image_size=image,
        patch_size=patch,
        width=width,
        depths=depths,
        heads=heads,
        window=config.integer("window_size", high=1000),
        mlp_ratio=config.number("mlp_ratio", 4.0, up_to=100),
        epsilon=config.number("layer_norm_eps", 1e-5, up_to=0.1),
        activation=config.text("hidden_act", "gelu", choices=ACTIVATIONS),
        qkv_bias=config.flag("qkv_bias", True, null=True),
        absolute_positions=config.flag("use_absolute_embeddings", False, null=True),
        drop_path=config.share("drop_path_rate", 0.1),
        dropout=config.share("hidden_dropout_prob", 0.0),
        attention_dropout=config.share("attention_probs_dropout_prob", 0.0),
    )
