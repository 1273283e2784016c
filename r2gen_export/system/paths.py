"""Paths that libraries can be given."""

from __future__ import annotations

from pathlib import Path

from r2gen_export.errors import R2GenError


def require_utf8(path: Path, what: str) -> None:
    """Refuse a path whose bytes are not UTF-8: Linux has such, ONNX Runtime and tokenizers take none.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE`.
    """
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError as error:
        message = f"the path of {what} is not UTF-8, which ONNX Runtime cannot open"
        raise R2GenError(
            "R2G-CONFIG-VALUE", message, "rename its folders, or go there and give a relative path"
        ) from error
