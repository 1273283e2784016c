"""Where an ONNX file keeps weights outside itself, found without the onnx package (the runtime does not install it).

Follows the message and field numbers of `onnx/onnx.proto` (IR version 11).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from r2gen_export.bundle.wire import bytes_field, read_spans
from r2gen_export.errors import R2GenError

# message -> {field number: the message it holds}. Everything else is skipped by its length.
CHILDREN: Final[dict[str, dict[int, str]]] = {
    "Model": {7: "Graph", 20: "TrainingInfo", 25: "Function"},
    "TrainingInfo": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {
        5: "Tensor",
        6: "Graph",
        10: "Tensor",
        11: "Graph",
        22: "SparseTensor",
        23: "SparseTensor",
    },
    "Function": {7: "Node", 11: "Attribute"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
    "Entry": {},
}
KEY, VALUE = 1, 2
MAX_DEPTH: Final = 100
"""Nesting of messages, as the protobuf libraries limit it."""


def external_locations(path: Path) -> set[str]:
    """Locations of the external data of an ONNX file: initializers, attributes, subgraphs, functions, sparse tensors.

    Args:
        path: the ONNX file.

    Returns:
        The `location` values as written, relative to the file's folder when the file is honest.

    Raises:
        R2GenError: `R2G-BUNDLE-GRAPH` when the file is not a protocol buffer.
    """
    if path.stat().st_size == 0:
        raise _broken(path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        # An external tensor names its file under this key; most graphs have none, and the walk is not needed.
        if data.find(b"location") < 0:
            return set()
        try:
            return set(_walk(data, 0, len(data), "Model", 0))
        except (IndexError, ValueError) as error:
            raise _broken(path) from error


def relocated(path: Path, locations: Mapping[str, str]) -> bytes:
    """An ONNX file's bytes with other locations of its external data.

    Args:
        path: the ONNX file.
        locations: the new one for each that `external_locations` gives.

    Raises:
        R2GenError: `R2G-BUNDLE-GRAPH` when the file is not a protocol buffer.
    """
    data = path.read_bytes()
    try:
        return _with_locations(data, "Model", locations, 0)
    except (IndexError, ValueError) as error:
        raise _broken(path) from error


def _with_locations(data: bytes, message: str, locations: Mapping[str, str], depth: int) -> bytes:
    if depth > MAX_DEPTH:
        raise ValueError("nested too deeply")
    fields = list(read_spans(data, 0, len(data)))
    keyed = message == "Entry" and any(
        data[first:last] == b"location" for number, _, first, last in fields if number == KEY
    )
    parts, copied = [], 0
    for number, tag_at, first, last in fields:
        content = data[first:last]
        if number in CHILDREN[message]:
            changed = _with_locations(content, CHILDREN[message][number], locations, depth + 1)
        elif keyed and number == VALUE:
            location = content.decode("utf-8")
            changed = locations.get(location, location).encode()
        else:
            continue
        if changed != content:
            parts += [data[copied:tag_at], bytes_field(number, changed)]
            copied = last
    return b"".join([*parts, data[copied:]])


def _broken(path: Path) -> R2GenError:
    return R2GenError(
        "R2G-BUNDLE-GRAPH", f"{path.name} is not an ONNX file", "export the bundle again with r2gen export"
    )


def _walk(data: mmap.mmap, start: int, end: int, message: str, depth: int) -> Iterator[str]:
    if depth > MAX_DEPTH:
        raise ValueError("nested too deeply")
    entry: dict[int, str] = {}
    children = CHILDREN[message]
    for number, _, first, last in read_spans(data, start, end):
        if number in children:
            yield from _walk(data, first, last, children[number], depth + 1)
        elif message == "Entry" and number in (KEY, VALUE):
            entry[number] = data[first:last].decode("utf-8")
    if entry.get(KEY) == "location":
        yield entry.get(VALUE, "")
