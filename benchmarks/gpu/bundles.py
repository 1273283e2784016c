"""Small bundles for the check, by a real export: `python -m benchmarks.gpu.bundles FOLDER NAME ...`.

The models are random: a Swin of two stages and a LLaMA of two layers, wide enough that every kernel of the large ones
runs (head width 64, blocks of 128). A bundle whose export fails has its reason in `not-exported.json` of the folder.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from r2gen_export.errors import R2GenError
from r2gen_export.precision import PRECISIONS

REASONS: Final = "not-exported.json"
VOCAB: Final = 320
SENTENCES: Final = (
    "the heart is normal in size .",
    "the heart is enlarged .",
    "there is a small left pleural effusion .",
    "no pneumothorax is seen .",
    "the lungs are clear .",
    "there is focal consolidation in the right lower lobe .",
    "Human: <Img> </Img> Generate a comprehensive and detailed diagnosis report for this chest xray image.",
    "Assistant:\n",
)
"""What the tokenizer is trained on: words of reports, and the published prompt."""


def make_bundles(folder: Path, names: Sequence[str]) -> None:
    """Export the bundles that are not in `folder` yet.

    Args:
        folder: gets a folder for each bundle, and `not-exported.json`.
        names: as `DIALECT-PRECISION`.
    """
    missing = [name for name in names if not (folder / name).exists()]
    if not missing:
        return
    folder.mkdir(parents=True, exist_ok=True)
    reasons = not_exported(folder)
    sources = folder / "sources"
    _make_sources(sources)
    for name in missing:
        try:
            _export(sources, folder / name)
            reasons.pop(name, None)
            print("bundle", name, flush=True)
        except R2GenError as error:  # random weights may part too far in few bits; the other bundles still serve
            reasons[name] = f"not exported: {error.message}"
            print("no bundle", name, error.message[:160], flush=True)
        (folder / REASONS).write_text(json.dumps(reasons, indent=1), encoding="utf-8")
    shutil.rmtree(sources)


def not_exported(folder: Path) -> dict[str, str]:
    """Why bundles are not in `folder`, by name."""
    path = folder / REASONS
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _export(sources: Path, out: Path) -> None:
    from r2gen_export.exporting.export import export_bundle
    from r2gen_export.exporting.settings import ExportSettings

    dialect, _, precision = out.name.partition("-")
    export_bundle(
        ExportSettings(
            sources / "checkpoint",
            sources / "vision",
            sources / "llm",
            out,
            dialect=dialect,
            precision=precision,
            vision_precision="fp16" if PRECISIONS[precision].half else "fp32",
            parity_max_new_tokens=16,
        )
    )


def _make_sources(folder: Path) -> None:
    """Write `vision/`, `llm/` and `checkpoint/`, each from a seed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, SwinConfig, SwinModel

    from benchmarks.random_sources import PROCESSOR
    from r2gen_export.training.checkpoint import save_checkpoint
    from r2gen_export.training.model import ModelConfig, R2GenGPT

    if (folder / "checkpoint").exists():
        return
    torch.manual_seed(0)
    stages: dict[str, Any] = {"depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "mlp_ratio": 2.0}
    SwinModel(SwinConfig(image_size=32, patch_size=4, embed_dim=8, **stages)).eval().save_pretrained(folder / "vision")
    processor = json.dumps({**PROCESSOR, "size": {"height": 32, "width": 32}})
    (folder / "vision/preprocessor_config.json").write_text(processor, encoding="utf-8")
    _make_tokenizer(folder / "llm")
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=512,
        initializer_range=0.1,  # wide enough that greedy choices are clear
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).eval().save_pretrained(folder / "llm")
    model = R2GenGPT.from_sources(folder / "vision", folder / "llm", ModelConfig(), torch.float32)
    save_checkpoint(model, folder / "checkpoint", {"dataset": "iu_xray"})


def _make_tokenizer(folder: Path) -> None:
    """A BPE tokenizer with LLaMA's special ids: `<unk>` 0, `<s>` 1, `</s>` 2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    specials = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=list(specials.values()), show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **specials, "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


if __name__ == "__main__":
    make_bundles(Path(sys.argv[1]), sys.argv[2:])
