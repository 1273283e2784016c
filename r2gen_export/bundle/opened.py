"""Which bundle a call means, and that bundle opened: its manifest is read once and its files are hashed once."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Final

from r2gen_export.bundle.files import demo_bundle, load_manifest, verify_files
from r2gen_export.bundle.manifest import Manifest

BUNDLE_VARIABLE: Final = "R2GEN_BUNDLE"


def bundle_path(path: str | os.PathLike[str] | None) -> Path:
    """The bundle a call means: the one named, else the variable `R2GEN_BUNDLE`, else the embedded demo."""
    if path is None:
        path = os.environ.get(BUNDLE_VARIABLE) or demo_bundle()
    return Path(path)


class Bundle:
    """A bundle for the time of one call, whose parts may each ask for what they need of it.

    What was read and checked is not looked at again: a call that must notice later changes makes a new one.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        """Reads nothing. `path`: as `bundle_path` takes it."""
        self.folder = bundle_path(path)
        self._verified = False

    def __repr__(self) -> str:
        return f"Bundle({str(self.folder)!r})"

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest, validated; the files' hashes may not have been checked.

        Raises:
            R2GenError: as `load_manifest`.
        """
        return load_manifest(self.folder)

    def verified(self) -> Manifest:
        """The manifest, after the hash of every file was checked.

        Raises:
            R2GenError: as `load_manifest` and `verify_files`.
        """
        if not self._verified:
            verify_files(self.folder, self.manifest)
            self._verified = True
        return self.manifest
