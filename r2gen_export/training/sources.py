"""Load the source models (Swin, LLaMA, tokenizer) from a local folder or the hub, with coded errors.

Nothing here executes code from weights: `trust_remote_code` is never given, pickled weights load with `weights_only`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast, SwinModel
from transformers.utils import cached_file

from r2gen_export.errors import R2GenError

PAD_TOKEN_ID = 0
"""The published code sets `pad_token_id = 0`, which is `<unk>` for LLaMA."""

LOAD_ERRORS = (OSError, ValueError, RuntimeError, TypeError, KeyError, ImportError, SafetensorError)
"""What transformers, huggingface_hub and safetensors raise for absent, foreign or broken model files."""


def source_name(source: str | Path) -> str:
    """A hub id as it is, a local folder as its last part: a checkpoint carries no path of this machine."""
    return Path(source).resolve().name if is_local(source) else str(source)


def is_local(source: str | Path) -> bool:
    """Whether `source` names a folder rather than a hub id."""
    return Path(source).exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(source)) or str(source)[0] in "./"


def _missing(what: str, source: str | Path, error: Exception) -> R2GenError:
    path = Path(source)
    if path.is_dir():
        tried = "as a local folder"
    elif is_local(source):
        tried = "as a local folder, which is not there" if not path.exists() else "as a local folder, but it is a file"
    else:
        tried = "as a local folder, which is not there, and as a Hugging Face hub id"
    if not path.exists() and is_local(source):
        reason = ""
    elif isinstance(error, HFValidationError):
        reason = ": not a valid hub id"
    else:
        reason = ": " + (" ".join(str(error).split()) or type(error).__name__)[:200]
    fix = "give the folder that holds config.json and the weights, or a hub id reachable from here"
    return R2GenError("R2G-MODEL-MISSING", f"the {what} {str(source)!r} cannot be loaded (tried {tried}){reason}", fix)


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


def source_file(source: str | Path, name: str) -> Path | None:
    """Path of one file of a local folder or a hub repository, None when it has no such file."""
    path = Path(source)
    if is_local(source):
        return path / name if (path / name).is_file() else None
    try:
        found = cached_file(str(source), name, _raise_exceptions_for_missing_entries=False)
    except LOAD_ERRORS:
        return None
    return Path(found) if found else None


def source_config(source: str | Path, what: str, model_type: str) -> dict[str, Any]:
    """`config.json` of a source model.

    Raises:
        R2GenError: `R2G-MODEL-MISSING` when it cannot be read, `R2G-MODEL-UNSUPPORTED` when its `model_type` is not
            `model_type` (transformers would only warn and start from random weights).
    """
    try:
        path = cached_file(str(source), "config.json", local_files_only=True if Path(source).is_dir() else None)
        config = json.loads(Path(str(path)).read_text(encoding="utf-8"))
    except LOAD_ERRORS as error:
        raise _missing(what, source, error) from error
    found = config.get("model_type") if isinstance(config, dict) else None
    if found != model_type:
        message = f"the {what} {str(source)!r} is of type {found!r}, expected {model_type!r}"
        raise R2GenError("R2G-MODEL-UNSUPPORTED", message, f"name a {model_type} model")
    return dict(config)


def _load(
    kind: type[SwinModel] | type[LlamaForCausalLM], what: str, source: str | Path, dtype: torch.dtype | str
) -> Any:
    source_config(source, what, "swin" if kind is SwinModel else "llama")
    try:
        with _quiet():
            model, info = kind.from_pretrained(str(source), dtype=dtype, output_loading_info=True)
    except LOAD_ERRORS as error:
        raise _missing(what, source, error) from error
    parameters = {name for name, _ in model.named_parameters()}
    # Buffers (Swin's relative positions) are computed; a parameter that is not in the file would be random.
    absent = sorted(parameters & set(info["missing_keys"]))
    if absent:
        message = f"the {what} {str(source)!r} lacks {len(absent)} tensors: {', '.join(absent)}"
        raise R2GenError("R2G-MODEL-MISSING", message, "download it again, or name the right model")
    check_finite(model.named_parameters(), f"the {what} {source_name(source)!r}")
    return model


def load_vision(source: str | Path) -> SwinModel:
    """The Swin encoder in float32. Raises `R2G-MODEL-MISSING`, `-UNSUPPORTED` or `-NONFINITE`."""
    model: SwinModel = _load(SwinModel, "vision encoder", source, torch.float32)
    return model


def stored_dtype(llm: str | Path) -> torch.dtype | str:
    """The float type of an LLM's safetensors files; `auto`, which transformers finds out, without such files.

    Loaded in this type, the parameters are pages of the files and take no memory of this process's own.
    """
    index = source_file(llm, "model.safetensors.index.json")
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"] if index else {}
        name = places.get("model.embed_tokens.weight", "model.safetensors")
        file = source_file(llm, name)
        if file is None:
            return "auto"
        with safe_open(file, framework="pt") as opened:
            kind = opened.get_slice("model.embed_tokens.weight").get_dtype()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError):
        return "auto"  # loading says what is wrong with the files
    return {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}.get(kind, "auto")


def load_llm(source: str | Path, dtype: torch.dtype | str) -> LlamaForCausalLM:
    """The LLaMA in `dtype`. Raises `R2G-MODEL-MISSING`, `-UNSUPPORTED` or `-NONFINITE`."""
    model: LlamaForCausalLM = _load(LlamaForCausalLM, "LLM", source, dtype)
    return model


def load_tokenizer(llm: str | Path) -> PreTrainedTokenizerBase:
    """The LLM's tokenizer, with `pad_token_id = 0` as in the published code.

    The published code uses the slow `LlamaTokenizer`; so does this when the source has a `tokenizer.model` and
    sentencepiece is installed. Otherwise `tokenizer.json` is read.

    Raises:
        R2GenError: `R2G-MODEL-MISSING` when there is no readable tokenizer, `R2G-MODEL-UNSUPPORTED` when it lacks
            the BOS or EOS token the prompt needs.
    """
    tokenizer: PreTrainedTokenizerBase
    try:
        with _quiet():
            if importlib.util.find_spec("sentencepiece") and source_file(llm, "tokenizer.model"):
                tokenizer = transformers.LlamaTokenizer.from_pretrained(str(llm))
            elif source_file(llm, "tokenizer_config.json") is None and (bare := source_file(llm, "tokenizer.json")):
                specials = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
                tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(bare), **specials)
            else:
                tokenizer = AutoTokenizer.from_pretrained(str(llm), use_fast=True)
    # The tokenizers library raises bare Exception for a tokenizer.json it cannot parse.
    except Exception as error:
        raise _missing("tokenizer of the LLM", llm, error) from error
    if tokenizer.bos_token_id is None or tokenizer.eos_token_id is None:
        message = f"the tokenizer of {str(llm)!r} has no BOS or no EOS token"
        raise R2GenError("R2G-MODEL-UNSUPPORTED", message, "set bos_token and eos_token in tokenizer_config.json")
    tokenizer.pad_token_id = PAD_TOKEN_ID
    return tokenizer


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
