"""JSON into the manifest's dataclasses, every field checked against its annotation."""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any, Final, Literal

from r2gen_export.errors import R2GenError

REEXPORT: Final = "export the bundle again with r2gen export"


def shown(value: Any) -> str:
    """A value that is not to be trusted, on one line and not long."""
    try:
        text = ascii(value)
    except RecursionError:
        text = f"a {type(value).__name__} nested too deeply"
    return text if len(text) <= 80 else f"{text[:77]}..."


def shown_name(name: str) -> str:
    """A name that is not to be trusted: as it is where that is harmless, else as `shown`."""
    return name if name.isprintable() and name.isascii() and 0 < len(name) <= 80 else shown(name)


class MalformedError(R2GenError):
    """A field is not what it must be. `problem` says so without naming the file, which need not be a manifest."""

    problem: str = ""


def malformed(where: str, problem: str) -> MalformedError:
    """The error for a field of `manifest.json` that is not what it must be."""
    problem = f"{where or 'the whole'}: {problem}"
    error = MalformedError("R2G-BUNDLE-MANIFEST", f"manifest.json: {problem}", REEXPORT)
    error.problem = problem
    return error


def _decode(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind` (one of the annotations of the dataclasses above), or `R2G-BUNDLE-MANIFEST`."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return decode_fields(kind, value, where)
    if origin is Literal:
        # 1 == True in Python, so types are compared as well.
        if not any(type(value) is type(choice) and value == choice for choice in inner):
            raise malformed(where, f"{shown(value)}, expected one of {', '.join(map(repr, inner))}")
        return value
    if origin is tuple:
        many = len(inner) == 2 and inner[1] is Ellipsis
        if not isinstance(value, list) or (not many and len(value) != len(inner)):
            raise malformed(where, f"{shown(value)}, expected a list" + ("" if many else f" of {len(inner)}"))
        return tuple(_decode(inner[0] if many else inner[at], item, f"{where}[{at}]") for at, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise malformed(where, f"{shown(value)}, expected an object")
        return {key: _decode(inner[1], item, f"{where}.{shown_name(key)}") for key, item in value.items()}
    if inner:  # X | None, bool | Literal
        return _decode_union(inner, value, where)
    if kind is float and type(value) is int:
        try:
            value = float(value)
        except OverflowError:
            raise malformed(where, f"{shown(value)}, expected {kind.__name__}") from None
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise malformed(where, f"{shown(value)}, expected {kind.__name__}")
    return value


def _decode_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    first, *others = (kind for kind in kinds if kind is not type(None))
    for kind in others:
        try:
            return _decode(kind, value, where)
        except R2GenError:
            continue
    return _decode(first, value, where)


def decode_fields(kind: Any, value: Any, where: str) -> Any:
    """`value`, an object of JSON, as the dataclass `kind`; `where` is its place in the file.

    Raises:
        R2GenError: `R2G-BUNDLE-MANIFEST`, naming the field.
    """
    if not isinstance(value, dict):
        raise malformed(where, f"{shown(value)}, expected an object")
    known = {entry.name: entry for entry in dataclasses.fields(kind)}
    if unknown := value.keys() - known.keys():
        few = ", ".join(map(shown, sorted(unknown)[:3]))
        raise malformed(where, f"unknown field {few}" + (f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""))
    hints = typing.get_type_hints(kind)
    given = {}
    for name, entry in known.items():
        if name in value:
            given[name] = _decode(hints[name], value[name], f"{where}.{name}" if where else name)
        elif entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING:
            raise malformed(where, f"field {name!r} is missing")
    return kind(**given)
