"""The tensors of a source model, from safetensors or `pytorch_model.bin`, whole or in shards.

Tensors stay mapped to their files: they take no memory of this process's own until they are changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Final

import torch
from safetensors import safe_open
from torch import Tensor

from r2gen_export.errors import R2GenError, library_reason
from r2gen_export.training.source_files.fields import read_object
from r2gen_export.training.source_files.place import missing, source_file, source_name
from r2gen_export.training.source_files.plain_pickle import NotPlainError, is_dense, load_plain

WHOLE: Final = ("model.safetensors", "pytorch_model.bin")

AGAIN: Final = "download the weights again, and compare their sizes with the published ones"

DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""Types of weights that are exported."""


def read_weights(source: str | Path, what: str) -> dict[str, Tensor]:
    """All tensors of a source model by name, on the CPU, in their stored types.

    Raises:
        R2GenError: `R2G-MODEL-MISSING` when files are absent, damaged, git-lfs pointers, or lie outside the folder.
    """
    for name in WHOLE:
        if (path := source_file(source, name, what)) is not None:
            return _read(path, what, source)
        if (index := source_file(source, f"{name}.index.json", what)) is not None:
            return _read_shards(index, what, source)
    raise missing(what, source, f"it holds neither {' nor '.join(WHOLE)}, whole or in shards")


def _read_shards(index: Path, what: str, source: str | Path) -> dict[str, Tensor]:
    places = read_object(index, what, source).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise missing(what, source, f"weight_map of {index.name} does not name a file for each tensor", AGAIN)
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        if PurePosixPath(name).name != name or PureWindowsPath(name).name != name or name in ("", ".", ".."):
            raise missing(what, source, f"{index.name} names {name!r}, which is not a file of the folder", AGAIN)
        path = source_file(source, name, what)
        if path is None:
            raise missing(what, source, f"{index.name} names {name}, which is not there", AGAIN)
        shard = _read(path, what, source)
        if absent := sorted(tensor for tensor, file in places.items() if file == name and tensor not in shard):
            reason = f"{name} lacks {len(absent)} tensors that {index.name} places there: {', '.join(absent[:5])}"
            raise missing(what, source, reason, AGAIN)
        tensors |= shard
    return tensors


def _read(path: Path, what: str, source: str | Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
        content = load_plain(path)
    except NotPlainError as error:
        message = f"{path.name} of the {what} {source_name(source)!r} asks for {error.name!r}, which could run code"
        fix = "use weights in safetensors; do not load these elsewhere either, unless you trust who made them"
        raise R2GenError("R2G-MODEL-UNSUPPORTED", message, fix) from error
    except Exception as error:  # safetensors and torch.load raise a dozen kinds on damaged files
        raise missing(what, source, f"{path.name} is damaged: {library_reason(error, path)}", AGAIN) from error
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) and is_dense(value) for name, value in content.items()
    ):
        raise missing(what, source, f"{path.name} holds something else than tensors by name", AGAIN)
    return dict(content)


def fit(
    tensors: dict[str, Tensor], expected: Mapping[str, torch.Size], *, spare: tuple[str, ...], what: str, source: str
) -> dict[str, Tensor]:
    """The tensors a model takes, when the file holds exactly these.

    Args:
        tensors: by the model's own names.
        expected: shapes of all parameters the file must hold.
        spare: parts of names of tensors that may be there and are not needed.
        what: for messages.
        source: its name, for messages.

    Raises:
        R2GenError: `R2G-MODEL-MISSING` when tensors are absent, `R2G-MODEL-UNSUPPORTED` when they are left over, of
            another shape or not floating point numbers; all with names.
    """
    named = f"the {what} {source!r}"
    absent = sorted(expected.keys() - tensors.keys())
    if absent:
        message = f"{named} lacks {len(absent)} tensors: {_listed(absent)}"
        raise R2GenError("R2G-MODEL-MISSING", message, "download it again, or name the right model")
    left = sorted(name for name in tensors.keys() - expected.keys() if not any(part in name for part in spare))
    if left:
        message = f"{named} holds {len(left)} tensors for which its config.json has no place: {_listed(left)}"
        raise R2GenError("R2G-MODEL-UNSUPPORTED", message, "correct config.json, or use the model it belongs to")
    shaped = [
        f"{name} {tuple(tensors[name].shape)}, expected {tuple(shape)}"
        for name, shape in sorted(expected.items())
        if tensors[name].shape != shape
    ]
    if shaped:
        message = f"{named}: tensors have other shapes than its config.json says: {_listed(shaped)}"
        raise R2GenError("R2G-MODEL-UNSUPPORTED", message, "correct config.json, or use the model it belongs to")
    typed = [f"{name} ({tensors[name].dtype})" for name in sorted(expected) if tensors[name].dtype not in DTYPES]
    if typed:
        message = f"{named} holds {len(typed)} weights that are not float32, float16 or bfloat16: {_listed(typed)}"
        raise R2GenError("R2G-MODEL-UNSUPPORTED", message, "use the model that is not quantised")
    return {name: tensors[name] for name in expected}


def _listed(names: list[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
