"""The model all contenders run: a LLaMA of a known shape with random weights, in float16 safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from r2gen_export.bundle import Dims

SHAPES: Final[dict[str, dict[str, Any]]] = {
    "tiny": {
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 32000,
        "max_position_embeddings": 512,
    },
    "tinyllama-1.1b": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
        "max_position_embeddings": 2048,
    },
    "llama-2-7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
    },
}
"""Of TinyLlama-1.1B and LLaMA-2-7B, and one to try the benchmark with."""

LAYER_NORMS: Final = ("input_layernorm", "post_attention_layernorm")


def decoder_dims(config: Mapping[str, Any]) -> Dims:
    """A bundle's sizes from a LLaMA's `config.json`."""
    return Dims(
        image_tokens=49,
        d_llm=config["hidden_size"],
        vocab_size=config["vocab_size"],
        num_layers=config["num_hidden_layers"],
        num_kv_heads=config["num_key_value_heads"],
        head_dim=config["hidden_size"] // config["num_attention_heads"],
        max_positions=config["max_position_embeddings"],
    )


def make_model(folder: Path, shape: str, seed: int = 0) -> Path:
    """Write config, shards of four layers and a tokenizer of words `w3` ..., one tensor group at a time."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig

    config = LlamaConfig(
        **SHAPES[shape], dtype="float16", architectures=["LlamaForCausalLM"], tie_word_embeddings=False
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    torch.manual_seed(seed)
    hidden, inner = config.hidden_size, config.intermediate_size
    keys = hidden // config.num_attention_heads * config.num_key_value_heads
    places: dict[str, str] = {}

    def save(tensors: dict[str, torch.Tensor]) -> None:
        name = f"model-{len(set(places.values())) + 1:05d}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        places.update(dict.fromkeys(tensors, name))

    def random(rows: int, columns: int) -> torch.Tensor:
        return (torch.randn(rows, columns) * 0.02).half()

    save({"model.embed_tokens.weight": random(config.vocab_size, hidden)})
    group: dict[str, torch.Tensor] = {}
    for layer in range(config.num_hidden_layers):
        front = f"model.layers.{layer}"
        sizes = {
            "q_proj": (hidden, hidden),
            "k_proj": (keys, hidden),
            "v_proj": (keys, hidden),
            "o_proj": (hidden,) * 2,
        }
        group |= {f"{front}.self_attn.{name}.weight": random(*size) for name, size in sizes.items()}
        sizes = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
        group |= {f"{front}.mlp.{name}.weight": random(*size) for name, size in sizes.items()}
        group |= {f"{front}.{name}.weight": torch.ones(hidden).half() for name in LAYER_NORMS}
        if layer % 4 == 3 or layer + 1 == config.num_hidden_layers:
            save(group)
            group = {}
    save({"model.norm.weight": torch.ones(hidden).half(), "lm_head.weight": random(config.vocab_size, hidden)})
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{number}": number for number in range(3, config.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind), encoding="utf-8")
    return folder
