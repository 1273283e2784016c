"""Checkpoints: a folder with `adapter.safetensors` (trained tensors only, published names) and `config.json`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from r2gen_export.errors import R2GenError, library_reason
from r2gen_export.system.files import atomic_dir
from r2gen_export.system.git_lfs import refuse_pointer
from r2gen_export.training.hub import check_finite, weights_sha256
from r2gen_export.training.model import ModelConfig, R2GenGPT
from r2gen_export.training.published import Trained, is_derived, is_text

FORMAT: Final = "r2gen-checkpoint"
FORMAT_VERSION: Final = 1
ADAPTER: Final = "adapter.safetensors"
CONFIG: Final = "config.json"
MAX_RANK: Final = 4096
"""Of LoRA; a larger one is damage, and would fill the memory."""


def source_hashes(model: R2GenGPT) -> dict[str, str]:
    """SHA-256 of the frozen source weights. A trained encoder (deep) has none: the checkpoint holds all of it."""
    hashes = {"llm_sha256": weights_sha256(model.llama_model), "llm_dtype": str(model.embed_tokens.weight.dtype)}
    if model.config.alignment != "deep":
        hashes["vision_sha256"] = weights_sha256(model.visual_encoder)
    return hashes


def save_checkpoint(
    model: R2GenGPT,
    folder: Path,
    extra: Mapping[str, Any] | None = None,
    *,
    sources: Mapping[str, str] | None = None,
    overwrite: bool = True,
) -> None:
    """Write a checkpoint whole or not at all.

    Args:
        model: its trainable parameters are saved in float32.
        folder: the checkpoint.
        extra: facts of the training, stored under `train` (epoch, step, score, dataset ...).
        sources: `source_hashes(model)` when known already; hashing a 7B LLM takes a while.
        overwrite: replace an existing checkpoint.

    Raises:
        R2GenError: `R2G-MODEL-NONFINITE` when a trained tensor holds NaN or infinity, `R2G-OUTPUT-*`.
    """
    tensors = {name: value.detach().float().cpu().contiguous() for name, value in model.trainable()}
    check_finite(tensors.items(), "the trained model")
    config = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model": dataclasses.asdict(model.config),
        "sources": dict(source_hashes(model) if sources is None else sources),
        "train": dict(extra or {}),
    }
    with atomic_dir(folder, overwrite=overwrite) as scratch:
        (scratch / ADAPTER).write_bytes(save(tensors))  # a full disk is an OSError here, not one of safetensors' own
        (scratch / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def is_own(path: Path) -> bool:
    """Whether `path` is a folder of the kind `save_checkpoint` writes, complete or not."""
    return path.is_dir() and any((path / name).exists() for name in (ADAPTER, CONFIG))


def _read(folder: Path) -> dict[str, Any]:
    folder = Path(folder)
    fix = "name the folder that `r2gen train` wrote (OUT/best or OUT/last)"
    if folder.is_file():
        message = f"the checkpoint is a file; one of r2gen is a folder with {ADAPTER} and {CONFIG}"
        raise R2GenError("R2G-CHECKPOINT-FORMAT", message, fix)
    absent = [name for name in (ADAPTER, CONFIG) if not (folder / name).is_file()]
    if absent:
        message = "the checkpoint " + (f"lacks {' and '.join(absent)}" if folder.is_dir() else "is not there")
        raise R2GenError("R2G-CHECKPOINT-MISSING", message, fix)
    for name in (ADAPTER, CONFIG):
        refuse_pointer(folder / name, "R2G-CHECKPOINT-FORMAT", "the checkpoint")
    try:
        record = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        message = f"{CONFIG} of the checkpoint is not readable JSON: {library_reason(error, folder)}"
        raise R2GenError("R2G-CHECKPOINT-FORMAT", message, fix) from error
    found = (record.get("format"), record.get("format_version")) if isinstance(record, dict) else (None, None)
    if found != (FORMAT, FORMAT_VERSION):
        says = f"{CONFIG} of the checkpoint says format {found[0]!r} version {found[1]!r}"
        message = f"{says}, expected {FORMAT!r} {FORMAT_VERSION}"
        raise R2GenError("R2G-CHECKPOINT-FORMAT", message, fix)
    return dict(record)


def read_config(folder: Path) -> ModelConfig:
    """The model's settings.

    Raises:
        R2GenError: `R2G-CHECKPOINT-MISSING`, `R2G-CHECKPOINT-FORMAT`.
    """
    values = _read(folder).get("model")
    known = {field.name: type(field.default) for field in dataclasses.fields(ModelConfig)}
    if not isinstance(values, dict) or set(values) != set(known):
        names = sorted(set(known) ^ set(values if isinstance(values, dict) else ()))
        message = f"{CONFIG} of the checkpoint: missing or unknown fields under `model`: {', '.join(names)}"
        raise R2GenError("R2G-CHECKPOINT-FORMAT", message, "use a checkpoint of this release")
    for name, kind in known.items():
        wanted = (int, float) if kind is float else kind
        if not isinstance(values[name], wanted) or (isinstance(values[name], bool) and kind is not bool):
            message = f"{CONFIG} of the checkpoint: model.{name} is {values[name]!r}, expected {kind.__name__}"
            raise R2GenError("R2G-CHECKPOINT-FORMAT", message, "use a checkpoint of this release")
        if kind is str and not is_text(values[name]):
            message = f"{CONFIG} of the checkpoint: model.{name} is {values[name]!r}, which is not valid Unicode"
            raise R2GenError("R2G-CHECKPOINT-FORMAT", message, "use a checkpoint of this release")
    for name in ("vis_r", "llm_r"):
        if not 1 <= values[name] <= MAX_RANK:
            message = f"{CONFIG} of the checkpoint: model.{name} is {values[name]}, expected 1 to {MAX_RANK}"
            raise R2GenError("R2G-CHECKPOINT-FORMAT", message, "use a checkpoint of this release")
    try:
        return ModelConfig(**values)
    except R2GenError as error:
        message = f"{CONFIG} of the checkpoint: {error.message[:200]}"
        raise R2GenError("R2G-CHECKPOINT-FORMAT", message, "use a checkpoint of this release") from error


def train_facts(folder: Path) -> dict[str, Any]:
    """What the training recorded: epoch, step, score, dataset ... Raises as `read_config`."""
    facts = _read(folder).get("train")
    return dict(facts) if isinstance(facts, dict) else {}


def load_checkpoint(model: R2GenGPT, folder: Path) -> None:
    """Put a checkpoint's tensors into `model`, all or none.

    Raises:
        R2GenError: `R2G-CHECKPOINT-MISSING`; `R2G-CHECKPOINT-FORMAT` (not readable, or trained on other source
            weights); `R2G-CHECKPOINT-KEYS` with every missing, unexpected and mis-shaped tensor by name;
            `R2G-MODEL-NONFINITE`.
    """
    record = _read(folder)
    try:
        found = load_file(Path(folder) / ADAPTER)
    except Exception as error:  # safetensors raises its own, OSError and, for odd headers, others
        message = f"{ADAPTER} of the checkpoint is damaged: {library_reason(error, folder)}"
        raise R2GenError("R2G-CHECKPOINT-FORMAT", message, "copy the checkpoint again") from error
    check_keys(model, found)
    check_finite(found.items(), "the checkpoint")
    _check_sources(record.get("sources"), model)
    put_tensors(model, found)


def load_published(model: R2GenGPT, trained: Trained, allow_unexpected: Sequence[str] = ()) -> None:
    """Put the tensors of a published or Lightning file into `model`, all or none.

    Copies of frozen source weights, which Lightning stores too, must equal the sources' in the precision they are
    stored in.

    Args:
        model: built with `trained.config`.
        trained: from `published.understand`.
        allow_unexpected: names, or patterns with `*`, of tensors to leave aside.

    Raises:
        R2GenError: `R2G-CHECKPOINT-KEYS`, `R2G-MODEL-NONFINITE`, `R2G-CHECKPOINT-FORMAT` for other source weights.
    """
    kept = {name: value for name, value in trained.tensors.items() if not _matches(name, allow_unexpected)}
    wanted = dict(model.state_dict(keep_vars=True))
    # The published module has the embedding table under a second name.
    wanted["embed_tokens.weight"] = model.embed_tokens.weight
    # Older releases of peft stored an adapted layer's own weight without `base_layer`.
    wanted |= {name.replace(".base_layer.", "."): value for name, value in wanted.items() if ".base_layer." in name}
    stray, other = [], []
    for name, value in trained.frozen.items():
        if is_derived(name) or _matches(name, allow_unexpected):
            continue
        if name not in wanted:
            stray.append(name)
        elif wanted[name].shape != value.shape or not torch.equal(wanted[name].detach().to(value.dtype), value):
            other.append(name)
    check_keys(model, kept, stray)
    if other:
        listed = ", ".join(sorted(other)[:5])
        message = f"the checkpoint was trained on other source weights; {len(other)} tensors differ: {listed}"
        raise R2GenError("R2G-CHECKPOINT-FORMAT", message, "name the --vision and --llm it was trained on")
    check_finite(kept.items(), "the checkpoint")
    put_tensors(model, kept)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def check_keys(model: R2GenGPT, found: Mapping[str, Tensor], stray: Sequence[str] = ()) -> None:
    """Raise `R2G-CHECKPOINT-KEYS` with every missing, unexpected (`stray` ones too) and mis-shaped tensor by name."""
    wanted = dict(model.trainable())
    missing = sorted(wanted.keys() - found.keys())
    unexpected = sorted({*(found.keys() - wanted.keys()), *stray})
    shaped = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & found.keys())
        if found[name].shape != wanted[name].shape
    ]
    typed = [
        f"{name} ({found[name].dtype})"
        for name in sorted(wanted.keys() & found.keys())
        if not found[name].is_floating_point()
    ]
    groups = (
        ("missing", missing),
        ("unexpected", unexpected),
        ("mis-shaped", shaped),
        ("not of floating point", typed),
    )
    if any(names for _, names in groups):
        listed = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in groups if names)
        fix = "use the sources and the alignment the checkpoint was trained with (`r2gen inspect` shows them)"
        raise R2GenError("R2G-CHECKPOINT-KEYS", f"tensors of the checkpoint do not fit the model; {listed}", fix)


def put_tensors(model: R2GenGPT, found: Mapping[str, Tensor]) -> None:
    """Copy checked tensors into the model."""
    with torch.no_grad():
        for name, parameter in model.trainable():
            parameter.copy_(found[name])


def _check_sources(recorded: Any, model: R2GenGPT) -> None:
    """A projector fits one encoder and one LLM; with others of the same shape it gives fluent nonsense."""
    if not isinstance(recorded, dict):
        return
    parts = {"vision_sha256": ("vision encoder", model.visual_encoder, model.config.vision)}
    if recorded.get("llm_dtype") == str(model.embed_tokens.weight.dtype):
        parts["llm_sha256"] = ("LLM", model.llama_model, model.config.llm)
    for key, (what, module, name) in parts.items():
        if key in recorded and recorded[key] != weights_sha256(module):
            message = f"the checkpoint was trained on another {what} than {name!r}: the SHA-256 of its weights differs"
            raise R2GenError("R2G-CHECKPOINT-FORMAT", message, f"name the {what} it was trained on")
