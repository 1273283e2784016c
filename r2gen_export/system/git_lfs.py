"""Pointer files that `git clone` leaves where git-lfs is not installed, told from the files they stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from r2gen_export.errors import R2GenError

HEAD: Final = b"version https://git-lfs.github.com/spec/"
"""Every pointer file begins with it (git-lfs specification, "The Pointer")."""

FIX: Final = "install git-lfs and run `git lfs pull` in that folder, or download the file again"


def is_pointer(path: Path) -> bool:
    """Whether a file is a git-lfs pointer; false when it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(len(HEAD)) == HEAD
    except OSError:
        return False


def refuse_pointer(path: Path, code: str, what: str = "") -> None:
    """Refuse a pointer file.

    Args:
        path: the file. Only its name is shown.
        code: of the error.
        what: what the file belongs to, for the message ("the LLM").

    Raises:
        R2GenError: `code`, when `path` is a git-lfs pointer.
    """
    if is_pointer(path):
        owner = f" of {what}" if what else ""
        raise R2GenError(code, f"{path.name}{owner} is a git-lfs pointer, not the file itself", FIX)
