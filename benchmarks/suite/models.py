"""Decoders with random weights for the suite: LLaMAs of four layers in int4, dialect `ort`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from r2gen_export.bundle import Dims
from r2gen_export.decoding import Decoding
from r2gen_export.runtime.backends.embedding_table import EmbeddingTable
from r2gen_export.runtime.backends.ort_decoder import DecoderSession
from r2gen_export.runtime.backends.ort_providers import CPU
from r2gen_export.runtime.decoding.generate import generate

LAYERS: Final = 4
HEAD: Final = 64
POSITIONS: Final = 1024
EOS: Final = 2


class SuiteModel:
    """A decoder, and what is timed of it. Calls leave the state as they found it, so that each repetition is the same.

    Args:
        folder: holds `decoder/` and `embed_tokens.npy`.
        dims: of the decoder.
        threads: CPU threads.
    """

    def __init__(self, folder: Path, dims: Dims, threads: int) -> None:
        self.width, self.layers = dims.d_llm, dims.num_layers
        self._decoder = DecoderSession(folder / "decoder/model.onnx", dims, providers=[CPU], threads=threads)
        self._table = EmbeddingTable(folder / "embed_tokens.npy")

    def _embeds(self, rows: int, length: int) -> NDArray[np.float32]:
        ids = np.random.default_rng(0).integers(3, self._table.vocab_size, (1, length))
        return np.repeat(self._table.lookup(ids), rows, axis=0)

    def prefill(self, length: int) -> None:
        """Read a prompt of so many positions."""
        self._decoder.prefill(self._embeds(1, length), 1)

    def decoder_at(self, position: int, rows: int = 1) -> Callable[[], None]:
        """A call that decodes one position of every row behind `position` others."""
        return self._pass(position, rows, 1)

    def verifier(self, drafts: int, position: int) -> Callable[[], None]:
        """A call that verifies so many drafts behind `position` others."""
        return self._pass(position, 1, 1 + drafts)

    def _pass(self, position: int, rows: int, length: int) -> Callable[[], None]:
        state = self._decoder.prefill(self._embeds(rows, position), length)
        embeds = self._embeds(rows, length)

        def call() -> None:
            state.extend(embeds)
            state.rollback(length)

        return call

    def report(self, beams: int, tokens: int) -> None:
        """Prompt of 128 and so many tokens, with beams."""
        decoding = Decoding(num_beams=beams, min_new_tokens=tokens, max_new_tokens=tokens, repetition_penalty=1.0)
        generate(self._decoder, self._table, self._embeds(1, 128), decoding, bos_token_id=1, eos_token_id=EOS)


def open_model(folder: Path, width: int, vocab: int, threads: int) -> SuiteModel:
    """Write a random LLaMA of this width as r2gen exports it, and load it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from r2gen_export.exporting.decoder.export import write_decoder
    from r2gen_export.exporting.tokenizer import write_embeddings

    heads = width // HEAD
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=LAYERS,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=vocab,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=False,
    )
    llama = LlamaForCausalLM(config).eval()
    folder.mkdir(parents=True)
    write_decoder(llama, folder / "decoder", dialect="ort", precision="int4")
    table = llama.get_input_embeddings()
    assert isinstance(table, torch.nn.Embedding)
    write_embeddings(table, folder / "embed_tokens.npy", precision="fp16")
    dims = Dims(
        image_tokens=49, d_llm=width, vocab_size=vocab, num_layers=LAYERS, num_kv_heads=heads, head_dim=HEAD,
        max_positions=POSITIONS,
    )  # fmt: skip
    return SuiteModel(folder, dims, threads)
