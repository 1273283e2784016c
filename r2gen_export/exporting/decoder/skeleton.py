"""The LLaMA's graph without its weights: traced through optimum in seconds at any size.

Every `nn.Linear`, RMSNorm and attention is replaced by a weightless stand-in whose `symbolic` writes one node of the
domain `r2gen` that carries the names of its parameters; `fill.py` puts real operators in their place. What stays
(residual sums, the activation, which positions get logits) is transformers' own code, traced.

Source: optimum-onnx 0.1 `ModelPatcher`, the hook for changing a model for its export.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from r2gen_export.errors import R2GenError
from r2gen_export.exporting.decoder.standard import embeds_config_class
from r2gen_export.exporting.quiet import quiet
from r2gen_export.system.interrupts import interrupt_later

if TYPE_CHECKING:
    import onnx
    from transformers import LlamaConfig, LlamaForCausalLM

DOMAIN: Final = "r2gen"
"""Of the nodes that stand for `Linear`, `RMSNorm` and `Attention`. None of them is left in a written graph."""

TRACE_OPSET: Final = 18

GQA_HEAD: Final = 16
"""With the rotary embedding inside, its kernel takes head sizes that are multiples of this."""

STATIC_ROPE: Final = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary embedding whose frequencies do not depend on the length of the input."""


def problems(config: LlamaConfig) -> list[str]:
    """What of a configuration neither the `ort` nor the `trt` dialect can express, each in words."""
    rope = (config.rope_scaling or {}).get("rope_type", (config.rope_scaling or {}).get("type", "default"))
    rotary = getattr(config, "partial_rotary_factor", 1.0)
    found = {
        f"rope_scaling {rope!r}, whose frequencies change with the length": rope not in STATIC_ROPE,
        f"hidden_act {config.hidden_act!r}": config.hidden_act != "silu",
        f"{config.num_attention_heads} heads with {config.num_key_value_heads} of keys": bool(
            config.num_attention_heads % config.num_key_value_heads
        ),
        f"an odd head_dim, {head_dim(config)}": bool(head_dim(config) % 2),
        f"partial_rotary_factor {rotary}": rotary != 1.0,
        f"model_type {config.model_type!r}": config.model_type != "llama",
    }
    return [name for name, wrong in found.items() if wrong]


def head_dim(config: LlamaConfig) -> int:
    """Values of one head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def default_dialect(config: LlamaConfig) -> str:
    """`ort`; `trt`, which ONNX Runtime runs too, for heads of other sizes; `standard` for what neither expresses."""
    if problems(config):
        return "standard"
    return "trt" if head_dim(config) % GQA_HEAD else "ort"


def check_config(config: LlamaConfig, dialect: str) -> None:
    """Refuse by name what the `ort` and `trt` decoders cannot do.

    Raises:
        R2GenError: `R2G-MODEL-UNSUPPORTED`.
    """
    found, fix = problems(config), "--dialect standard --precision fp32"
    if not found and dialect == "ort" and head_dim(config) % GQA_HEAD:
        found = [f"head_dim {head_dim(config)}, of which GroupQueryAttention takes multiples of {GQA_HEAD}"]
        fix = "--dialect trt, which ONNX Runtime runs too"
    if found:
        message = f"the LLM's config.json has {', '.join(found)}"
        raise R2GenError("R2G-MODEL-UNSUPPORTED", message, fix)


def trace_skeleton(config: LlamaConfig) -> onnx.ModelProto:
    """The decoder's graph with nodes of `DOMAIN` where weights belong.

    Inputs: `inputs_embeds` [B, S, d], `attention_mask` int64 [B, P + S], `position_ids` int64 [B, S],
    `past_key_values.N.{key,value}` [B, kv_heads, P, head_dim], `logits_to_keep` int64 [K], the positions of S that get
    logits (as in transformers' `forward`). Outputs: `logits` [B, K, vocab], `present.N.{key,value}`.

    The configuration is one `check_config` lets pass.
    """
    import onnx

    model = _weightless(config)
    with interrupt_later(), quiet(), tempfile.TemporaryDirectory() as folder:
        from optimum.exporters.onnx import onnx_export_from_model

        task = "text-generation"
        onnx_export_from_model(
            model,
            Path(folder),
            opset=TRACE_OPSET,
            task=f"{task}-with-past",
            custom_onnx_configs={
                "model": _skeleton_config_class()(model.config, task=task, use_past=True, use_past_in_inputs=True)
            },
            do_validation=False,
        )
        return onnx.load(Path(folder) / "model.onnx")


class _LinearNode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, name: str, features: int, bias: bool) -> torch.Tensor:
        return x.new_zeros(*x.shape[:-1], features)

    @staticmethod
    def symbolic(g: Any, x: Any, name: str, features: int, bias: bool) -> Any:
        return _like(g.op(f"{DOMAIN}::Linear", x, name_s=name, bias_i=int(bias)), x, last=features)


class _NormNode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, name: str, epsilon: float) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def symbolic(g: Any, x: Any, name: str, epsilon: float) -> Any:
        return _like(g.op(f"{DOMAIN}::RMSNorm", x, name_s=name, epsilon_f=epsilon), x)


class _AttentionNode(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - autograd functions take no keyword arguments
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        past_key: torch.Tensor,
        past_value: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        scaling: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        batch, heads, past, head_dim = past_key.shape
        grown = past_key.new_zeros(batch, heads, past + q.shape[1], head_dim)
        return q.clone(), grown, grown.clone()

    @staticmethod
    def symbolic(  # noqa: PLR0917
        g: Any, q: Any, k: Any, v: Any, past_key: Any, past_value: Any, mask: Any, positions: Any, scaling: float
    ) -> Any:
        inputs = (q, k, v, past_key, past_value, mask, positions)
        out, key, value = g.op(f"{DOMAIN}::Attention", *inputs, scaling_f=scaling, outputs=3)
        return _like(out, q), _like(key, past_key, dynamic=2), _like(value, past_value, dynamic=2)


def _like(value: Any, source: Any, *, last: int | None = None, dynamic: int | None = None) -> Any:
    """Give a node's output the type of `source`, so that the exporter's shape inference goes on behind it."""
    sizes = list(source.type().sizes() or [])
    if last is not None and sizes:
        sizes[-1] = last
    if dynamic is not None and sizes:
        sizes[dynamic] = None
    value.setType(source.type().with_sizes(sizes) if sizes else source.type())
    return value


class _Linear(nn.Module):
    def __init__(self, name: str, features: int, bias: bool) -> None:
        super().__init__()
        self.name, self.features, self.bias = name, features, bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _LinearNode.apply(x, self.name, self.features, self.bias)


class _Norm(nn.Module):
    def __init__(self, name: str, epsilon: float) -> None:
        super().__init__()
        self.name, self.epsilon = name, epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _NormNode.apply(x, self.name, self.epsilon)


class _PassPositions(nn.Module):
    """In the place of the rotary embedding: hands the positions on, attention nodes have the tables."""

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        return position_ids


def _attention_forward(
    self: Any,
    hidden_states: torch.Tensor,
    position_embeddings: torch.Tensor,
    attention_mask: torch.Tensor,
    past_key_values: Any,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """`LlamaAttention.forward` with everything between the projections in one node."""
    q, k, v = self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states)
    layer = past_key_values.layers[self.layer_idx]
    cached = (layer.keys, layer.values)
    out, layer.keys, layer.values = _AttentionNode.apply(
        q, k, v, *cached, attention_mask, position_embeddings, self.scaling
    )
    return self.o_proj(out), None


def _weightless(config: LlamaConfig) -> LlamaForCausalLM:
    """The model with stand-ins; one parameter is left, from which optimum reads device and dtype."""
    from transformers import LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRMSNorm

    config = type(config).from_dict(config.to_dict())
    config._name_or_path = ""  # optimum would otherwise look for a tokenizer under this name
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    for name, module in list(model.named_modules()):
        stand_in: nn.Module
        if isinstance(module, nn.Linear):
            stand_in = _Linear(name, module.out_features, module.bias is not None)
        elif isinstance(module, LlamaRMSNorm):
            stand_in = _Norm(name, module.variance_epsilon)
        else:
            if isinstance(module, LlamaAttention):
                module.forward = MethodType(_attention_forward, module)
            continue
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, stand_in)
    model.model.rotary_emb = _PassPositions()
    model.model.embed_tokens = nn.Embedding(1, 1)  # not traced: the graph begins behind it
    return model.eval()


def _skeleton_config_class() -> Any:
    from optimum.exporters.onnx.model_patcher import ModelPatcher, PatchingSpec
    from optimum.utils import DummyInputGenerator
    from transformers.models.llama import modeling_llama

    class LogitsGenerator(DummyInputGenerator):
        SUPPORTED_INPUT_NAMES = ("logits_to_keep",)

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            pass

        def generate(self, input_name: str, *args: Any, **kwargs: Any) -> Any:
            return torch.tensor([0, 1])

    class SkeletonPatcher(ModelPatcher):
        """The mask goes to the attention nodes as it came, `logits_to_keep` is an input."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.model_kwargs.pop("logits_to_keep", None)  # optimum's constant would replace the input

            def pass_mask(*_: Any, attention_mask: torch.Tensor, **__: Any) -> torch.Tensor:
                return attention_mask

            original = modeling_llama.create_causal_mask
            self._patching_specs.append(PatchingSpec(modeling_llama, "create_causal_mask", pass_mask, original))

    base = embeds_config_class()

    class SkeletonConfig(base):  # type: ignore[valid-type,misc]
        DUMMY_INPUT_GENERATOR_CLASSES = (*base.DUMMY_INPUT_GENERATOR_CLASSES, LogitsGenerator)
        _MODEL_PATCHER = SkeletonPatcher

        @property
        def inputs(self) -> dict[str, dict[int, str]]:
            return {**super().inputs, "logits_to_keep": {0: "num_logits"}}

        @property
        def outputs(self) -> dict[str, dict[int, str]]:
            return {**super().outputs, "logits": {0: "batch_size", 1: "num_logits"}}

        def fix_dynamic_axes(self, *args: Any, **kwargs: Any) -> None:
            """Not done: it would run the graph, which no engine can."""

    return SkeletonConfig
