"""The model's arithmetic against the published formulation, written out here a second time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, SwinConfig

from r2gen_export.decoding import Decoding
from r2gen_export.errors import R2GenError
from r2gen_export.training.data import tokenize_reports
from r2gen_export.training.model import PROMPT, ModelConfig, R2GenGPT, prompt_pieces, report_text, trainable_size
from tests.helpers.alignments import CONFIGS
from tests.helpers.tiny import SENTENCES, make_tiny_llm, make_tiny_vision


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    return make_tiny_vision(folder / "vision"), make_tiny_llm(folder / "llm")


def build(sources: tuple[Path, Path], **config: Any) -> R2GenGPT:
    torch.manual_seed(3)
    return R2GenGPT.from_sources(*sources, ModelConfig(**config))


def studies(*views: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(count, 3, 32, 32, generator=generator) for count in views]


def reports(model: R2GenGPT, *texts: str) -> torch.Tensor:
    assert model.tokenizer is not None
    ids = tokenize_reports(texts, model.tokenizer, "</s>", model.config.max_length)
    return torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_frozen_parts_get_no_gradient_and_stay_in_eval_mode(sources: tuple[Path, Path], name: str) -> None:
    model = build(sources, **CONFIGS[name]).train()
    loss = model(model.encode_batch(studies(2, 1)), reports(model, *SENTENCES[:2]))
    loss.backward()
    config = model.config

    def trained(parameter: str) -> bool:
        if parameter.startswith("visual_encoder."):
            return config.alignment == "deep" or (config.alignment == "delta" and ".lora_" in parameter)
        if parameter.startswith("llama_model."):
            return config.llm_lora and ".lora_" in parameter
        return True

    for parameter, value in model.named_parameters():
        assert value.requires_grad == trained(parameter), parameter
        assert (value.grad is not None) == trained(parameter), parameter
    for path, module in model.named_modules():
        frozen = path.startswith("llama_model") or (path.startswith("visual_encoder") and config.alignment != "deep")
        if path and ".lora_dropout" not in path:
            assert module.training == (not frozen), path
        elif path:
            assert module.training, path
    assert not any(module.training for module in model.eval().modules())


def test_trained_parts_change_and_frozen_do_not(sources: tuple[Path, Path]) -> None:
    model = build(sources, alignment="delta", llm_lora=True).train()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.AdamW([value for _, value in model.trainable()], lr=1e-2)
    for _ in range(2):  # LoRA's A moves from the second step on: B starts at zero
        optimizer.zero_grad()
        model(model.encode_batch(studies(1, 3)), reports(model, *SENTENCES[:2])).backward()
        optimizer.step()
    for name, value in model.named_parameters():
        assert torch.equal(before[name], value) != value.requires_grad, name


def test_views_are_averaged_before_the_projection(sources: tuple[Path, Path]) -> None:
    model = build(sources)
    batch = studies(1, 3, 2)
    with torch.no_grad():
        embeds = model.encode_batch(batch)
        for row, views in zip(embeds, batch, strict=True):
            mean = torch.stack([model.visual_encoder(view[None]).last_hidden_state[0] for view in views]).mean(0)
            linear = mean @ model.llama_proj.weight.T + model.llama_proj.bias
            centred = linear - linear.mean(-1, keepdim=True)
            expected = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-5)
            expected = expected * model.layer_norm.weight + model.layer_norm.bias
            torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(model.encode_images(views)[0], row, rtol=1e-4, atol=1e-5)
    assert embeds.shape == (3, 16, 32)


def test_global_only_takes_the_pooled_token(sources: tuple[Path, Path]) -> None:
    model = build(sources, global_only=True)
    (views,) = studies(2)
    with torch.no_grad():
        pooled = model.visual_encoder(views).pooler_output.mean(0)[None, None]
        torch.testing.assert_close(model.encode_images(views), model.layer_norm(model.llama_proj(pooled)))


def test_prompt_is_bos_before_image_after(sources: tuple[Path, Path]) -> None:
    model = build(sources)
    assert model.tokenizer is not None
    before = model.tokenizer("Human: <Img>", add_special_tokens=False).input_ids
    after = model.tokenizer(f"</Img> {PROMPT} \nAssistant:", add_special_tokens=False).input_ids
    assert prompt_pieces(model.tokenizer) == (tuple(before), tuple(after))
    image = torch.randn(2, 5, 32)
    wrapped = model.wrap_prompt(image)
    table = model.embed_tokens.weight
    expected = torch.cat([table[[1, *before]].expand(2, -1, -1), image, table[after].expand(2, -1, -1)], dim=1)
    assert torch.equal(wrapped, expected)


@pytest.mark.parametrize("max_length", [100, 9])
def test_loss_is_the_published_one(sources: tuple[Path, Path], max_length: int) -> None:
    """Padded to `max_length`, masked, and labels given to transformers, as the published `forward` does it."""
    model = build(sources, max_length=max_length)
    assert model.tokenizer is not None
    texts = [SENTENCES[0], " ".join(SENTENCES[2:5])]
    with torch.no_grad():
        embeds = model.encode_batch(studies(2, 1))
        tokens = model.tokenizer(
            [text + "</s>" for text in texts],
            return_tensors="pt", padding="max_length", truncation=True, max_length=max_length, add_special_tokens=False,
        )  # fmt: skip
        prompt = model.wrap_prompt(embeds)
        targets = tokens.input_ids.masked_fill(tokens.input_ids == 0, -100)
        inputs = torch.cat([prompt, model.embed_tokens(tokens.input_ids)], dim=1)
        expected = model.llama_model(
            inputs_embeds=inputs,
            attention_mask=torch.cat([torch.ones(prompt.shape[:2], dtype=torch.long), tokens.attention_mask], dim=1),
            labels=torch.cat([torch.full(prompt.shape[:2], -100), targets], dim=1),
        ).loss
        torch.testing.assert_close(model(embeds, reports(model, *texts)), expected, rtol=1e-5, atol=1e-6)


def test_loss_is_on_the_report_only(sources: tuple[Path, Path]) -> None:
    model = build(sources)
    ids = reports(model, SENTENCES[0])
    embeds = model.encode_batch(studies(1))
    with torch.no_grad():
        inputs = torch.cat([model.wrap_prompt(embeds), model.embed_tokens(ids)], dim=1)
        logprobs = model.llama_model(inputs_embeds=inputs).logits.log_softmax(-1)[0, -ids.shape[1] - 1 : -1]
        expected = -logprobs.gather(1, ids[0, :, None]).mean()
        torch.testing.assert_close(model(embeds, ids), expected, rtol=1e-5, atol=1e-6)


def test_generate_is_greedy_by_hand(sources: tuple[Path, Path]) -> None:
    model = build(sources)
    (views,) = studies(2)
    decoding = Decoding(
        num_beams=1, min_new_tokens=6, max_new_tokens=12, repetition_penalty=1.0, length_penalty=1.0
    )  # fmt: skip
    ids = model.generate(views, decoding)[0].tolist()
    with torch.no_grad():
        inputs, chosen = model.wrap_prompt(model.encode_images(views)), []
        while len(chosen) < 12 and 2 not in chosen:
            logits = model.llama_model(inputs_embeds=inputs).logits[0, -1]
            if len(chosen) < 6:
                logits[2] = -torch.inf
            chosen.append(int(logits.argmax()))
            inputs = torch.cat([inputs, model.embed_tokens(torch.tensor([[chosen[-1]]]))], dim=1)
    assert ids == chosen


def test_report_text_follows_the_published_decode(sources: tuple[Path, Path]) -> None:
    model = build(sources)
    assert model.tokenizer is not None
    ids = model.tokenizer(SENTENCES[1], add_special_tokens=False).input_ids
    assert report_text(model.tokenizer, [0, 1, *ids, 2, *ids]) == SENTENCES[1]
    assert report_text(model.tokenizer, [1, *ids[:3], 0, *ids[3:]]).replace(" ", "") == SENTENCES[1].replace(" ", "")
    assert report_text(model.tokenizer, []) == ""


SWIN_BASE = SwinConfig(image_size=224, embed_dim=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32], window_size=7)
LLAMA_7B = LlamaConfig(
    vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
)


@pytest.mark.parametrize(("alignment", "size"), [("shallow", 4_206_592), ("delta", 4_976_640)])
def test_the_papers_sizes(alignment: Any, size: int) -> None:
    """arXiv 2309.09812, table of trainable parameters: 4.2 M and 5.0 M."""
    # Linear(1024 -> 4096) + LayerNorm(4096); LoRA of rank 16 on query and value of every block of width 128 * 2^stage.
    by_hand = 1024 * 4096 + 3 * 4096
    if alignment == "delta":
        by_hand += sum(blocks * 2 * 2 * 16 * (128 << stage) for stage, blocks in enumerate([2, 2, 18, 2]))
    assert by_hand == size
    assert trainable_size(SWIN_BASE, LLAMA_7B, ModelConfig(alignment=alignment)) == size


@pytest.mark.parametrize(
    "config", [{"alignment": "wide"}, {"vis_r": 0}, {"max_length": 0}, {"lora_dropout": 1.0}, {"llm_alpha": -1}]
)
def test_impossible_settings(config: dict[str, Any]) -> None:
    with pytest.raises(R2GenError, match=next(iter(config))) as caught:
        ModelConfig(**config)
    assert caught.value.code == "R2G-CONFIG-VALUE"


def test_absent_and_foreign_sources(sources: tuple[Path, Path], tmp_path: Path) -> None:
    vision, llm = sources
    for arguments, code in (
        ((tmp_path / "nothing", llm), "R2G-MODEL-MISSING"),
        ((vision, tmp_path / "nothing"), "R2G-MODEL-MISSING"),
        ((llm, llm), "R2G-MODEL-UNSUPPORTED"),
    ):
        with pytest.raises(R2GenError) as caught:
            R2GenGPT.from_sources(*arguments, ModelConfig())
        assert caught.value.code == code


def test_nan_in_source_weights_is_named(sources: tuple[Path, Path], tmp_path: Path) -> None:
    model = build(sources)
    model.llama_model.model.layers[1].mlp.up_proj.weight.data[3, 3] = torch.nan
    broken = make_tiny_llm(tmp_path / "llm")
    model.llama_model.save_pretrained(broken)
    with pytest.raises(R2GenError, match=r"layers\.1\.mlp\.up_proj\.weight") as caught:
        R2GenGPT.from_sources(sources[0], broken, ModelConfig())
    assert caught.value.code == "R2G-MODEL-NONFINITE"
