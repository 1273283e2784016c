"""Compile the imitated CUDA libraries for the installed ONNX Runtime."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Final

from r2gen_export.errors import R2GenError
from r2gen_export.system.files import atomic_dir

HERE: Final = Path(__file__).resolve().parent
HEADERS: Final = ("nvidia-cuda-runtime==13.0.96", "nvidia-cuda-crt==13.0.88")
"""Wheels with the declarations of CUDA 13, 2.6 MB together."""

STAMP: Final = "made-for.txt"
"""File of a finished folder: which ONNX Runtime and which sources it was made for. The version scripts need symbols."""


def why_not() -> str:
    """Empty when the libraries can be compiled here, else the reason."""
    if not sys.platform.startswith("linux"):
        return "the imitated CUDA runtime is for Linux only"
    lacking = [tool for tool in ("cc", "nm") if shutil.which(tool) is None]
    if lacking:
        return f"no C compiler: {' and '.join(lacking)} not on the path"
    return "" if _provider().exists() else "the installed onnxruntime is a build without CUDA"


def build(folder: Path) -> Path:
    """The imitated libraries in `folder`, compiled when they are not there or were made for another ONNX Runtime.

    Args:
        folder: complete or absent at any time; an interrupted build leaves nothing.

    Returns:
        `folder`, absolute: a value for `LD_LIBRARY_PATH`.

    Raises:
        R2GenError: `R2G-DEPENDENCY-MISSING` without a C compiler, an ONNX Runtime with CUDA, or the headers, which pip
            fetches; `R2G-OUTPUT-EXISTS` when the folder holds something else.
    """
    folder = folder.resolve()
    if reason := why_not():
        raise R2GenError("R2G-DEPENDENCY-MISSING", reason, "apt install gcc binutils; pip install onnxruntime-gpu")
    stamp, mark = _stamp(), folder / STAMP
    if mark.exists() and mark.read_text(encoding="utf-8") == stamp:
        return folder
    with atomic_dir(folder, overwrite=mark.exists()) as out, tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        include = _headers(work)
        _compile(HERE / "cudart.c", out / "libcudart.so.13", work, include)
        _compile(HERE / "cuda.c", out / "libcuda.so.1", work)
        for name, functions in _other_libraries().items():
            source = work / "stubs.c"
            source.write_text("\n".join([f"int {name.partition('.')[0]}_imitated;", *map(_stub, functions)]))
            _compile(source, out / name, work)
        (out / STAMP).write_text(stamp, encoding="utf-8")
    return folder


def _stamp() -> str:
    digest = hashlib.sha256(b"".join((HERE / name).read_bytes() for name in ("cuda.c", "cudart.c", "libraries.py")))
    return f"onnxruntime-gpu {importlib.metadata.version('onnxruntime-gpu')}\nsources {digest.hexdigest()}\n"


def _provider() -> Path:
    """The library of ONNX Runtime's CUDA provider."""
    package = importlib.util.find_spec("onnxruntime")
    folder = Path(package.origin).parent if package and package.origin else HERE
    return folder / "capi" / "libonnxruntime_providers_cuda.so"


def _headers(work: Path) -> Path:
    """The folder with CUDA's headers, fetched by pip."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work), *HEADERS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        message = f"pip did not fetch {' and '.join(HEADERS)}: {done.stderr.strip().splitlines()[-1:]}"
        raise R2GenError("R2G-DEPENDENCY-MISSING", message, "connect this machine to a package index once")
    for wheel in work.glob("*.whl"):
        with zipfile.ZipFile(wheel) as content:
            content.extractall(work)
    return work / "nvidia/cu13/include"


def _compile(source: Path, library: Path, work: Path, include: Path | None = None) -> None:
    """A shared library whose symbols carry its name as their version, as NVIDIA's do."""
    versions = work / "versions.map"
    versions.write_text(f"{library.name} {{ global: *; }};\n", encoding="utf-8")
    command = ["cc", "-w", "-O1", "-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-o", str(library), str(source)]
    command += [f"-I{include}"] if include else []
    # The driver's symbols and cuDNN's have no versions.
    command += [f"-Wl,--version-script={versions}"] if library.name.endswith((".so.13", ".so.10")) else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise R2GenError("R2G-DEPENDENCY-MISSING", f"cc did not compile {source.name}: {done.stderr[-400:]}")


def _other_libraries() -> dict[str, list[str]]:
    """Functions the provider takes of each other library: by its symbols; of cuDNN, loaded by name, by its strings."""
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", str(_provider())], capture_output=True, text=True, check=True
    )
    names = [line.split()[-1] for line in symbols.stdout.splitlines()]
    libraries = {
        library: sorted({name.partition("@")[0] for name in names if name.endswith(f"@{library}")})
        for library in ("libcublas.so.13", "libcublasLt.so.13")
    }
    cudnn = set(re.findall(rb"\0(cudnn[A-Z]\w+)(?=\0)", _provider().read_bytes()))
    return {**libraries, "libcurand.so.10": [], "libcudnn.so.9": sorted(name.decode() for name in cudnn)}


def _stub(function: str) -> str:
    """C of a function that succeeds; one that creates something gives a handle."""
    if "GetStatus" in function or "GetErrorString" in function:
        return f'const char *{function}(int status) {{ return "imitated"; }}'
    if re.match("cudnn(Backend|(Get|Find)?Convolution)", function):
        return f"int {function}(void) {{ return 3000; }} /* CUDNN_STATUS_NOT_SUPPORTED: convolutions fail */"
    if function == "cudnnGetVersion":
        return f"unsigned long {function}(void) {{ return 91300; }}"
    if re.fullmatch("cudnnGetReduction(Workspace|Indices)Size", function):
        arguments = "void *handle, void *reduction, void *a, void *c, unsigned long *bytes"
        return f"int {function}({arguments}) {{ *bytes = 1024; return 0; }}"
    if "Create" in function:
        return f"int {function}(void **created) {{ static int handle; *created = &handle; return 0; }}"
    return f"int {function}(void) {{ return 0; }}"
