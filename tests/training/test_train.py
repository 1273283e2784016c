"""The model's arithmetic, what is trained, and a training from start to resumed end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from r2gen_export.errors import R2GenError
from r2gen_export.training.checkpoint import load_checkpoint
from r2gen_export.training.fit import TrainSettings, train
from r2gen_export.training.model import ModelConfig, R2GenGPT, trainable_size
from r2gen_export.training.reports import CLEANERS
from tests.conftest import TinySources
from tests.tiny import make_annotation


def build(sources: TinySources, **config: object) -> R2GenGPT:
    settings = ModelConfig(vision=str(sources.vision), llm=str(sources.llm), **config)  # type: ignore[arg-type]
    return R2GenGPT.from_sources(sources.vision, sources.llm, settings, torch.float32)


def test_views_are_averaged_before_the_projection(tiny_sources: TinySources) -> None:
    model = build(tiny_sources).eval()
    views = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        tokens = model.visual_encoder(views).last_hidden_state.mean(0, keepdim=True)
        wanted = model.layer_norm(model.llama_proj(tokens))
        assert torch.allclose(model.encode_images(views), wanted, atol=1e-6)
        prompt = model.wrap_prompt(wanted)
        bos = model.embed_tokens(torch.tensor([[1]]))
        assert torch.equal(prompt[:, :1], bos)
        assert any(torch.equal(prompt[:, at : at + 16], wanted) for at in range(1, prompt.shape[1] - 15))


@pytest.mark.parametrize("alignment", ["shallow", "delta", "deep"])
def test_frozen_parts_stay_frozen_and_in_eval_mode(tiny_sources: TinySources, alignment: str) -> None:
    model = build(tiny_sources, alignment=alignment).train()
    assert not model.llama_model.training
    assert not any(parameter.requires_grad for parameter in model.llama_model.parameters())
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    swin = {name for name in trained if name.startswith("visual_encoder")}
    assert trained - swin == {"llama_proj.weight", "llama_proj.bias", "layer_norm.weight", "layer_norm.bias"}
    assert bool(swin) == (alignment != "shallow")
    if alignment == "delta":
        assert all("lora_" in name for name in swin)
    # Under LoRA the frozen Swin below stays in eval mode; only the adapters' dropout is at work.
    assert model.visual_encoder.training == (alignment == "deep")
    dropouts = [module.training for name, module in model.named_modules() if name.endswith("lora_dropout.default")]
    assert bool(dropouts) == (alignment == "delta")
    assert all(dropouts)


def settings(sources: TinySources, data: Path, out: Path, **more: object) -> TrainSettings:
    annotation = data / "annotation.json"
    if not annotation.exists():
        make_annotation(data)
    return TrainSettings(
        annotation=annotation, base_dir=data / "images", vision=sources.vision, llm=sources.llm, out=out,
        dataset="iu_xray", batch_size=4, learning_rate=1e-2, workers=0, progress=False, **more,  # type: ignore[arg-type]
    )  # fmt: skip


def test_training_lowers_the_loss_and_gives_a_checkpoint_that_loads(tiny_sources: TinySources, tmp_path: Path) -> None:
    best = train(settings(tiny_sources, tmp_path, tmp_path / "run", max_epochs=3))
    tensors = load_file(best / "adapter.safetensors")
    assert set(tensors) == {"llama_proj.weight", "llama_proj.bias", "layer_norm.weight", "layer_norm.bias"}
    model = build(tiny_sources)
    load_checkpoint(model, best)
    assert torch.equal(model.llama_proj.weight, tensors["llama_proj.weight"])
    with pytest.raises(R2GenError, match="R2G-OUTPUT-EXISTS"):
        train(settings(tiny_sources, tmp_path, tmp_path / "run", max_epochs=3))


def test_cached_features_train_to_the_same_weights(tiny_sources: TinySources, tmp_path: Path) -> None:
    runs = [
        train(settings(tiny_sources, tmp_path, tmp_path / name, max_epochs=2, use_cache=use))
        for name, use in (("cached", True), ("plain", False))
    ]
    one, two = (load_file(run / "adapter.safetensors") for run in runs)
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)


def test_clean_up_lowers_and_drops_numbering() -> None:
    assert CLEANERS["iu_xray"]("1. The heart is normal. 2. Lungs CLEAR.") == "the heart is normal . lungs clear ."
    assert CLEANERS["none"]("Kept As It Is.") == "Kept As It Is."


@pytest.mark.parametrize(("alignment", "size"), [("shallow", 4_206_592), ("delta", 4_976_640)])
def test_sizes_at_the_papers_shape(alignment: str, size: int) -> None:
    """1024 * 4096 + 4096 and two LayerNorm vectors; LoRA adds 64 values per channel of each of Swin-base's blocks."""
    from transformers import LlamaConfig, SwinConfig

    swin = SwinConfig(embed_dim=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32])
    llama = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32)
    assert trainable_size(swin, llama, ModelConfig(vision="v", llm="l", alignment=alignment)) == size  # type: ignore[arg-type]
