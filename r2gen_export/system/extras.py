"""Optional packages: a missing one is named with the extra that brings it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from r2gen_export.errors import R2GenError

OWN_PACKAGES: Final = frozenset({"r2gen_export", "trt_engines", "benchmarks", "cli"})


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Turn a missing package into `R2G-DEPENDENCY-MISSING` that names the extra which brings it."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in OWN_PACKAGES:
            raise
        raise R2GenError(
            "R2G-DEPENDENCY-MISSING",
            f"this command needs {package or 'a package'}, which is not installed ({error})",
            f"pip install 'r2gen[{extra}]'",
        ) from error
