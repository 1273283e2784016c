"""Small LLaMAs for the decode loop, and what transformers generates from the same prompt."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from r2gen_export.decoding import Decoding

WIDTH = 16


def make_llama(vocab_size: int, *, seed: int = 0) -> LlamaForCausalLM:
    """One random layer, wide enough in its initialisation that EOS and repeated n-grams happen."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def make_prompts(rng: np.random.Generator, batch: int, length: int, width: int = WIDTH) -> np.ndarray:
    return rng.normal(0, 1, (batch, length, width)).astype(np.float32)


def hf_config(decoding: Decoding, eos_token_id: int) -> GenerationConfig:
    sampling = {}
    if decoding.do_sample:
        sampling = {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": decoding.top_k}
    return GenerationConfig(
        num_beams=decoding.num_beams,
        min_new_tokens=decoding.min_new_tokens,
        max_new_tokens=decoding.max_new_tokens,
        repetition_penalty=decoding.repetition_penalty,
        length_penalty=decoding.length_penalty,
        no_repeat_ngram_size=decoding.no_repeat_ngram_size,
        early_stopping=decoding.early_stopping,
        do_sample=decoding.do_sample,
        eos_token_id=eos_token_id,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
        **sampling,
    )


def hf_generate(model: LlamaForCausalLM, prompts: np.ndarray, decoding: Decoding, eos_token_id: int) -> Any:
    """transformers' own output, with `token_ids`: its sequences, cut behind the first EOS (the rest is padding)."""
    out = model.generate(
        inputs_embeds=torch.from_numpy(prompts),
        attention_mask=torch.ones(prompts.shape[:2], dtype=torch.long),
        generation_config=hf_config(decoding, eos_token_id),
        use_model_defaults=False,
    )
    rows = out.sequences.tolist()
    out["token_ids"] = [tuple(row[: row.index(eos_token_id) + 1] if eos_token_id in row else row) for row in rows]
    return out
