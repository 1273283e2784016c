"""Weights one tensor at a time: from safetensors shards, memory-mapped, or from a module that is there already."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import torch
from safetensors import SafetensorError, safe_open

from r2gen_export.errors import R2GenError
from r2gen_export.training.sources import source_file

SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
EMBEDDINGS: Final = "model.embed_tokens.weight"
LM_HEAD: Final = "lm_head.weight"


class Weights(Protocol):
    """The LLM's tensors by their names in transformers."""

    def read(self, name: str) -> torch.Tensor:
        """One tensor in its stored float type, not to be changed.

        Raises:
            R2GenError: `R2G-MODEL-MISSING` when there is none of this name, `R2G-MODEL-UNSUPPORTED` when it is no
                float tensor.
        """

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape, without reading it."""


class ModuleWeights:
    """The tensors of a module in memory."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._tensors = dict(module.state_dict())

    def read(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)


class ShardWeights:
    """The safetensors files of a model folder or hub id: one file, or many with `model.safetensors.index.json`.

    Tied embeddings: `lm_head.weight` is the embedding table where the files have none of its own.

    Raises:
        R2GenError: `R2G-MODEL-MISSING` when there are no such files or one of them is absent or broken.
    """

    def __init__(self, source: str | Path) -> None:
        self._source = source
        index = source_file(source, INDEX)
        if index is not None:
            try:
                places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            except (ValueError, KeyError, TypeError) as error:
                raise self._broken(INDEX, error) from error
            files = {name: self._file(name) for name in sorted(set(places.values()))}
            self._places = {tensor: files[name] for tensor, name in places.items()}
        else:
            single = self._file(SINGLE)
            try:
                with safe_open(single, framework="pt") as opened:
                    self._places = dict.fromkeys(opened.keys(), single)
            except (SafetensorError, OSError) as error:
                raise self._broken(SINGLE, error) from error

    @property
    def nbytes(self) -> int:
        """Bytes of the files."""
        return sum(path.stat().st_size for path in set(self._places.values()))

    def read(self, name: str) -> torch.Tensor:
        path = self._place(name)
        try:
            # Opened for each tensor: a mapping kept open counts every page read so far as this process's.
            with safe_open(path, framework="pt") as opened:
                tensor: torch.Tensor = opened.get_tensor(self._alias(name))
        except (SafetensorError, OSError) as error:
            raise self._broken(path.name, error) from error
        if not tensor.is_floating_point():
            message = f"{name} of the LLM is {str(tensor.dtype).removeprefix('torch.')}, expected a float type"
            raise R2GenError("R2G-MODEL-UNSUPPORTED", message, "give the LLM's weights before quantisation")
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        path = self._place(name)
        try:
            with safe_open(path, framework="pt") as opened:
                return tuple(opened.get_slice(self._alias(name)).get_shape())
        except (SafetensorError, OSError) as error:
            raise self._broken(path.name, error) from error

    def _alias(self, name: str) -> str:
        return EMBEDDINGS if name == LM_HEAD and name not in self._places else name

    def _place(self, name: str) -> Path:
        try:
            return self._places[self._alias(name)]
        except KeyError:
            message = f"the LLM {str(self._source)!r} has no tensor {name}"
            raise R2GenError("R2G-MODEL-MISSING", message, "give a folder with all weights of a LLaMA") from None

    def _file(self, name: str) -> Path:
        path = source_file(self._source, name)
        if path is None:
            message = f"the LLM {str(self._source)!r} has no {name}"
            fix = "give a folder with safetensors weights, or convert it with transformers' save_pretrained"
            raise R2GenError("R2G-MODEL-MISSING", message, fix)
        return path

    def _broken(self, name: str, error: Exception) -> R2GenError:
        reason = " ".join(str(error).split())[:200]
        message = f"{name} of the LLM cannot be read: {reason}"
        return R2GenError("R2G-MODEL-MISSING", message, "copy or download the file again")


@dataclass(frozen=True)
class Lora:
    """One adapter: `down` [r, in], `up` [out, r]; the layer's weight grows by scale * up @ down (LoRA, eq. 3)."""

    down: torch.Tensor
    up: torch.Tensor
    scale: float


class MergedWeights:
    """Weights with LoRA adapters, by the name of the tensor they add to, merged on the way."""

    def __init__(self, weights: Weights, adapters: Mapping[str, Lora]) -> None:
        self._weights, self._adapters = weights, adapters

    def read(self, name: str) -> torch.Tensor:
        tensor = self._weights.read(name)
        if (lora := self._adapters.get(name)) is None:
            return tensor
        # As peft merges: the product in float32, added to the float32 weight.
        return tensor.float() + (lora.up.float() @ lora.down.float()) * lora.scale

    def shape(self, name: str) -> tuple[int, ...]:
        return self._weights.shape(name)
