"""What other tools make of a checkpoint: prefixes of DDP and torch.compile, folders of DeepSpeed and of DCP."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from r2gen_export.errors import R2GenError

PREFIXES: Final = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put in front of the names of the tensors they wrap."""


def take_off(stored: Sequence[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Names without the prefixes of wrappers, in front of all names or of all names of one part.

    Args:
        stored: names of tensors as they are in the file.

    Returns:
        Stored name -> name, and the prefixes taken off.

    Raises:
        R2GenError: `R2G-CHECKPOINT-FORMAT`, naming the prefix, when only some names have it.
    """
    names, taken = dict(zip(stored, stored, strict=True)), list[str]()
    while prefix := _common("", names.values()):
        names = {key: name.removeprefix(prefix) for key, name in names.items()}
        taken.append(prefix)
    for part in sorted({f"{name.partition('.')[0]}." for name in names.values()}):
        while prefix := _common(part, (name for name in names.values() if name.startswith(part))):
            whole = part + prefix
            names = {
                key: part + name.removeprefix(whole) if name.startswith(whole) else name for key, name in names.items()
            }
            taken.append(whole)
    for prefix in PREFIXES:
        wrapped = sorted(name for name in names.values() if f".{prefix}" in f".{name}")
        if wrapped:
            message = f"the checkpoint: {len(wrapped)} of {len(names)} tensors have the prefix {prefix!r}: "
            fix = f"save the model inside its wrapper, or rename the tensors: name.replace({prefix!r}, '')"
            raise R2GenError("R2G-CHECKPOINT-FORMAT", message + ", ".join(wrapped[:3]), fix)
    return names, tuple(taken)


def _common(part: str, names: Iterable[str]) -> str:
    """The prefix that all of a part's names have behind the part's own; empty when there is none."""
    inner = [name.removeprefix(part) for name in names]
    return next((prefix for prefix in PREFIXES if inner and all(name.startswith(prefix) for name in inner)), "")


def refuse_parts(folder: Path) -> None:
    """Refuse folders that DeepSpeed and torch.distributed write: parts of tensors, which their own tools put together.

    Raises:
        R2GenError: `R2G-CHECKPOINT-FORMAT`.
    """
    if (folder / "zero_to_fp32.py").is_file() or any(folder.glob("**/*zero_pp_rank_*")):
        message = "the checkpoint is a folder of DeepSpeed, in parts"
        fix = "where DeepSpeed is installed: python FOLDER/zero_to_fp32.py FOLDER whole.pth; give whole.pth"
        raise R2GenError("R2G-CHECKPOINT-FORMAT", message, fix)
    if (folder / ".metadata").is_file() or any(folder.glob("*.distcp")):
        message = "the checkpoint is a folder of torch.distributed.checkpoint, in parts"
        fix = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER whole.pth; give whole.pth"
        raise R2GenError("R2G-CHECKPOINT-FORMAT", message, fix)
