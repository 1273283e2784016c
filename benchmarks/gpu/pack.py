"""Pack the check for a machine without network: `python -m benchmarks.gpu.pack` in the project's root.

Writes `.gpu/`, which git leaves out: ONNX Runtime with CUDA kernels for Hopper alone, the wheels the machine may lack,
bundles and recipes. With the repository around it, `python3 .gpu/check.py --out OUT --minutes 8.5` in its root runs the
check there. The machine brings Python 3.12 for Linux x86-64 and torch with CUDA.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import shutil
import site
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from r2gen_export.errors import R2GenError

FOLDER: Final = ".gpu"
PYTHON: Final = "3.12"
PLATFORMS: Final = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
MOST_MIB: Final = 64
"""What the folder and the repository's own files should stay below together."""

IF_MISSING: Final = (
    "tokenizers",  # the machine's transformers asks for the release it came with
    *("typer", "annotated-doc", "shellingham", "rich", "markdown-it-py", "mdurl", "pygments"),
    *("pydantic", "pydantic-core", "annotated-types", "typing-inspection", "typing-extensions"),
)
"""Wheels of the command line, used where the machine has none of its own."""

STUB: Final = '''"""The GPU check: `python3 .gpu/check.py --out OUT` in the project's root."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))

from benchmarks.gpu.pack import run_packed

run_packed(Path(__file__).resolve().parent)
'''


def run_packed(folder: Path) -> None:
    """The check, on what `pack` wrote into a folder.

    With `--cpu` or `--imitated` in the arguments, the packages of this Python are used and nothing is unpacked.
    """
    from benchmarks.gpu.__main__ import main

    if {"--cpu", "--imitated"} & {argument.partition("=")[0] for argument in sys.argv}:
        main(packed=folder)
        return
    with tempfile.TemporaryDirectory() as packages:
        unpack(folder, Path(packages))
        main(packed=folder, packages=Path(packages))


def unpack(folder: Path, packages: Path) -> None:
    """Put the packed packages into `packages`, and the machine's CUDA beside them."""
    with tarfile.open(folder / "ort.tar.xz") as archive:
        archive.extractall(packages, filter="data")
    for wheel in (folder / "wheels").glob("*.whl"):
        with zipfile.ZipFile(wheel) as content:
            if importlib.util.find_spec(_module(content)) is None:
                content.extractall(packages)
    # ONNX Runtime looks for CUDA's wheels beside itself; the machine has them with its torch.
    for place in (*site.getsitepackages(), *(path for path in sys.path if path.endswith("-packages"))):
        cuda = Path(place) / "nvidia"
        if cuda.is_dir() and not (packages / "nvidia").exists():
            (packages / "nvidia").symlink_to(cuda)


def _module(wheel: zipfile.ZipFile) -> str:
    """The package a wheel installs."""
    tops = (name.partition("/")[0].removesuffix(".py") for name in wheel.namelist())
    return next(top for top in tops if not top.endswith((".dist-info", ".data")))


def pack(root: Path) -> Path:
    """Write `.gpu/` into the project's root; parts that are there are kept.

    Raises:
        R2GenError: `R2G-DEPENDENCY-MISSING` when pip does not fetch a wheel, or without the package zstandard.
    """
    if importlib.util.find_spec("zstandard") is None:
        message = "zstandard, which reads the names of CUDA kernels, is not installed"
        raise R2GenError("R2G-DEPENDENCY-MISSING", message, "pip install zstandard")
    from benchmarks.gpu.__main__ import make
    from benchmarks.gpu.plan import FULL, TINY_SHAPES, bundles_of, recipes_of
    from benchmarks.gpu.slim import slim

    out = root / FOLDER
    out.mkdir(exist_ok=True)
    _leave_out_of_git(root)
    (out / "check.py").write_text(STUB, encoding="utf-8")
    wheels = out / "wheels"
    for name in IF_MISSING:
        download(name, wheels)
    if not (out / "ort.tar.xz").exists():
        with tempfile.TemporaryDirectory() as scratch:
            stays, goes = slim(download("onnxruntime-gpu", Path(scratch)), Path(scratch) / "ort.tar.xz")
            shutil.move(Path(scratch) / "ort.tar.xz", out / "ort.tar.xz")
        print(f"kernels: {stays >> 20} MiB stay, {goes >> 20} MiB go", flush=True)
    make(out, bundles_of(FULL), [*recipes_of(FULL), *TINY_SHAPES])
    return out


def download(name: str, folder: Path) -> Path:
    """The wheel of the installed release for the other machine, fetched by pip unless it is in `folder`.

    Raises:
        R2GenError: `R2G-DEPENDENCY-MISSING`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pattern = f"{name.replace('-', '_')}-*.whl"
    if not list(folder.glob(pattern)):
        platforms = [part for platform in PLATFORMS for part in ("--platform", platform)]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *platforms]
        command += ["--python-version", PYTHON, "--implementation", "cp", "--dest", str(folder)]
        release = f"{name}=={importlib.metadata.version(name)}"
        done = subprocess.run([*command, release], capture_output=True, text=True, check=False)
        if done.returncode:
            message = f"pip did not fetch {release}: {done.stderr.strip()[-200:]}"
            raise R2GenError("R2G-DEPENDENCY-MISSING", message, "connect this machine to a package index")
    return sorted(folder.glob(pattern))[-1]


def _leave_out_of_git(root: Path) -> None:
    """Name the folder in the checkout's own list of ignored files."""
    command = ["git", "rev-parse", "--git-path", "info/exclude"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        return  # no checkout
    exclude = root / done.stdout.strip()
    exclude.parent.mkdir(parents=True, exist_ok=True)
    lines = exclude.read_text(encoding="utf-8").splitlines() if exclude.exists() else []
    if f"/{FOLDER}/" not in lines:
        exclude.write_text("\n".join([*lines, f"/{FOLDER}/", ""]), encoding="utf-8")


def contents(folder: Path) -> dict[str, int]:
    """Bytes of each part of the folder: its files, and its folders with all they hold."""
    return {
        part.name: sum(path.stat().st_size for path in [part, *part.rglob("*")] if path.is_file())
        for part in sorted(folder.iterdir())
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Pack, and say how large it has become."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.pack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args(arguments)
    root = Path.cwd()
    if not (root / "benchmarks/gpu").is_dir():
        sys.exit("run this in the project's root")
    try:
        parts = contents(pack(root))
    except R2GenError as error:
        print(error.render(), file=sys.stderr)
        sys.exit(error.exit_status)
    for name, size in parts.items():
        print(f"{size / 2**20:7.1f} MiB  {name}")
    print(
        f"{sum(parts.values()) / 2**20:7.1f} MiB  together; below {MOST_MIB} with the repository's own files is the aim"
    )


if __name__ == "__main__":
    main()
