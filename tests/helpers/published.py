"""Checkpoints with the structure the published code gives them, made with the real lightning and peft.

The module has the published attributes, LoRA settings, `save_hyperparameters(args)` and `save_checkpoint`
(wang-zhanyu/R2GenGPT, models/R2GenGPT.py); it trains on phantoms.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, LlamaForCausalLM, SwinModel

from r2gen_export.bundle import ImageSpec
from r2gen_export.phantoms import write_phantoms
from r2gen_export.studies.images import load_image, preprocess
from r2gen_export.studies.report_cleaning import CLEANERS
from r2gen_export.training.data import image_spec, read_studies

KINDS: dict[str, dict[str, Any]] = {
    "shallow": {},
    "delta": {"vis_use_lora": True, "vis_r": 4, "vis_alpha": 12},
    "deep": {"freeze_vm": False},
    "llm-lora": {"llm_use_lora": True, "llm_r": 2, "llm_alpha": 10},
    "global": {"global_only": True},
}


def published_args(vision: Path, llm: Path, **changes: Any) -> Namespace:
    """The published parser's settings, those that reach the model and the decoding."""
    values = {
        "dataset": "iu_xray",
        "vision_model": str(vision), "llama_model": str(llm), "freeze_vm": True, "llm_use_lora": False, "llm_r": 16,
        "llm_alpha": 16, "vis_use_lora": False, "vis_r": 16, "vis_alpha": 16, "lora_dropout": 0.1,
        "global_only": False, "low_resource": False, "end_sym": "</s>", "savedmodel_path": "save/v1",
        "ckpt_file": None, "delta_file": None, "weights": [0.5, 0.5], "scorer_types": ["Bleu_4", "CIDEr"],
        "learning_rate": 3e-2, "gradient_clip_val": None, "beam_size": 3, "do_sample": False,
        "no_repeat_ngram_size": 2, "num_beam_groups": 1, "min_new_tokens": 5, "max_new_tokens": 30, "max_length": 60,
        "repetition_penalty": 2.0, "length_penalty": 2.0, "diversity_penalty": 0, "temperature": 0,
        "devices": 1, "strategy": "ddp", "limit_val_batches": 1.0,
    }  # fmt: skip
    return Namespace(**{**values, **changes})


class PublishedModule(pl.LightningModule):
    """The published model's parts under their published names."""

    def __init__(self, args: Namespace) -> None:
        super().__init__()
        self.args = args
        self.save_hyperparameters(args)
        self.visual_encoder: Any = SwinModel.from_pretrained(args.vision_model)
        if args.vis_use_lora:
            lora = LoraConfig(
                r=args.vis_r, lora_alpha=args.vis_alpha, target_modules=["query", "value"],
                lora_dropout=args.lora_dropout, bias="none", modules_to_save=["classifier"],
            )  # fmt: skip
            self.visual_encoder = get_peft_model(self.visual_encoder, lora)
        elif args.freeze_vm:
            self.visual_encoder.requires_grad_(False)
        self.llama_model: Any = LlamaForCausalLM.from_pretrained(args.llama_model)
        self.embed_tokens = self.llama_model.get_input_embeddings()
        if args.llm_use_lora:
            self.llama_model = get_peft_model(
                self.llama_model,
                LoraConfig(
                    task_type=TaskType.CAUSAL_LM, inference_mode=False, r=args.llm_r, lora_alpha=args.llm_alpha,
                    lora_dropout=args.lora_dropout,
                ),
            )  # fmt: skip
        else:
            self.llama_model.requires_grad_(False)
        self.llama_proj = nn.Linear(self.visual_encoder.num_features, self.llama_model.config.hidden_size)
        self.layer_norm = nn.LayerNorm(self.llama_model.config.hidden_size)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """Loss of one study: pixels [1, V, 3, H, W], report ids [1, L]."""
        views, ids = batch[0][0], batch[1]
        out = self.visual_encoder(views)
        features = out.pooler_output[:, None] if self.hparams.global_only else out.last_hidden_state
        image = self.layer_norm(self.llama_proj(features.mean(0, keepdim=True)))
        embeds = torch.cat([image, self.embed_tokens(ids)], dim=1)
        ignored = torch.full(image.shape[:2], -100)
        loss: Tensor = self.llama_model(inputs_embeds=embeds, labels=torch.cat([ignored, ids], dim=1)).loss
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW((p for p in self.parameters() if p.requires_grad), lr=self.hparams.learning_rate)

    def save_published(self, path: Path) -> None:
        """`save_checkpoint` of the published code: trained tensors and the hyper-parameter object itself."""
        kept = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        state = {name: value for name, value in self.state_dict().items() if name in kept}
        step = self.trainer.global_step
        torch.save({"model": state, "config": self.hparams, "epoch": self.trainer.current_epoch, "step": step}, path)


def phantom_batches(folder: Path, vision: Path, llm: Path, studies: int = 6) -> list[tuple[Tensor, Tensor]]:
    """Pixels [V, 3, H, W] and report ids [L] of phantoms."""
    write_phantoms(folder, studies, seed=3, val_fraction=0.2, test_fraction=0.0, progress=False)
    spec: ImageSpec = image_spec(vision)
    tokenizer = AutoTokenizer.from_pretrained(llm)
    found = []
    for study in read_studies(folder / "annotation.json", folder / "images", "train", CLEANERS["none"]):
        pixels = preprocess([load_image(path) for path in study.images], spec)
        ids = tokenizer(study.report, add_special_tokens=False).input_ids[:40]
        found.append((torch.from_numpy(np.ascontiguousarray(pixels)), torch.tensor(ids)))
    return found


def train_published(args: Namespace, batches: list[tuple[Tensor, Tensor]], folder: Path) -> tuple[Path, Path]:
    """Train an epoch with Lightning; the published `.pth` and Lightning's own `.ckpt`."""
    folder.mkdir(parents=True)
    torch.manual_seed(5)
    module = PublishedModule(args)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(batches, batch_size=1))
    module.save_published(folder / "checkpoint_epoch0.pth")
    trainer.save_checkpoint(folder / "epoch=0.ckpt")
    return folder / "checkpoint_epoch0.pth", folder / "epoch=0.ckpt"
