"""A PyTorch LLaMA behind the decode loop's interfaces: the loop's semantics on PyTorch's numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


class TorchEmbeddings:
    """`interfaces.Embeddings` of a model's input embeddings."""

    def __init__(self, model: PreTrainedModel) -> None:
        weight: Any = model.get_input_embeddings().weight
        self._table: torch.Tensor = weight.detach()

    def lookup(self, ids: Integers) -> Floats:
        """ids [B, n] int64 -> [B, n, d] float32."""
        rows: Floats = self._table[torch.from_numpy(ids)].float().numpy()
        return rows


class TorchDecoder:
    """`interfaces.Decoder` of a causal LM in float32 on the CPU. `batch_sizes`: rows of every pass so far."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self.batch_sizes: list[int] = []

    def prefill(self, inputs_embeds: Floats, room: int) -> TorchState:
        """inputs_embeds [B, S, d] float32 -> the state behind the last position."""
        return TorchState(self._model, inputs_embeds, self.batch_sizes)


class TorchState:
    """`interfaces.DecoderState`: `logits` [B, vocab] float32 of the last position, and the KV cache behind."""

    logits: Floats

    def __init__(self, model: PreTrainedModel, prompt: Floats, batch_sizes: list[int]) -> None:
        self._model = model
        self._cache: Any = None
        self._batch_sizes = batch_sizes
        self.decode(prompt)

    def decode(self, embeds: Floats) -> None:
        """One pass over embeds [B, n, d]."""
        self.extend(embeds)

    @torch.no_grad()
    def extend(self, embeds: Floats) -> Floats:
        """The same; returns the logits [B, n, vocab]."""
        self._batch_sizes.append(len(embeds))
        # All positions go through the head: for one row torch takes another kernel, and equal logits come out unequal.
        out = self._model(inputs_embeds=torch.from_numpy(embeds), past_key_values=self._cache, use_cache=True)
        self._cache = out.past_key_values
        self.logits = out.logits[:, -1].numpy()
        logits: Floats = out.logits.numpy()
        return logits

    def rollback(self, count: int) -> None:
        """Forget the last `count` positions."""
        if count:
            self._cache.crop(-count)

    def reorder(self, rows: Integers) -> None:
        """Row i goes on from what row `rows[i]` was."""
        self._cache.reorder_cache(torch.from_numpy(rows))
        self.logits = self.logits[rows]
