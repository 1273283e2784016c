"""Weights one tensor at a time, LoRA merged on the way.

`from_pretrained` maps safetensors shards into memory when no other float type is asked for: parameters are then pages
of the files, read when they are used, and cost no memory of the process's own. So a model of any size can be loaded as
usual, and what is written from it here needs room for one matrix and its copies.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from peft.tuners.lora import LoraLayer

PEFT_PREFIX = "base_model.model."


class Weights(Protocol):
    """The LLM's tensors by their names in transformers."""

    def read(self, name: str) -> torch.Tensor:
        """One tensor in its stored float type, not to be changed."""


class ModuleWeights:
    """The tensors of a LLaMA, plain or wrapped by peft."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._lora = {
            f"{_plain(name)}.weight": module for name, module in model.named_modules() if isinstance(module, LoraLayer)
        }
        self._tensors = {_plain(name): tensor for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def read(self, name: str) -> torch.Tensor:
        tensor = self._tensors[name]
        lora = self._lora.get(name)
        if lora is None:
            return tensor
        adapters: Any = lora  # its layer classes share this method, their base class does not declare it
        # peft's own product, added in float32: a half precision sum would lose most of a small update.
        return tensor.float() + sum(adapters.get_delta_weight(name).float() for name in lora.active_adapters)


def _plain(name: str) -> str:
    return name.removeprefix(PEFT_PREFIX).replace(".base_layer.", ".")
