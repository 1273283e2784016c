"""Checkpoints of the published R2GenGPT code (`.pth`) and of Lightning (`.ckpt`), read without running anything.

`.pth`: `{"model": trained tensors, "config": hyper-parameters, "epoch", "step"}` (published `save_checkpoint`).
`.ckpt`: Lightning's `{"state_dict": all tensors, "hyper_parameters", "epoch", "global_step"}`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from safetensors.torch import load_file
from torch import Tensor

from r2gen_export.decoding import Decoding
from r2gen_export.errors import R2GenError, library_reason
from r2gen_export.runtime.decoding.generate import check_decoding
from r2gen_export.system.git_lfs import refuse_pointer
from r2gen_export.training.hub import source_name
from r2gen_export.training.model import PROJECTOR, ModelConfig
from r2gen_export.training.source_files.plain_pickle import NotPlainError, is_dense, load_plain, plain
from r2gen_export.training.wrappers import refuse_parts, take_off

Kind = Literal["published", "lightning", "tensors"]

SUFFIXES: Final = (".pth", ".pt", ".ckpt", ".safetensors")

LORA: Final = re.compile(r"^(visual_encoder|llama_model)\..*\.lora_A\.default\.weight$")

CONFIG_NAMES: Final = {
    "vision": "vision_model",
    "llm": "llama_model",
    "global_only": "global_only",
    "vis_alpha": "vis_alpha",
    "llm_alpha": "llm_alpha",
    "lora_dropout": "lora_dropout",
    "end_sym": "end_sym",
    "max_length": "max_length",
}
"""Fields of `ModelConfig` and what the published settings call them."""

DECODING_NAMES: Final = {
    "num_beams": "beam_size",
    "min_new_tokens": "min_new_tokens",
    "max_new_tokens": "max_new_tokens",
    "repetition_penalty": "repetition_penalty",
    "length_penalty": "length_penalty",
}
"""What the published `validation_step` passes to `generate`, sampling apart, and its names. No other setting counts."""

FLAGS: Final = {"global_only": "--global-only", "vis_alpha": "--delta-alpha", "llm_alpha": "--llm-alpha"}


@dataclass(frozen=True)
class CheckpointFile:
    """What is in a file, before anything is made of it.

    Attributes:
        path: the file.
        kind: who wrote it; `tensors`: nothing but tensors.
        tensors: all of them by name, as stored.
        settings: hyper-parameters, plain values only.
        facts: epoch and step.
        prefixes: prefixes of wrappers that were taken off the names.
    """

    path: Path
    kind: Kind
    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    prefixes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trained:
    """A published checkpoint, understood: `tensors` were trained, `frozen` are copies of the sources' weights."""

    file: CheckpointFile
    config: ModelConfig
    tensors: dict[str, Tensor]
    frozen: dict[str, Tensor]
    decoding: Decoding | None
    dataset: str | None


def find_file(path: Path) -> Path:
    """`path`, or the one checkpoint in it or in its `checkpoints` folder.

    Raises:
        R2GenError: `R2G-CHECKPOINT-MISSING`; `R2G-CHECKPOINT-FORMAT` when a folder holds several.
    """
    if path.is_file():
        return path
    if path.is_dir():
        refuse_parts(path)
    folders = (path, path / "checkpoints")
    found = [one for folder in folders if folder.is_dir() for one in sorted(folder.iterdir()) if _is_checkpoint(one)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(one.name for one in found)
        message = f"the folder of the checkpoint holds {len(found)} of them: {names}"
        raise R2GenError("R2G-CHECKPOINT-FORMAT", message, "name one of them")
    message = f"the checkpoint is {'a folder without one' if path.is_dir() else 'not there'}"
    fix = f"name a file ({', '.join(SUFFIXES)}), or a folder that r2gen train wrote (OUT/best)"
    raise R2GenError("R2G-CHECKPOINT-MISSING", message, fix)


def _is_checkpoint(path: Path) -> bool:
    return path.suffix in SUFFIXES and path.is_file() and not path.name.startswith(".")


def read_file(path: Path) -> CheckpointFile:
    """Read a `.pth`, `.ckpt` or `.safetensors` file. Nothing in it is executed; big files are mapped, not read.

    Raises:
        R2GenError: `R2G-CHECKPOINT-UNSAFE` when it asks for anything but tensors and plain data;
            `R2G-CHECKPOINT-FORMAT` when it is damaged or of another kind.
    """
    refuse_pointer(path, "R2G-CHECKPOINT-FORMAT", "the checkpoint")
    if path.suffix == ".safetensors":
        try:
            return _named(CheckpointFile(path, "tensors", load_file(path)))
        except R2GenError:
            raise
        except Exception as error:  # a file that is replaced while it is mapped, or is damaged
            raise _unreadable(path, error) from error
    content = _unpickle(path)
    if not isinstance(content, dict):
        raise _other(f"it holds {type(content).__name__}, not a dictionary")
    if "ds_version" in content or ("module" in content and "ds_config" in content):
        message = "the checkpoint is a part of a checkpoint of DeepSpeed"
        fix = (
            "where DeepSpeed is installed: python zero_to_fp32.py FOLDER whole.pth, in the folder above; give whole.pth"
        )
        raise R2GenError("R2G-CHECKPOINT-FORMAT", message, fix)
    kind, tensors, settings, facts = _parts(content)
    strange = [str(name) for name, value in tensors.items() if not _is_tensor(name, value)]
    if strange or not tensors:
        reason = f"{', '.join(strange[:5])} are no tensors" if strange else "there are no tensors in it"
        raise _other(reason)
    if any(name.startswith("model.llama_proj.") for name in tensors):
        message = "the checkpoint is the state `r2gen train` resumes from"
        raise R2GenError("R2G-CHECKPOINT-FORMAT", message, "name the folder best or last beside it")
    known = {name: plain(value) for name, value in facts.items()}
    known = {name: value for name, value in known.items() if value is not None}
    return _named(CheckpointFile(path, kind, dict(tensors), _plain(settings), known))


def _parts(content: Mapping[Any, Any]) -> tuple[Kind, Mapping[Any, Any], Any, dict[str, Any]]:
    """Kind, tensors, settings and facts of a file's content."""
    if isinstance(content.get("state_dict"), Mapping):
        facts = {"epoch": content.get("epoch"), "step": content.get("global_step")}
        return "lightning", content["state_dict"], content.get("hyper_parameters"), facts
    if isinstance(content.get("model"), Mapping):
        facts = {"epoch": content.get("epoch"), "step": content.get("step")}
        return "published", content["model"], content.get("config"), facts
    return "tensors", content, {}, {}


def _is_tensor(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor) and is_dense(value)


def _named(file: CheckpointFile) -> CheckpointFile:
    """A file with the prefixes of wrappers taken off. Raises as `take_off`."""
    names, taken = take_off(list(file.tensors))
    if not taken:
        return file
    tensors = {name: file.tensors[stored] for stored, name in names.items()}
    return replace(file, tensors=tensors, prefixes=taken)


def _unpickle(path: Path) -> Any:
    try:
        return load_plain(path)
    except NotPlainError as error:
        message = (
            f"the checkpoint asks for {error.name!r}, which could run code; only tensors and plain settings are read"
        )
        raise R2GenError("R2G-CHECKPOINT-UNSAFE", message, _PLAIN_FIX) from error
    except Exception as error:  # torch.load raises a dozen kinds on damaged files
        raise _unreadable(path, error) from error


_PLAIN_FIX: Final = (
    'do not load it elsewhere, unless you trust who made it; then write it anew where it was made: python -c "import '
    "torch; c = torch.load('IN', weights_only=False); h = c.get('hyper_parameters', c.get('config')); h = h if "
    "isinstance(h, dict) else vars(h); torch.save({'state_dict': c.get('state_dict', c.get('model')), "
    "'hyper_parameters': {k: v for k, v in h.items() if isinstance(v, (bool, int, float, str))}}, 'plain.ckpt')\""
)


def _unreadable(path: Path, error: Exception) -> R2GenError:
    message = f"the checkpoint cannot be read: {library_reason(error, path)}"
    return R2GenError("R2G-CHECKPOINT-FORMAT", message, "copy the checkpoint again")


def _other(found: str) -> R2GenError:
    message = f"the checkpoint is none of R2GenGPT: {found}"
    fix = "expected {'model', 'config', ...} (published code) or {'state_dict', 'hyper_parameters', ...} (Lightning)"
    return R2GenError("R2G-CHECKPOINT-FORMAT", message, fix)


def _plain(settings: Any) -> dict[str, Any]:
    """Settings whose values are plain, out of a dictionary or a namespace, also when it is wrapped in `args`."""
    values = plain(settings)
    if not isinstance(values, dict):
        return {}
    if isinstance(values.get("args"), dict):
        values = values["args"]
    return {str(name): value for name, value in values.items() if not isinstance(value, dict)}


def understand(file: CheckpointFile, overrides: Mapping[str, Any]) -> Trained:
    """Which model a file belongs to: from its tensors' names first, then its settings, then `overrides`.

    Args:
        file: from `read_file`.
        overrides: fields of `ModelConfig` that are to hold whatever the file says; None counts as not given.

    Raises:
        R2GenError: `R2G-CHECKPOINT-FORMAT` when names and settings contradict each other; `R2G-CONFIG-VALUE` when a
            setting that changes the words is neither in the file nor given.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    values: dict[str, Any] = {}
    for name, theirs in CONFIG_NAMES.items():
        if theirs in file.settings:
            values[name] = _typed(file, theirs, file.settings[theirs], type(getattr(ModelConfig(), name)))
    for name in ("vision", "llm"):
        if name in values:
            values[name] = source_name(values[name].replace("\\", "/"))
    ranks = _ranks(file)
    if "visual_encoder" in ranks:
        values["vis_r"] = ranks["visual_encoder"]
    if "llama_model" in ranks:
        values["llm_r"] = ranks["llama_model"]
    values["llm_lora"] = "llama_model" in ranks
    values["alignment"] = _alignment(file, ranks, given.get("alignment"))
    values |= given
    needed = ["global_only"]
    needed += ["vis_alpha"] if values["alignment"] == "delta" else []
    needed += ["llm_alpha"] if values["llm_lora"] else []
    if lacking := [name for name in needed if name not in values]:
        message = f"the checkpoint does not say {', '.join(lacking)}, which changes the reports"
        raise R2GenError("R2G-CONFIG-VALUE", message, f"give {', '.join(FLAGS[name] for name in lacking)}")
    config = ModelConfig(**values)
    trained = {name for name in file.tensors if _is_trained(name, config)}
    if file.kind != "lightning":
        trained = set(file.tensors)  # the published code stores what was trained and nothing else
    return Trained(
        file=file,
        config=config,
        tensors={name: file.tensors[name] for name in trained},
        frozen={name: value for name, value in file.tensors.items() if name not in trained},
        decoding=_decoding(file),
        dataset=str(file.settings["dataset"]) if "dataset" in file.settings else None,
    )


def _ranks(file: CheckpointFile) -> dict[str, int]:
    """Rank of the LoRA of each part that has one."""
    found: dict[str, int] = {}
    for name, value in file.tensors.items():
        if match := LORA.match(name):
            found.setdefault(match[1], len(value))
    return found


def _alignment(file: CheckpointFile, ranks: Mapping[str, int], given: str | None) -> str:
    """delta by its LoRA; deep by trained encoder weights, which in a Lightning file only the settings tell apart."""
    said = None
    if {"freeze_vm", "vis_use_lora"} <= file.settings.keys():
        lora, frozen = (_typed(file, name, file.settings[name], bool) for name in ("vis_use_lora", "freeze_vm"))
        said = "delta" if lora else "shallow" if frozen else "deep"
    encoder = any(name.startswith("visual_encoder.") for name in file.tensors)
    if "visual_encoder" in ranks:
        seen = "delta"
    elif file.kind != "lightning":
        seen = "deep" if encoder else "shallow"
    else:
        seen = given or (said if said in ("shallow", "deep") else None) or ""
    if not seen:
        message = "the checkpoint does not say whether its encoder was trained"
        raise R2GenError("R2G-CONFIG-VALUE", message, "give --alignment shallow or deep")
    for other, where in ((said, "its settings say"), (given, "--alignment says")):
        if other is not None and other != seen:
            message = f"the checkpoint holds tensors of a {seen} alignment, but {where} {other}"
            raise R2GenError("R2G-CHECKPOINT-FORMAT", message, "check where the file comes from")
    return seen


def _is_trained(name: str, config: ModelConfig) -> bool:
    if ".lora_" in name or name.startswith(PROJECTOR):
        return True
    return config.alignment == "deep" and name.startswith("visual_encoder.") and not is_derived(name)


def is_derived(name: str) -> bool:
    """Buffers that older releases stored and every release computes."""
    return name.endswith((".rotary_emb.inv_freq", ".relative_position_index", ".position_ids"))


def _decoding(file: CheckpointFile) -> Decoding | None:
    values = {
        name: _typed(file, theirs, file.settings[theirs], type(getattr(Decoding(), name)))
        for name, theirs in DECODING_NAMES.items()
        if theirs in file.settings
    }
    if len(values) < len(DECODING_NAMES):
        return None
    decoding = Decoding(**values)
    try:
        check_decoding(decoding)
    except R2GenError as error:
        message = f"the checkpoint: its decoding settings: {error.message}"
        raise R2GenError("R2G-CHECKPOINT-FORMAT", message, "correct its settings where it was made") from error
    return decoding


def _typed(file: CheckpointFile, name: str, value: Any, kind: type) -> Any:
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (isinstance(value, str) and not is_text(value)):
        expected = "valid Unicode" if isinstance(value, str) and kind is str else kind.__name__
        message = f"the checkpoint: its setting {name} is {value!r}, expected {expected}"
        raise R2GenError("R2G-CHECKPOINT-FORMAT", message, "check where the file comes from")
    return value


def is_text(value: str) -> bool:
    """Whether text can be encoded: JSON and pickle can hold halves of surrogate pairs, no tokenizer takes them."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def describe(trained: Trained) -> str:
    """What a file says of its model, in one line."""
    config, facts = trained.config, trained.file.facts
    where = ", ".join(f"{name} {value}" for name, value in facts.items())
    parts = [f"{trained.file.kind} checkpoint {trained.file.path.name}" + (f" ({where})" if where else "")]
    if trained.file.prefixes:
        parts.append(f"prefix {' and '.join(map(repr, trained.file.prefixes))} taken off its tensors' names")
    lora = f", LoRA r {config.vis_r} alpha {config.vis_alpha}" if config.alignment == "delta" else ""
    parts.append(config.alignment + lora)
    if config.global_only:
        parts.append("pooled image token only")
    if config.llm_lora:
        parts.append(f"LLM LoRA r {config.llm_r} alpha {config.llm_alpha}")
    parts.append(f"prompt {config.prompt!r}")
    if (one := trained.decoding) is not None:
        parts.append(
            f"decoding: {one.num_beams} beams, {one.min_new_tokens} to {one.max_new_tokens} tokens, "
            f"repetition penalty {one.repetition_penalty}, length penalty {one.length_penalty}"
        )
    return "; ".join(parts)
