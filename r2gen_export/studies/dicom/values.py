"""Values of a data set as plain Python, whatever a file says: absent, empty and unreadable values have defaults."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


class UnreadableError(Exception):
    """An attribute has a value, and it is not of its type."""


def texts(dataset: Dataset, keyword: str) -> list[str]:
    """All values of an attribute as stripped text; empty when it is absent, empty or unreadable."""
    try:
        value = dataset.get(keyword)
    except Exception:
        return []
    if value is None:
        return []
    many = value if isinstance(value, list | tuple) or type(value).__name__ == "MultiValue" else [value]
    # Trailing NUL bytes are common where blanks should be.
    return [str(part).strip("\0 \t\r\n") for part in many]


def text(dataset: Dataset, keyword: str) -> str:
    """The first value of an attribute as stripped text; empty as for `texts`."""
    return next(iter(texts(dataset, keyword)), "")


def code(dataset: Dataset, keyword: str) -> str:
    """As `text`, in capitals: for attributes whose values are defined terms."""
    return text(dataset, keyword).upper()


def number(dataset: Dataset, keyword: str) -> float | None:
    """The first value of an attribute as a number, None when it is absent or empty.

    Raises:
        UnreadableError: the value is no finite number.
    """
    return next(iter(numbers(dataset, keyword)), None)


def numbers(dataset: Dataset, keyword: str) -> list[float]:
    """All values of an attribute as numbers.

    Raises:
        UnreadableError: one of the values is no finite number.
    """
    try:
        value = dataset.get(keyword)
        many: list[Any] = list(value) if type(value).__name__ in ("MultiValue", "list", "tuple") else [value]
        result = [float(part) for part in many if part is not None and str(part).strip("\0 ")]
    except Exception as error:
        raise UnreadableError(keyword) from error
    if not all(map(math.isfinite, result)):
        raise UnreadableError(keyword)
    return result


def integer(dataset: Dataset, keyword: str) -> int | None:
    """As `number`, where the value is a whole number.

    Raises:
        UnreadableError: it is none.
    """
    value = number(dataset, keyword)
    if value is not None and value != int(value):
        raise UnreadableError(keyword)
    return None if value is None else int(value)


def integer_or_none(dataset: Dataset, keyword: str) -> int | None:
    """As `integer`, None also where it cannot be read."""
    try:
        return integer(dataset, keyword)
    except UnreadableError:
        return None


def items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """The items of a sequence; empty when it is absent or unreadable."""
    try:
        sequence = dataset.get(keyword)
        return list(sequence) if type(sequence).__name__ == "Sequence" else []
    except Exception:
        return []
