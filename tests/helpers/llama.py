"""A small LLaMA with random weights, of any configuration: what decoders are exported from."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

BASE = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}


def make_llama(seed: int = 0, **changes: object) -> LlamaForCausalLM:
    """`changes`: of `BASE`. Norms and biases are random too, so that nothing passes because it is one or zero."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{**BASE, **changes})).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.normal_(1, 0.3)
    return model
