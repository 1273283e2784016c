"""Weights of a recipe, made from seeds in the layout its graph has: a large decoder travels without them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from r2gen_export.precision import PRECISIONS

if TYPE_CHECKING:
    import torch

FLOAT, HALF = 1, 10
"""`onnx.TensorProto` types."""


def random_weight(name: str, *shape: int, device: str) -> torch.Tensor:
    """A float16 weight of the random model, the same wherever it is made on one kind of device."""
    import torch

    generator = torch.Generator(device=device).manual_seed(zlib.crc32(name.encode()))
    return (torch.randn(*shape, generator=generator, device=device) * 0.02).half()


def fill_decoder(recipe: Path, data: Path, device: str) -> int:
    """Write the weights of a decoder's recipe; returns the bytes read for each token.

    Args:
        recipe: folder with `recipe.json`: shape, dialect, precision and every large tensor's name, type, dims, offset.
        data: the external data file of its graph.
        device: of torch, where they are made.
    """
    facts = json.loads((recipe / "recipe.json").read_text(encoding="utf-8"))
    stored = _Stored(facts, device)
    read = 0
    with data.open("wb") as file:
        for entry in facts["tensors"]:
            content = _bytes(stored.tensor(entry))
            if content.nbytes != entry["bytes"]:
                raise ValueError(f"{entry['name']}: {content.nbytes} bytes made, the graph has {entry['bytes']}")
            file.seek(entry["offset"])
            file.write(content.data)
            read += 0 if _is_table(entry["name"]) else content.nbytes
    return read


def fill_vision(recipe: Path, data: Path) -> None:
    """Write the large weights of a vision encoder's recipe, random with the mean and spread of the real ones."""
    with data.open("wb") as file:
        for entry in json.loads((recipe / "recipe.json").read_text(encoding="utf-8"))["tensors"]:
            rng = np.random.default_rng(zlib.crc32(entry["name"].encode()))
            values = rng.standard_normal(entry["dims"], np.float32) * entry["std"] + entry["mean"]
            file.seek(entry["offset"])
            file.write(values.astype(np.float16 if entry["half"] else np.float32).tobytes())


def decoder_bytes(recipe: Path) -> int:
    """Bytes of all its weights."""
    facts = json.loads((recipe / "recipe.json").read_text(encoding="utf-8"))
    return sum(entry["bytes"] for entry in facts["tensors"])


def _is_table(name: str) -> bool:
    """Whether a tensor is one of the rotary tables, of which a step reads a row."""
    return name in ("cos_cache", "sin_cache")


def _bytes(tensor: torch.Tensor) -> Any:
    import torch

    return tensor.cpu().contiguous().view(torch.uint8).numpy()


class _Stored:
    """The tensors of a recipe as its graph stores them. Codes and scales of a layer are made together.

    Args:
        facts: of `recipe.json`.
        device: of torch.
    """

    def __init__(self, facts: Mapping[str, Any], device: str) -> None:
        self._config, self._dialect, self._device = facts["config"], facts["dialect"], device
        self._blocks = PRECISIONS[facts["precision"]].blocks
        self._quantized: tuple[str, torch.Tensor, torch.Tensor] | None = None

    def tensor(self, entry: Mapping[str, Any]) -> torch.Tensor:
        """The tensor of an entry of the recipe."""
        import torch

        title, _, kind = entry["name"].rpartition(".")
        dtype = {FLOAT: torch.float32, HALF: torch.float16}.get(entry["type"], torch.uint8)
        if _is_table(entry["name"]):
            return self._rotary(entry, dtype)
        if kind == "weight":
            if len(entry["dims"]) == 1:
                return torch.ones(entry["dims"], dtype=dtype)
            return self._weight(title).to(dtype).t().contiguous()
        codes, scales = self._codes_and_scales(title)
        if kind == "scales":
            return (scales if list(scales.shape) == entry["dims"] else scales.t().contiguous()).to(dtype)
        bits = self._bits
        if self._dialect == "trt":  # signed, [K, N]
            flat = (codes.view(len(codes), -1).t() ^ 2 ** (bits - 1)).contiguous().view(-1)
            return flat[0::2] | (flat[1::2] << 4) if bits == 4 else flat
        return codes[..., 0::2] | (codes[..., 1::2] << 4) if bits == 4 else codes

    @property
    def _bits(self) -> int:
        assert self._blocks is not None  # only quantised recipes have codes and scales
        return self._blocks[0]

    def _rotary(self, entry: Mapping[str, Any], dtype: torch.dtype) -> torch.Tensor:
        import torch

        positions, half = entry["dims"]
        frequencies = (10000.0 ** -(torch.arange(half).double() / half)).float()
        angles = torch.arange(positions)[:, None] * frequencies[None]
        return (angles.cos() if entry["name"] == "cos_cache" else angles.sin()).to(dtype)

    def _weight(self, title: str) -> torch.Tensor:
        """[N, K] of `model.layers.0.self_attn.q_k_v_proj` and the like: the layers one below the other."""
        import torch

        config = self._config
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        keys = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
        rows = {"q": hidden, "k": keys, "v": keys, "o": hidden, "gate": inner, "up": inner, "down": hidden}
        parent, _, last = title.rpartition(".")
        if last == "lm_head":
            return random_weight("lm_head.weight", config["vocab_size"], hidden, device=self._device)
        tensors = [
            random_weight(
                f"{parent}.{part}_proj.weight", rows[part], inner if part == "down" else hidden, device=self._device
            )
            for part in last.removesuffix("_proj").split("_")
        ]
        return torch.cat(tensors) if len(tensors) > 1 else tensors[0]

    def _codes_and_scales(self, title: str) -> tuple[torch.Tensor, torch.Tensor]:
        if self._quantized is None or self._quantized[0] != title:
            assert self._blocks is not None
            self._quantized = (title, *_quantize(self._weight(title), *self._blocks))
        return self._quantized[1:]


def _quantize(weight: torch.Tensor, bits: int, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes uint8 [N, K / block, block] around 2^(bits-1), scales float32 [N, K / block]: as the exporter's."""
    import torch

    half = 2 ** (bits - 1)
    values = weight.float().view(len(weight), -1, block)
    low, high = values.amin(-1), values.amax(-1)
    scale = torch.where(-low > high, low, high) / -half
    inverse = torch.where(scale == 0, 0.0, 1.0 / scale)
    return (values * inverse[..., None]).round_().add_(half).clamp_(0, 2 * half - 1).to(torch.uint8), scale
