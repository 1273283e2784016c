"""Load the source models (Swin, LLaMA, tokenizer) from a local folder or the hub, with coded errors.

Every file is read by `source_files`; transformers gets configurations and tensors, never a folder or a hub id. Nothing
here executes code from weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, SwinConfig, SwinModel

from r2gen_export.errors import R2GenError
from r2gen_export.training.source_files.llama import read_llama
from r2gen_export.training.source_files.loaded import check_llama, check_swin
from r2gen_export.training.source_files.place import is_local, missing, source_file, source_name
from r2gen_export.training.source_files.swin import read_swin
from r2gen_export.training.source_files.weights import fit, read_weights
from r2gen_export.training.tokenizers import PAD_TOKEN_ID, load_tokenizer

__all__ = [
    "PAD_TOKEN_ID",
    "check_finite",
    "is_local",
    "load_llm",
    "load_tokenizer",
    "load_vision",
    "source_config",
    "source_file",
    "source_name",
    "stored_dtype",
    "weights_sha256",
]

VISION: Final = "vision encoder"

SPARE_LLM: Final = (".rotary_emb.inv_freq", ".attn.masked_bias")
"""Buffers of older releases."""

SPARE_VISION: Final = ("classifier.", "decoder.", "mask_token", ".relative_position_index", ".attn_mask")
"""The head of the published classifier, of masked pretraining, and buffers every release computes."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back transformers' notes about unused heads; what matters is checked below and raised."""
    before = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()  # its bar would break into ours
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)
        if bars:
            transformers.logging.enable_progress_bar()


def source_config(source: str | Path, what: str, model_type: str) -> dict[str, Any]:
    """`config.json` of a source model as arguments of transformers 4's configuration class, every value checked.

    Raises:
        R2GenError: `R2G-MODEL-MISSING` when it cannot be read; `R2G-MODEL-UNSUPPORTED`, naming the field, for another
            `model_type` than `model_type` and for what r2gen does not export.
    """
    return read_llama(source).arguments() if model_type == "llama" else read_swin(source).arguments()


def load_vision(source: str | Path) -> SwinModel:
    """The Swin encoder in float32. Raises `R2G-MODEL-MISSING`, `-UNSUPPORTED` or `-NONFINITE`."""
    settings, name = read_swin(source), source_name(source)
    tensors = {key.removeprefix("swin."): value for key, value in read_weights(source, VISION).items()}
    model: SwinModel = _load(SwinModel, SwinConfig(**settings.arguments()), tensors, source, torch.float32)
    check_swin(model, settings, name)
    return model


def stored_dtype(llm: str | Path) -> torch.dtype | str:
    """The float type of an LLM's stored weights; `auto` where they are of no type that is exported.

    Loaded in this type, the parameters are pages of the files and take no memory of this process's own.
    """
    table = _llm_tensors(llm).get("model.embed_tokens.weight")
    return (
        table.dtype if table is not None and table.dtype in (torch.float32, torch.float16, torch.bfloat16) else "auto"
    )


def load_llm(source: str | Path, dtype: torch.dtype | str) -> LlamaForCausalLM:
    """The LLaMA in `dtype`. Raises `R2G-MODEL-MISSING`, `-UNSUPPORTED` or `-NONFINITE`."""
    settings, name = read_llama(source), source_name(source)
    tensors = _llm_tensors(source)
    _require_layers(tensors, settings.layers, name)
    if settings.tied:
        _require_tied(tensors, name)
    model: LlamaForCausalLM = _load(LlamaForCausalLM, LlamaConfig(**settings.arguments()), tensors, source, dtype)
    check_llama(model, settings, name)
    return model


def _llm_tensors(source: str | Path) -> dict[str, Tensor]:
    """Tensors of an LLM under the names `LlamaForCausalLM` gives them."""
    tensors = read_weights(source, "LLM")
    if any(name.startswith("model.") for name in tensors):
        return tensors
    return {name if name.startswith("lm_head.") else f"model.{name}": value for name, value in tensors.items()}


def _require_layers(tensors: dict[str, Tensor], layers: int, name: str) -> None:
    """Refuse another number of layers than the file has: transformers would leave out the others, or make them up."""
    numbers = {
        int(part) for key in tensors if (part := key.removeprefix("model.layers.").partition(".")[0]).isdecimal()
    }
    if layers != len(numbers):
        message = f"config.json of the LLM {name!r}: num_hidden_layers is {layers}, its weights have {len(numbers)}"
        raise R2GenError("R2G-MODEL-UNSUPPORTED", message, "correct config.json, or use the model it belongs to")


def _require_tied(tensors: dict[str, Tensor], name: str) -> None:
    """An output layer tied to the embeddings must not have other weights of its own: they would be dropped."""
    head, table = tensors.pop("lm_head.weight", None), tensors.get("model.embed_tokens.weight")
    if head is not None and table is not None and not (head.shape == table.shape and torch.equal(head, table)):
        message = f"the LLM {name!r}: tie_word_embeddings is true, but lm_head.weight differs from the embeddings"
        raise R2GenError("R2G-MODEL-UNSUPPORTED", message, "set tie_word_embeddings to false in config.json")


def _load(kind: Any, config: Any, tensors: dict[str, Tensor], source: str | Path, dtype: torch.dtype | str) -> Any:
    """A model of transformers with the tensors in it; it reads no file and asks no hub."""
    vision = kind is SwinModel
    what, name = VISION if vision else "LLM", source_name(source)
    try:
        with _quiet(), torch.device("meta"):
            empty = kind(config)
        shapes = {key: value.shape for key, value in empty.named_parameters()}
        spare = SPARE_VISION if vision else SPARE_LLM
        fitting = fit(tensors, shapes, spare=spare, what=what, source=name)
        stored = next(iter(fitting.values())).dtype if dtype == "auto" else dtype
        with _quiet():
            model = kind.from_pretrained(None, config=config, state_dict=fitting, dtype=stored)
    except R2GenError:
        raise
    # Sizes that do not go together make torch and transformers raise a dozen kinds.
    except Exception as error:
        fix = "correct config.json, or use the model it belongs to"
        raise missing(what, source, f"no model can be made of it: {error or type(error).__name__}", fix) from error
    check_finite(model.named_parameters(), f"the {what} {name!r}")
    return model


def check_finite(tensors: Any, where: str) -> None:
    """Raise `R2G-MODEL-NONFINITE`, naming every tensor of the (name, tensor) pairs that holds NaN or infinity."""
    bad = [name for name, tensor in tensors if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    if bad:
        message = f"{where} holds NaN or infinity in {len(bad)} tensors: {', '.join(bad)}"
        raise R2GenError("R2G-MODEL-NONFINITE", message, "use undamaged weights, or train again at a lower rate")


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of a module's parameters, LoRA's left out.

    Names are taken as they were before peft wrapped the module, so wrapping does not change the value.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.named_parameters()):
        if ".lora_" in name:
            continue
        plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        digest.update(f"{plain}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        data = tensor.detach().cpu().contiguous()
        # NumPy knows no bfloat16: hash the bytes.
        digest.update(data.view(torch.uint8).flatten().numpy().data if data.dim() else str(data.item()).encode())
    return digest.hexdigest()
