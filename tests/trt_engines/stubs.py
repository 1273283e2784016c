"""Type stubs of TensorRT, made on the spot from the real bindings: what mypy and the recording double go by.

The bindings' wheels are real on the package index, the libraries beneath them are not. With dummies in their place
(`stub.c`) the bindings import, and pybind11-stubgen prints every signature they were compiled with. `MENDS` below is
what pybind11 does not write down.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PACKAGE: Final = "tensorrt_stubs"
"""Name of the generated package; `trt_engines` imports it for type checking alone."""

STUBGEN: Final = "pybind11-stubgen==3.0.0"
SOURCE: Final = Path(__file__).with_name("stub.c")


@dataclass(frozen=True)
class Release:
    """One release of the bindings. `extension`: the compiled module; `libraries`: names it is linked against."""

    wheel: str
    extension: str
    libraries: tuple[str, ...]


RELEASES: Final = {
    "10.15": Release(
        "tensorrt-cu12-bindings==10.15.1.29",
        "tensorrt_bindings.tensorrt",
        ("libnvinfer.so.10", "libnvinfer_plugin.so.10", "libnvonnxparser.so.10"),
    ),
    "11.4": Release(
        "tensorrt-cu13-bindings==11.4.0.106",
        "tensorrt_bindings.tensorrt",
        ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11"),
    ),
    "rtx-1.7": Release(
        "tensorrt-rtx-cu13-bindings==1.7.1.116",
        "tensorrt_rtx_bindings.tensorrt_rtx",
        ("libtensorrt_rtx.so.1", "libtensorrt_onnxparser_rtx.so.1"),
    ),
}

HEADER: Final = """\
# mypy: ignore-errors
from __future__ import annotations
import builtins
import collections.abc
import numpy
import typing
import typing_extensions
_bool = builtins.bool
_DimsLike = typing.Union["Dims", tuple[int, ...], list[int]]
"""

PACKAGE_FUNCTIONS: Final = """\
def volume(iterable: collections.abc.Iterable[int]) -> int: ...
def nptype(trt_type: DataType) -> typing.Any: ...
"""
"""What the package adds to its compiled module."""

NULLABLE: Final = {
    "build_serialized_network",
    "create_execution_context",
    "deserialize_cuda_engine",
    "get_aliased_input_tensor",
}
"""Return None on failure (the last: for a tensor that shares no memory), which pybind11 does not say."""

OVERRIDDEN: Final = {"ILogger", "IProgressMonitor", "IProfiler", "IErrorRecorder", "IStreamReaderV2", "IStreamWriter"}
"""Classes users derive from: their methods are called with an `int`, where pybind11 writes what it would accept."""


def compiler() -> str | None:
    """The C compiler of this machine, None without one."""
    return shutil.which("cc")


def make_stubs(name: str, folder: Path) -> Path:
    """Make the stub package of a release.

    Args:
        name: a key of `RELEASES`.
        folder: a scratch folder; its subfolder `stubs` is what belongs on mypy's path.

    Returns:
        That subfolder.

    Raises:
        subprocess.CalledProcessError: when pip, the compiler or pybind11-stubgen fails.
    """
    release = RELEASES[name]
    site, native, raw = folder / "site", folder / "native", folder / "raw"
    native.mkdir(parents=True)
    _run("-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), release.wheel, STUBGEN)
    for library in release.libraries:
        command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", str(native / library), str(SOURCE)]
        subprocess.run(command, check=True)
    generate = ("--ignore-all-errors", "--print-invalid-expressions-as-is", "-o", str(raw), release.extension)
    _run("-m", "pybind11_stubgen", *generate, PYTHONPATH=str(site), LD_LIBRARY_PATH=str(native))
    package = folder / "stubs" / PACKAGE
    package.mkdir(parents=True)
    printed = raw / Path(*release.extension.split(".")).with_suffix(".pyi")
    (package / "__init__.pyi").write_text(mend(printed.read_text(encoding="utf-8")), encoding="utf-8")
    (package / "py.typed").touch()
    return package.parent


def _run(*arguments: str, **variables: str) -> None:
    command = [sys.executable, *arguments]
    subprocess.run(command, check=True, env={**os.environ, **variables}, capture_output=True, text=True)


def mend(printed: str) -> str:
    """What pybind11-stubgen printed, as a stub that mypy reads and that says what the bindings accept and return."""
    tree = ast.parse("\n".join(_parsable(line) for line in printed.splitlines()))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    known = {node.name for node in classes}
    body: list[ast.stmt] = [
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
        or (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id != "__all__")
    ]
    tree.body = [_Mend(known).visit(node) for node in body]
    for node in classes:
        _mend_class(node)
    tree.body += ast.parse(PACKAGE_FUNCTIONS).body
    tree.body.append(_module_class(tree.body))
    return HEADER + ast.unparse(ast.fix_missing_locations(tree)) + "\n"


def _parsable(line: str) -> str:
    """C++ that is left in a line becomes Python, and parameters behind one with a default get one too."""
    line = re.sub(r"\b(?:nvinfer1|nvonnxparser)::(?:v_\w+::|v\d+::|\w+::)*(\w+)", r"\1", line)
    line = re.sub(r"detail::accessor<[^>]*>", "typing.Any", line)
    line = re.sub(r"= <[^>]*>", "= ...", line)
    line = re.sub(r"([(,]\s*)in:", r"\1in_:", line)
    found = re.match(r"(\s*def \w+\()(.*)(\)(?: -> .*)?:.*)$", line)
    if not found:
        return line
    optional, parameters = False, []
    for parameter in _split(found[2]):
        optional |= "=" in parameter
        lacks = optional and "=" not in parameter and not parameter.strip().startswith("*")
        parameters.append(f"{parameter} = ..." if lacks else parameter)
    return found[1] + ",".join(parameters) + found[3]


def _split(parameters: str) -> list[str]:
    """At commas outside brackets."""
    parts, depth = [""], 0
    for character in parameters:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return parts


class _Mend(ast.NodeTransformer):
    """Drops docstrings and bodies and mends annotations. `known`: names of the module's classes."""

    def __init__(self, known: set[str]) -> None:
        self._known = known

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        self._known = self._known | {one.name for one in node.body if isinstance(one, ast.ClassDef)}
        kept = [one for one in node.body if not isinstance(one, ast.Expr)]
        node.body = [self.visit(one) for one in kept] or [ast.Expr(ast.Constant(...))]
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.body = [ast.Expr(ast.Constant(...))]
        arguments = node.args
        behind = len(arguments.args) - len(arguments.defaults)
        for place, argument in enumerate(arguments.args):
            if argument.annotation is None:
                continue
            argument.annotation = self._annotation(argument.annotation, dims="_DimsLike")
            default = arguments.defaults[place - behind] if place >= behind else None
            if isinstance(default, ast.Constant) and default.value is None:
                argument.annotation = _or_none(argument.annotation)
        arguments.defaults = [one if isinstance(one, ast.Constant) else ast.Constant(...) for one in arguments.defaults]
        if node.returns is not None:
            node.returns = self._annotation(node.returns)
            if node.name in NULLABLE:
                node.returns = _or_none(node.returns)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        node.annotation, node.value = self._annotation(node.annotation), None
        return node

    def _annotation(self, node: ast.expr, dims: str = "Dims") -> ast.expr:
        text = re.sub(r"\bbool\b", "_bool", ast.unparse(node))  # the module has a DataType of that name
        text = re.sub(r"\btensorrt(?:_rtx)?(?:_bindings)?(?:\.tensorrt(?:_rtx)?)?\.(?=[A-Z])", "", text)
        text = dims if text == "Dims" else text
        names = set(re.findall(r"(?<![.\w])[A-Z]\w*", text)) - {"None"}
        unknown = text == "..." or not names <= self._known
        return ast.parse("typing.Any" if unknown else text, mode="eval").body


def _or_none(annotation: ast.expr) -> ast.expr:
    return ast.parse(f"{ast.unparse(annotation)} | None", mode="eval").body


def _mend_class(node: ast.ClassDef) -> None:
    added = ""
    if node.name == "IHostMemory":
        added = "def __buffer__(self, flags: int, /) -> memoryview: ..."
    elif node.name == "Dims":
        added = "def __iter__(self) -> collections.abc.Iterator[int]: ..."  # by __getitem__ and __len__
    elif node.name == "DataType":
        added = "@property\ndef itemsize(self) -> int: ..."
    node.body += ast.parse(added).body
    if node.name not in OVERRIDDEN:
        return
    for argument in (one for one in ast.walk(node) if isinstance(one, ast.arg) and one.annotation is not None):
        text = ast.unparse(argument.annotation)  # type: ignore[arg-type]
        if text == "typing.SupportsInt":
            argument.annotation = ast.Name("int")
        elif argument.arg == "parent_phase":
            argument.annotation = _or_none(argument.annotation)  # type: ignore[arg-type]


def _module_class(body: list[ast.stmt]) -> ast.ClassDef:
    """`TensorRT`: the module as a type, so that a variable can hold one release or another and still be checked."""
    lines = ["class TensorRT:", "    __version__: str"]
    for node in body:
        if isinstance(node, ast.ClassDef):
            lines.append(f"    {node.name}: typing.TypeAlias = {node.name}")
        elif isinstance(node, ast.AnnAssign):
            lines.append(f"    {ast.unparse(node)}")
        elif isinstance(node, ast.FunctionDef):
            lines.append(f"    {node.name} = staticmethod({node.name})")
    (found,) = ast.parse("\n".join(lines)).body
    assert isinstance(found, ast.ClassDef)
    return found
