"""Folders that tests make once and share: between files, between the processes of pytest-xdist, between runs.

They lie in `.pytest_cache/shared`, by a key of everything they are made from: all code of r2gen and of the helpers,
and the versions of the packages that write. A change of any of them makes them anew.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import time
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).parents[2]
SHARED = ROOT / ".pytest_cache/shared"
CODE = ("r2gen_export", "trt_engines", "benchmarks", "tests/helpers", "tests/conftest.py")
PACKAGES = ("numpy", "onnx", "onnxruntime-gpu", "onnxruntime", "onnxscript", "optimum", "optimum-onnx", "peft",
            "safetensors", "tokenizers", "torch", "transformers")  # fmt: skip
OLD_S = 3 * 86_400
"""Folders of other keys that have not been used for so long are removed."""


def made_once(name: str, make: Callable[[Path], object], *, key: str = "", place: Path | None = None) -> Path:
    """The folder `name`, made by the first process that asks for it; not to be written to.

    Args:
        name: one for all who want the same.
        make: called with the folder, which is not there yet.
        key: of what it is made from; empty: all code, and the packages that write models.
        place: the folder it lies in; for what is measured, that of this run of the tests (the fixture `run_folder`).

    Returns:
        The folder. It is made anew when its files are not those that were made: a test has changed them, or the
        process that made them was killed.
    """
    folder = (place or SHARED / (key or code_key())) / name
    seal = folder.with_name(f"{folder.name}.sha256")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (seal.is_file() and folder.is_dir() and seal.read_text(encoding="ascii") == _content(folder)):
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            seal.write_text(_content(folder), encoding="ascii")
            _remove_old()
    folder.parent.touch()
    return folder


@cache
def code_key() -> str:
    """Hash over the code and the versions of packages that models and bundles are made by."""
    digest = hashlib.sha256()
    for part in CODE:
        path = ROOT / part
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            digest.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    for package in PACKAGES:
        try:
            digest.update(f"{package} {version(package)}\n".encode())
        except PackageNotFoundError:
            continue
    return digest.hexdigest()[:16]


def key_of(*files: Path) -> str:
    """Hash over what a test's own helpers make a folder by, and Python's version."""
    parts = [sys.version.encode(), *(file.read_bytes() for file in files)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _content(folder: Path) -> str:
    """Hash over the names and contents of a folder's files."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if "__pycache__" in path.parts:
            continue
        digest.update(f"{path.relative_to(folder)}\0".encode())
        if path.is_file():
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _remove_old() -> None:
    for folder in SHARED.iterdir():
        if time.time() - folder.stat().st_mtime > OLD_S:
            shutil.rmtree(folder, ignore_errors=True)
