"""Pickled tensors and settings read as plain data: nothing a file names is looked up, let alone run.

torch's own `weights_only` unpickler does the reading. Every name a file may use beside torch's tensors is bound here
to a stand-in of r2gen's, never to the object of that name: numpy scalars and arrays, paths, dates and containers
become numbers, lists, text and dictionaries.
"""

from __future__ import annotations

import datetime
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import torch

MAX_DEPTH: Final = 20
"""Of nested settings."""

MAX_ARRAY_BYTES: Final = 1 << 16
"""Of an array among settings; larger ones are left out."""

DTYPES: Final = {
    **{f"{kind}{size}": f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)},
    **{f"f{size}": f"f{size}" for size in (2, 4, 8)},
    "b1": "b1",
}


class NotPlainError(Exception):
    """A file asks for an object that is not plain data. `name`: what it asks for."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Dtype:
    """Stand-in for `numpy.dtype`: remembers code and byte order of plain numbers."""

    def __init__(self, code: Any = "", *_: Any) -> None:
        self.code = DTYPES.get(code) if isinstance(code, str) else None
        self.order = "<"

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|"):
            self.order = "<" if state[1] == "|" else state[1]

    def values(self, data: Any) -> list[Any] | None:
        """Numbers in raw bytes; None for what is not plain numbers."""
        if self.code is None or not isinstance(data, bytes) or len(data) > MAX_ARRAY_BYTES:
            return None
        try:
            numbers: list[Any] = np.frombuffer(data, self.order + self.code).tolist()
        except ValueError:
            return None
        return numbers


class Array:
    """Stand-in for `numpy.ndarray`: keeps shape, type and raw bytes."""

    def __init__(self, *_: Any) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, tuple) else ()

    def plain(self) -> Any:
        """The numbers as nested lists, None for what is not plain numbers."""
        if len(self.state) != 5:
            return None
        _, shape, dtype, fortran, data = self.state
        numbers = dtype.values(data) if isinstance(dtype, Dtype) else None
        if numbers is None or not isinstance(shape, tuple) or not all(type(side) is int for side in shape):
            return None
        try:
            return np.array(numbers).reshape(shape, order="F" if fortran else "C").tolist()
        except ValueError:
            return None


def _array(*_: Any) -> Array:
    return Array()


def _scalar(dtype: Any = None, data: Any = None) -> Any:
    numbers = dtype.values(data) if isinstance(dtype, Dtype) else None
    return numbers[0] if numbers and len(numbers) == 1 else None


def _path(*parts: Any) -> str:
    names = [part for part in parts if isinstance(part, str)]
    if names[:1] == ["/"]:
        return "/" + "/".join(names[1:])
    return "/".join(names) or "."


def _dictionary(*_: Any) -> dict[Any, Any]:
    return {}


def _sequence(*arguments: Any) -> list[Any]:
    return list(arguments[0]) if arguments and isinstance(arguments[0], list | tuple | set) else []


def _type(*_: Any) -> None:
    """In the place of a type that is only named, such as the factory of a defaultdict."""


def _number(*arguments: Any) -> Any:
    return arguments[0] if len(arguments) == 1 and type(arguments[0]) in (int, float, bool, str) else None


def _date(data: Any = b"", *_: Any) -> str | None:
    if not isinstance(data, bytes) or len(data) not in (4, 10):
        return None
    try:
        year, month, day = struct.unpack(">HBB", data[:4])
        if len(data) == 4:
            return datetime.date(year, month, day).isoformat()
        hour, minute, second = data[4:7]
        fraction = int.from_bytes(data[7:10], "big")
        return datetime.datetime(year, month & 0x7F, day, hour, minute, second, fraction).isoformat()
    except ValueError:
        return None


def _duration(*parts: Any) -> str | None:
    if not all(type(part) is int for part in parts):
        return None
    days, seconds, micro = (*parts, 0, 0, 0)[:3]
    return f"{days} days {seconds + micro / 1e6} s"


_HOLDERS: Final = (
    "lightning.fabric.utilities.data",
    "lightning.pytorch.utilities.parsing",
    "lightning_fabric.utilities.data",
    "pytorch_lightning.utilities.parsing",
)

_PATHS: Final = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")

STAND_INS: Final[dict[str, Callable[..., Any]]] = {
    **{f"{module}.AttributeDict": dict for module in _HOLDERS},
    "argparse.Namespace": SimpleNamespace,
    "types.SimpleNamespace": SimpleNamespace,
    "numpy.dtype": Dtype,
    "numpy.ndarray": Array,
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": _array for core in ("core", "_core")},
    **{f"{module}.{name}": _path for module in ("pathlib", "pathlib._local") for name in _PATHS},
    "collections.defaultdict": _dictionary,
    "collections.deque": _sequence,
    "datetime.date": _date,
    "datetime.datetime": _date,
    "datetime.timedelta": _duration,
    "decimal.Decimal": _number,
    **{f"builtins.{name}": _number for name in ("int", "float", "bool", "str")},
    **{f"builtins.{name}": _sequence for name in ("list", "tuple", "frozenset")},
    "builtins.dict": _dictionary,
    "builtins.bytes": _type,
    "builtins.object": _type,
}
"""Name in a file -> what takes its place. `dict` and `SimpleNamespace` are Python's own and run nothing."""


def load_plain(path: Path) -> Any:
    """The content of a file of `torch.save`; tensors mapped from the file where its format allows.

    Raises:
        NotPlainError: when it asks for an object that is neither a tensor nor plain data.
        Exception: whatever torch raises for a damaged file.
    """
    listed = [(stand_in, name) for name, stand_in in STAND_INS.items()]
    try:
        with torch.serialization.safe_globals(listed):  # type: ignore[arg-type]
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if named := re.search(r"GLOBAL (\S+)|unsupported GLOBAL (\S+)|unrecognized function (\S+)", str(error)):
            raise NotPlainError(next(group for group in named.groups() if group)) from error
        # torch explains at length how to switch the safe loading off.
        raise ValueError("it was not written by torch.save, or is damaged") from error


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether a tensor is an ordinary array in memory: not sparse, nested, quantised or without values."""
    return tensor.layout == torch.strided and not (tensor.is_quantized or tensor.is_nested or tensor.is_meta)


def plain(value: Any, depth: int = 0) -> Any:
    """A setting with its stand-ins as numbers, text, lists and dictionaries; None for what is none of these."""
    if depth > MAX_DEPTH:
        return None
    if isinstance(value, Array):
        return value.plain()
    if isinstance(value, SimpleNamespace):
        value = vars(value)
    if isinstance(value, Mapping):
        return {key: plain(item, depth + 1) for key, item in value.items() if isinstance(key, bool | int | float | str)}
    if isinstance(value, list | tuple | set):
        return [plain(item, depth + 1) for item in value]
    return value if isinstance(value, bool | int | float | str) else None
