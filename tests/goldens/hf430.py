"""The trials recorded under transformers 4.30.2: small LLaMAs, prompts and settings, made the same way in any release.

Imports numpy and torch only; the recorder runs it beside transformers 4.30.2, the tests beside today's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

WIDTH = 16
HEADS = 2
SEED = 430
TRIALS = 360
VOCABULARIES = (6, 9, 30, 150)
BOS = 1


@dataclass(frozen=True)
class Trial:
    """One call of `generate`: `prompts` [B, S, WIDTH] float32, `settings` named as in `GenerationConfig`."""

    vocab_size: int
    prompts: np.ndarray
    eos_token_id: int
    settings: dict[str, Any]


def llama_fields(vocab_size: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "max_position_embeddings": 128,
        "bos_token_id": BOS,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def fill(model: torch.nn.Module, seed: int) -> None:
    """Weights from numpy's generator, tensor by tensor in the order of their names; norms stay 1."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "norm" not in name:
                values = rng.normal(0, 0.35, tuple(parameter.shape)).astype(np.float32)
                parameter.copy_(torch.from_numpy(values))


def trials() -> Iterator[Trial]:
    rng = np.random.default_rng(SEED)
    for index in range(TRIALS):
        vocab_size = int(rng.choice(VOCABULARIES))
        prompts = rng.normal(0, 1, (int(rng.integers(1, 4)), int(rng.choice([2, 5, 9])), WIDTH)).astype(np.float32)
        least = int(rng.choice([0, 0, 5]))
        settings = {
            "num_beams": 1 if index % 4 == 0 else int(rng.integers(2, 5)),
            "min_new_tokens": least,
            "max_new_tokens": least + int(rng.choice([1, 8, 20])),
            "repetition_penalty": float(rng.choice([1.0, 0.7, 1.3, 2.0])),
            "length_penalty": float(rng.choice([-2.0, -0.5, 0.0, 0.3, 1.0, 2.0])),
            "no_repeat_ngram_size": int(rng.choice([0, 0, 2, 3])),
            "early_stopping": [False, True, "never"][rng.integers(3)],
        }
        eos = int(rng.integers(vocab_size))
        yield Trial(vocab_size, prompts, eos, settings)
