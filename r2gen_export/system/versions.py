"""Which release of a package is installed, read from its metadata: nothing is imported."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Final

VERSION: Final = "0.1.0"
"""Of r2gen, as in `pyproject.toml`."""


def installed_version(distribution: str) -> str | None:
    """The release of a distribution, None when it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
