"""Typed values of a JSON file that somebody else wrote, each refused by name when it is not what it has to be."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from r2gen_export.errors import R2GenError, library_reason
from r2gen_export.training.source_files.place import missing

LARGEST: Final = 2**31 - 1
"""Of any size or id; larger ones are damage."""

ABSENT: Final = object()


def read_object(path: Path, what: str, source: str | Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        R2GenError: `R2G-MODEL-MISSING` when it is not readable, not JSON or not an object.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        fix = "download it again, or correct the file"
        raise missing(what, source, f"{path.name} is not readable JSON: {library_reason(error, path)}", fix) from error
    if not isinstance(record, dict):
        reason = f"{path.name} holds {_kind(record)}, expected an object"
        raise missing(what, source, reason, "download it again, or correct the file")
    return record


def _kind(value: Any) -> str:
    return {list: "a list", str: "text", type(None): "null"}.get(type(value), f"a {type(value).__name__}")


def shown(value: Any) -> str:
    """A value as JSON writes it, shortened."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


class Fields:
    """The fields of one file.

    Args:
        values: the object.
        file: name of the file, for messages.
        owner: what it belongs to, for messages ("the LLM 'folder'").
    """

    def __init__(self, values: Mapping[str, Any], file: str, owner: str) -> None:
        self.values, self.file, self.owner = values, file, owner

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def inner(self, name: str) -> Fields:
        """The fields of an object inside. Raises as `refusal` when it is no object."""
        value = self.values.get(name)
        if not isinstance(value, dict):
            raise self.refusal(name, "an object")
        return Fields(value, f"{self.file} ({name})", self.owner)

    def refusal(self, name: str, expected: str, fix: str = "") -> R2GenError:
        """`R2G-MODEL-UNSUPPORTED` naming a field, its value and what was expected."""
        given_value = shown(self.values[name]) if name in self.values else "missing"
        message = f"{self.file} of {self.owner}: {name} is {given_value}, expected {expected}"
        return R2GenError("R2G-MODEL-UNSUPPORTED", message, fix or "correct the file, or download the model again")

    def _plain(self, name: str, default: Any, expected: str) -> Any:
        value = self.values.get(name)
        if value is None:
            if default is ABSENT:
                raise self.refusal(name, expected)
            return default
        return value

    def integer(self, name: str, default: Any = ABSENT, *, low: int = 1, high: int = LARGEST) -> int:
        """A whole number of `low` to `high`; null counts as missing."""
        expected = f"a whole number of {low} to {high}"
        value = self._plain(name, default, expected)
        if value is default:
            return value
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not int or not low <= value <= high:
            raise self.refusal(name, expected)
        return value

    def number(self, name: str, default: Any = ABSENT, *, above: float = 0.0, up_to: float = 1e30) -> float:
        """A finite number above `above`; null counts as missing."""
        expected = f"a number above {above:g}" + (f", at most {up_to:g}" if up_to < 1e30 else "")
        value = self._plain(name, default, expected)
        if value is default:
            return value
        if not is_number(value) or not above < value <= up_to:
            raise self.refusal(name, expected)
        return float(value)

    def share(self, name: str, default: float) -> float:
        """A probability, 0 <= p < 1."""
        value = self._plain(name, default, "a number")
        if not is_number(value) or not 0 <= value < 1:
            raise self.refusal(name, "a number of 0 to 1")
        return float(value)

    def flag(self, name: str, default: Any = ABSENT, *, null: bool = False) -> bool:
        """true or false; `null`: whether null counts as missing."""
        value = self.values.get(name, default)
        if value is None and null:
            value = default
        if type(value) is not bool:
            raise self.refusal(name, "true or false")
        return value

    def text(self, name: str, default: Any = ABSENT, *, choices: Sequence[str] = ()) -> str:
        """Text, one of `choices` where there are any; null counts as missing."""
        expected = f"one of {', '.join(choices)}" if choices else "text"
        value = self._plain(name, default, expected)
        if value is default:
            return value
        if not isinstance(value, str) or (choices and value not in choices):
            raise self.refusal(name, expected)
        return value

    def integers(self, name: str, *, low: int = 1, high: int = LARGEST, length: int | None = None) -> tuple[int, ...]:
        """A list of whole numbers, not empty."""
        value = self.values.get(name)
        good = isinstance(value, list) and value and all(type(item) is int and low <= item <= high for item in value)
        if not good or (length is not None and len(value or ()) != length):
            count = f"{length} " if length is not None else ""
            raise self.refusal(name, f"a list of {count}whole numbers of {low} to {high}")
        return tuple(value or ())

    def require_neutral(self, neutral: Mapping[str, tuple[Any, ...]], fix: str) -> None:
        """Refuse fields that would change the arithmetic where only some values leave it as it is."""
        for name, harmless in neutral.items():
            value = self.values.get(name)
            if value is None or any(type(value) is type(item) and value == item for item in harmless):
                continue
            if is_number(value) and any(is_number(item) and float(item) == float(value) for item in harmless):
                continue
            listed = " or ".join(["nothing", *(shown(item) for item in harmless)])
            raise self.refusal(name, listed, fix)


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number (not true or false)."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an int that no float holds
        return False
