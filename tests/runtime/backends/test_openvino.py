"""The decoder in OpenVINO: block-quantised weights, and prompts read in two passes behind a prefix that is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from r2gen_export.bundle import Dims
from r2gen_export.exporting.decoder.export import write_decoder
from r2gen_export.exporting.parity.rounded_weights import round_weights
from r2gen_export.runtime.backends import openvino_decoder
from r2gen_export.runtime.backends.openvino_decoder import OpenVinoDecoder
from tests.helpers.llama import make_llama
from tests.helpers.torch_decoder import make_prompts

SIZES = {
    "as embedded": {"hidden_size": 96, "head_dim": 16, "intermediate_size": 256},
    "blocks that do not fill up": {"hidden_size": 80, "head_dim": 16, "intermediate_size": 160},
    "whole blocks": {"hidden_size": 128, "head_dim": 32, "intermediate_size": 256},
}


def opened(folder: Path, model: LlamaForCausalLM, precision: str) -> OpenVinoDecoder:
    write_decoder(model, folder, dialect="ort", precision=precision)
    config = model.config
    sizes = {"d_llm": config.hidden_size, "vocab_size": config.vocab_size, "num_layers": config.num_hidden_layers}
    heads = {"num_kv_heads": config.num_key_value_heads, "head_dim": config.head_dim}
    dims = Dims(image_tokens=1, **sizes, **heads, max_positions=config.max_position_embeddings)
    return OpenVinoDecoder(folder / "model.onnx", dims, threads=1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("precision", ["int8", "int4", "int4-128"])
def test_quantised_weights_give_torchs_logits(tmp_path: Path, precision: str, size: str) -> None:
    model = make_llama(**SIZES[size])
    decoder = opened(tmp_path, model, precision)
    assert not decoder.row_lengths, "a study's tokens would depend on its neighbours"
    embeds = make_prompts(np.random.default_rng(0), 2, 9, model.config.hidden_size)
    state = decoder.prefill(embeds[:, :5], 4)
    found = [state.logits.copy()]
    for place in range(5, 9):
        state.decode(embeds[:, place : place + 1])
        found.append(state.logits.copy())
    round_weights(model, precision)
    with torch.no_grad():
        wanted = model(inputs_embeds=torch.from_numpy(embeds)).logits[:, 4:].numpy()
    logits = np.stack(found, axis=1)
    assert np.abs(logits - wanted).max() <= 0.1 * np.abs(wanted).max()
    assert (logits * wanted).sum() / np.linalg.norm(logits) / np.linalg.norm(wanted) > 0.998


def test_a_prompt_behind_a_shared_prefix_is_read_in_two_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_llama()
    decoder = opened(tmp_path, model, "fp32")
    assert decoder.row_lengths
    prompt = make_prompts(np.random.default_rng(1), 1, 82, model.config.hidden_size)
    decoder.share_prefix(prompt[:, :3])
    sizes = []

    infer = openvino_decoder.infer

    def counted(request: Any, embeds: np.ndarray, *others: Any, **options: Any) -> np.ndarray:
        sizes.append(embeds.shape[1])
        return infer(request, embeds, *others, **options)

    monkeypatch.setattr(openvino_decoder, "infer", counted)
    state = decoder.prefill(prompt, 4)
    assert sizes == [40, 39]
    first = state.logits.copy()
    state.decode(prompt[:, :1])
    with torch.no_grad():
        whole = torch.from_numpy(np.concatenate([prompt, prompt[:, :1]], axis=1))
        wanted = model(inputs_embeds=whole).logits[:, 81:].numpy()
    np.testing.assert_allclose(first, wanted[:, 0], atol=1e-4)
    np.testing.assert_allclose(state.logits, wanted[:, 1], atol=1e-4)
