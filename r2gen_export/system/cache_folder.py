"""Per-user cache directory: records of `r2gen tune`, engines of ONNX Runtime."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

CACHE_VARIABLE: Final = "R2GEN_CACHE"


def cache_folder() -> Path:
    """The user's cache folder of r2gen: the variable `R2GEN_CACHE`, else below XDG's. It need not exist."""
    base = os.environ.get(CACHE_VARIABLE)
    return Path(base or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "r2gen")
