"""Does a loaded model use what r2gen itself reads in its config.json: rotary angles, epsilons, attention scales."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from r2gen_export.errors import R2GenError
from r2gen_export.training.source_files.llama import LlamaSettings
from r2gen_export.training.source_files.swin import SwinSettings

Finding = tuple[str, float, float]
"""What, as config.json says, as the model has it."""

TOLERANCE = 1e-5
"""Relative; both sides compute frequencies in their own float type."""


def check_llama(model: Any, settings: LlamaSettings, name: str) -> None:
    """Compare a `LlamaForCausalLM` with its config.json.

    Raises:
        R2GenError: `R2G-MODEL-UNSUPPORTED`, naming both values.
    """
    _require(_llama(model, settings), f"the LLM {name!r}")


def check_swin(model: Any, settings: SwinSettings, name: str) -> None:
    """Compare a `SwinModel` with its config.json. Raises as `check_llama`."""
    _require(_swin(model, settings), f"the vision encoder {name!r}")


def _llama(model: Any, settings: LlamaSettings) -> Iterator[Finding]:
    rotary = model.model.rotary_emb
    expected, factor = settings.rope.frequencies(settings.head_dim, settings.max_positions)
    actual = rotary.inv_freq.detach().double().cpu().numpy()
    yield "number of rotary frequencies", float(len(expected)), float(len(actual))
    if len(expected) == len(actual):
        worst = int(np.abs(expected - actual).argmax())
        for index in sorted({0, worst, len(expected) - 1}):
            yield f"rotary frequency {index}", float(expected[index]), float(actual[index])
    yield "factor of the rotary angles' cosine and sine", factor, float(rotary.attention_scaling)
    layers = model.model.layers
    yield "number of layers", settings.layers, len(layers)
    for index, layer in enumerate(layers):
        attention = layer.self_attn
        yield f"attention scale of layer {index}", settings.head_dim**-0.5, float(attention.scaling)
        yield f"heads per key of layer {index}", settings.heads / settings.kv_heads, attention.num_key_value_groups
        for norm in ("input_layernorm", "post_attention_layernorm"):
            epsilon = float(getattr(layer, norm).variance_epsilon)
            yield f"epsilon of {norm} of layer {index}", settings.epsilon, epsilon
    yield "epsilon of the last norm", settings.epsilon, float(model.model.norm.variance_epsilon)
    yield "vocabulary", settings.vocab_size, model.config.vocab_size


def _swin(model: Any, settings: SwinSettings) -> Iterator[Finding]:
    yield "epsilon of the last norm", settings.epsilon, float(model.layernorm.eps)
    stages = model.encoder.layers
    yield "number of stages", len(settings.depths), len(stages)
    for stage, part in enumerate(stages):
        where = f"of stage {stage}"
        yield f"number of blocks {where}", settings.depths[stage], len(part.blocks)
        head = settings.stage_width(stage) / settings.heads[stage]
        for block in part.blocks:
            yield f"width of a head {where}", head, float(block.attention.self.attention_head_size)
            for norm in ("layernorm_before", "layernorm_after"):
                yield f"epsilon of {norm} {where}", settings.epsilon, float(getattr(block, norm).eps)


def _require(findings: Iterator[Finding], owner: str) -> None:
    for what, expected, actual in findings:
        if not abs(expected - actual) <= TOLERANCE * max(abs(expected), 1e-12):
            message = f"{owner}: {what} is {expected:.9g} by its config.json, but {actual:.9g} in the loaded model"
            fix = "use the model with transformers' own config.json; if it is, report it with `r2gen doctor`'s output"
            raise R2GenError("R2G-MODEL-UNSUPPORTED", message, fix)
