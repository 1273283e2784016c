"""The demo's Swin encoder: learns to recognise the phantoms' findings, then is frozen."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import Progress
from torch import nn
from transformers import SwinConfig, SwinModel

from r2gen_export.bundle import ImageSpec
from r2gen_export.studies.images import load_views

SEVERITIES = 3
GREY_SPEC = ImageSpec(224, 224, 3, 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Grey phantoms: one mean for the three channels, so that a channel stands for all."""


@dataclass(frozen=True)
class VisionSettings:
    """Sizes of the tiny Swin (three stages: 28x28, 14x14, 7x7 tokens) and of its training."""

    embed_dim: int = 32
    depths: tuple[int, ...] = (2, 2, 2)
    num_heads: tuple[int, ...] = (2, 4, 8)
    mlp_ratio: float = 3.0
    epochs: int = 14
    batch_size: int = 32
    learning_rate: float = 2e-3


@dataclass(frozen=True)
class LabelledStudy:
    """Views of one study and its labels: (name, side) -> severity 1 to 3."""

    paths: tuple[Path, ...]
    severity: dict[tuple[str, str | None], int]


def load_grey(studies: Sequence[LabelledStudy], progress: Progress) -> list[torch.Tensor]:
    """One normalised channel per view, [V, 224, 224] float16 per study."""
    task = progress.add_task("reading phantoms", total=len(studies))
    views = []
    for study in studies:
        views.append(torch.from_numpy(load_views(list(study.paths), GREY_SPEC)[:, 0].astype(np.float16)))
        progress.advance(task)
    return views


def _targets(studies: Sequence[LabelledStudy], labels: Sequence[tuple[str, str | None]]) -> torch.Tensor:
    """Ordinal targets [N, labels * 3]: is the finding there with at least severity 1, 2, 3."""
    target = torch.zeros(len(studies), len(labels), SEVERITIES)
    for row, study in enumerate(studies):
        for column, label in enumerate(labels):
            target[row, column, : study.severity.get(label, 0)] = 1
    return target.flatten(1)


def study_features(model: SwinModel, views: Sequence[torch.Tensor], device: str) -> torch.Tensor:
    """Features [B, T, C] of a batch of studies with unequal numbers of views, averaged over the views."""
    pixels = torch.cat(list(views)).to(device, torch.float32)
    owner = torch.repeat_interleave(torch.arange(len(views)), torch.tensor([len(v) for v in views])).to(device)
    hidden = model(pixels[:, None].expand(-1, 3, -1, -1)).last_hidden_state
    total = torch.zeros(len(views), *hidden.shape[1:], device=device, dtype=hidden.dtype).index_add(0, owner, hidden)
    return total / torch.bincount(owner, minlength=len(views))[:, None, None]


def _read_out(head: nn.Linear, features: torch.Tensor) -> torch.Tensor:
    """Logits [B, L] of a study from its tokens [B, T, C]: a smooth maximum, so that one token suffices."""
    return (torch.logsumexp(2 * head(features), dim=1) - math.log(features.shape[1])) / 2


def _shift(views: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    rows, columns = torch.randint(-10, 11, (2,), generator=generator).tolist()
    return torch.roll(views, (rows, columns), dims=(1, 2))


def train_vision(
    out: Path,
    train: Sequence[LabelledStudy],
    held_out: Sequence[LabelledStudy],
    labels: Sequence[tuple[str, str | None]],
    settings: VisionSettings,
    *,
    seed: int,
    device: str,
    progress: Progress,
) -> float:
    """Train the Swin on the labels and write it to `out` as a Hugging Face folder with its preprocessing.

    Returns:
        Micro-F1 over (finding, side) of the linear read-out on `held_out`.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    config = SwinConfig(
        image_size=GREY_SPEC.height,
        patch_size=8,
        embed_dim=settings.embed_dim,
        depths=list(settings.depths),
        num_heads=list(settings.num_heads),
        window_size=7,
        mlp_ratio=settings.mlp_ratio,
        drop_path_rate=0.0,
        initializer_range=0.1,  # the usual 0.02 is made for widths near 1,000; at 32 it starves the signal
    )
    model = SwinModel(config).train()
    model.to(torch.device(device))
    head = nn.Linear(model.num_features, len(labels) * SEVERITIES).to(device)
    nn.init.constant_(head.bias, -2.0)  # most findings are absent
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.02)
    steps = settings.epochs * (len(train) // settings.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, max(steps, 2), pct_start=0.1)
    views, targets = load_grey(train, progress), _targets(train, labels).to(device)
    task = progress.add_task("vision encoder", total=steps)
    losses: list[float] = []
    for _ in range(settings.epochs):
        order = torch.randperm(len(train), generator=generator)
        for start in range(0, len(train) - settings.batch_size + 1, settings.batch_size):
            rows = order[start : start + settings.batch_size]
            features = study_features(model, [_shift(views[row], generator) for row in rows], device)
            loss = F.binary_cross_entropy_with_logits(_read_out(head, features), targets[rows.to(device)])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            progress.update(task, advance=1, description=f"vision encoder, loss {np.mean(losses[-50:]):.4f}")
    score = _read_out_f1(model.eval(), head, load_grey(held_out, progress), _targets(held_out, labels), device)
    model.cpu().save_pretrained(out)
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "size": {"height": GREY_SPEC.height, "width": GREY_SPEC.width},
        "resample": GREY_SPEC.resample,
        "rescale_factor": GREY_SPEC.rescale_factor,
        "image_mean": list(GREY_SPEC.mean),
        "image_std": list(GREY_SPEC.std),
    }
    (out / "preprocessor_config.json").write_text(json.dumps(processor, indent=1) + "\n", encoding="utf-8")
    return score


@torch.no_grad()
def _read_out_f1(
    model: SwinModel, head: nn.Linear, views: Sequence[torch.Tensor], targets: torch.Tensor, device: str
) -> float:
    logits = []
    for start in range(0, len(views), 64):
        logits.append(_read_out(head, study_features(model, views[start : start + 64], device)).cpu())
    there = (torch.cat(logits) > 0)[:, ::SEVERITIES]
    wanted = targets[:, ::SEVERITIES] > 0
    hits = (there & wanted).sum().item()
    return 2 * hits / max(1, (there.sum() + wanted.sum()).item())
