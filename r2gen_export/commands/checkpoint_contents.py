"""What is in a checkpoint, as text or JSON, without loading the models it belongs to."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r2gen_export.commands.console import write_out
from r2gen_export.errors import R2GenError
from r2gen_export.training import checkpoint as own
from r2gen_export.training import published


def run_inspect(path: Path, form: str = "text") -> None:
    """Print to stdout; JSON: `file`, `kind`, `facts`, `settings`, `model` (null when the file does not say), `tensors`.

    Raises:
        R2GenError: `R2G-CHECKPOINT-MISSING`, `R2G-CHECKPOINT-FORMAT`, `R2G-CHECKPOINT-UNSAFE`.
    """
    content = inspect_own(path) if own.is_own(path) else inspect_foreign(path)
    write_out(json.dumps(content, indent=1) + "\n" if form == "json" else _text(content))


def inspect_own(folder: Path) -> dict[str, Any]:
    """A folder that r2gen wrote."""
    content = _content(published.read_file(folder / own.ADAPTER))
    named = {"file": folder.name, "kind": "r2gen", "facts": own.train_facts(folder)}
    return {**content, **named, "model": dataclasses.asdict(own.read_config(folder))}


def inspect_foreign(path: Path) -> dict[str, Any]:
    """A file of the published code, of Lightning, or of tensors only."""
    file = published.read_file(published.find_file(path))
    content = _content(file)
    try:
        trained = published.understand(file, {})
    except R2GenError as error:
        return {**content, "unclear": error.message}
    decoding = dataclasses.asdict(trained.decoding) if trained.decoding else None
    return {**content, "model": dataclasses.asdict(trained.config), "decoding": decoding}


def _content(file: published.CheckpointFile) -> dict[str, Any]:
    tensors = {
        name: {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        for name, value in sorted(file.tensors.items())
    }
    about = {"file": file.path.name, "kind": file.kind, "facts": dict(file.facts), "settings": dict(file.settings)}
    return {**about, "model": None, "tensors": tensors}


def _text(content: Mapping[str, Any]) -> str:
    lines = [f"{content['file']}: {content['kind']} checkpoint, {len(content['tensors'])} tensors"]
    for title in ("facts", "model", "decoding", "settings"):
        if values := content.get(title):
            lines += ["", title, *(f"  {name} = {value!r}" for name, value in values.items())]
    if content.get("unclear"):
        lines += ["", f"model unclear: {content['unclear']}"]
    lines += ["", "tensors"]
    width = max(map(len, content["tensors"]), default=0)
    lines += [f"  {name:<{width}}  {one['dtype']} {one['shape']}" for name, one in content["tensors"].items()]
    return "\n".join(lines) + "\n"
