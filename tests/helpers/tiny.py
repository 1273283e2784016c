"""Tiny real models and data, built on the fly: a Swin, a LLaMA with its tokenizer, an R2Gen annotation with images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, SwinConfig, SwinModel

SPECIALS = ("<unk>", "<s>", "</s>")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

SENTENCES = (
    "the heart is normal in size .",
    "the heart is enlarged .",
    "there is a small left pleural effusion .",
    "there is a large right pleural effusion .",
    "no pneumothorax is seen .",
    "the lungs are clear .",
    "there is focal consolidation in the right lower lobe .",
    "a pacemaker projects over the left chest .",
)


def make_tiny_vision(folder: Path, *, image_size: int = 32, seed: int = 0, embed_dim: int = 8) -> Path:
    """A Swin of two stages with random weights: `image_size` 32 gives 16 tokens of width `2 * embed_dim`."""
    torch.manual_seed(seed)
    config = SwinConfig(
        image_size=image_size,
        patch_size=4,
        embed_dim=embed_dim,
        depths=[1, 1],
        num_heads=[2, 2],
        window_size=4,
        mlp_ratio=2.0,
    )
    SwinModel(config).eval().save_pretrained(folder)
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "size": {"height": image_size, "width": image_size},
        "resample": 3,
        "rescale_factor": 1 / 255,
        "image_mean": list(MEAN),
        "image_std": list(STD),
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    return folder


def make_tiny_tokenizer(folder: Path, vocab_size: int = 120) -> Path:
    """A BPE `tokenizer.json` with LLaMA's special ids (`<unk>` 0, `<s>` 1, `</s>` 2) and metaspace words."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=list(SPECIALS), show_progress=False)
    prompt = "Human: <Img> </Img> Generate a comprehensive and detailed diagnosis report for this chest xray image."
    tokenizer.train_from_iterator([*SENTENCES, prompt, "Assistant:\n"], trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def make_tiny_llm(
    folder: Path,
    *,
    seed: int = 0,
    vocab_size: int = 120,
    hidden_size: int = 32,
    layers: int = 2,
    kv_heads: int = 2,
    head_dim: int = 16,
    tied: bool = False,
) -> Path:
    """A LLaMA with random weights, wide enough in its initialisation that greedy choices are clear, and a tokenizer."""
    make_tiny_tokenizer(folder, vocab_size)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.2,
        tie_word_embeddings=tied,
    )
    LlamaForCausalLM(config).eval().save_pretrained(folder)
    return folder


def make_annotation(
    folder: Path, *, train: int = 8, val: int = 3, test: int = 2, seed: int = 0, size: tuple[int, int] = (40, 36)
) -> Path:
    """An R2Gen `annotation.json` with random grey images in `folder/images`; studies have one, two or three views.

    Returns:
        The path of the annotation.
    """
    rng = np.random.default_rng(seed)
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    splits: dict[str, list[dict[str, object]]] = {}
    for split, count in (("train", train), ("val", val), ("test", test)):
        splits[split] = []
        for number in range(count):
            names = [f"{split}{number}_{view}.png" for view in range(1 + number % 3)]
            for name in names:
                Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(images / name)
            chosen = sorted(rng.choice(len(SENTENCES), size=2, replace=False).tolist())
            report = " ".join(SENTENCES[index] for index in chosen)
            splits[split].append({"id": f"{split}{number}", "report": report, "image_path": names})
    path = folder / "annotation.json"
    path.write_text(json.dumps(splits), encoding="utf-8")
    return path
