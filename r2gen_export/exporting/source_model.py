"""A checkpoint of any kind, its vision encoder and its LLM, put together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from r2gen_export.bundle import ImageSpec
from r2gen_export.decoding import Decoding
from r2gen_export.training import checkpoint as own
from r2gen_export.training import published
from r2gen_export.training.model import R2GenGPT
from r2gen_export.training.source_files.llama import read_llama
from r2gen_export.training.source_files.preprocessor import image_spec
from r2gen_export.training.source_files.swin import read_swin
from r2gen_export.training.source_files.tokenizer import read_tokenizer_files


@dataclass(frozen=True)
class Sources:
    """A source model put together, ready to run and to export.

    `file` holds the checkpoint's tensors, `dataset` is what they were trained on, `decoding` the settings they were
    scored with, both None where the checkpoint does not say.
    """

    model: R2GenGPT
    image: ImageSpec
    file: Path
    dataset: str | None = None
    decoding: Decoding | None = None


def check_files(vision: str | Path, llm: str | Path) -> ImageSpec:
    """Read and check every file of the source models but their weights, in no time: nothing is made of them yet.

    Returns:
        The vision encoder's preprocessing.

    Raises:
        R2GenError: `R2G-MODEL-MISSING`, `R2G-MODEL-UNSUPPORTED`.
    """
    read_llama(llm)
    read_tokenizer_files(llm)
    read_swin(vision)
    return image_spec(vision)


def load_sources(
    checkpoint: Path,
    vision: str | Path,
    llm: str | Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    allow_unexpected: Sequence[str] = (),
    llm_dtype: torch.dtype | str = torch.float32,
    say: Callable[[str], None] = lambda line: None,
) -> Sources:
    """The source model with the checkpoint's tensors in it, float32, eval mode, on the CPU.

    What can be refused without the weights (checkpoint format, kinds of model) is refused before they are read.

    Args:
        checkpoint: folder of r2gen, `.pth` of the published code, Lightning's `.ckpt`, or a folder with one of those.
        vision: vision encoder, local folder or hub id.
        llm: LLM, local folder or hub id.
        overrides: as in `ExportSettings`.
        allow_unexpected: as in `ExportSettings`.
        llm_dtype: of the LLM's own weights; its stored type leaves them in their files (`hub.stored_dtype`).
        say: told what the checkpoint is, before weights are read.

    Raises:
        R2GenError: `R2G-CHECKPOINT-*`, `R2G-MODEL-*`.
    """
    given = {name: value for name, value in (overrides or {}).items() if value is not None}
    trained = None
    if own.is_own(checkpoint):
        config = dataclasses.replace(own.read_config(checkpoint), **given)
        dataset = own.train_facts(checkpoint).get("dataset")
    else:
        trained = published.understand(published.read_file(published.find_file(checkpoint)), given)
        config, dataset = trained.config, trained.dataset
        say(published.describe(trained))
    image = check_files(vision, llm)
    model = R2GenGPT.from_sources(vision, llm, config, llm_dtype)
    if trained is None:
        own.load_checkpoint(model, checkpoint)
        return Sources(model.eval(), image, checkpoint / own.ADAPTER, dataset)
    own.load_published(model, trained, allow_unexpected)
    return Sources(model.eval(), image, trained.file.path, dataset, trained.decoding)


def merge_lora(model: R2GenGPT, *, llm: bool = True) -> None:
    """Fold LoRA weights into the layers they adapt, in place; a model without LoRA stays as it is.

    `llm` false leaves the LLM's alone, which would take memory of its own: they are merged as the weights stream by.
    """
    from peft import PeftModel

    for name in ("visual_encoder", "llama_model") if llm else ("visual_encoder",):
        part = getattr(model, name)
        if isinstance(part, PeftModel):
            setattr(model, name, part.merge_and_unload(safe_merge=True))
