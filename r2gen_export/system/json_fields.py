"""JSON objects in which no key comes twice."""

from __future__ import annotations

from typing import Any


class RepeatedKeyError(ValueError):
    """JSON takes the last of two values without a word."""


def unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `object_pairs_hook` of `json.loads`.

    Raises:
        RepeatedKeyError: a key comes twice.
    """
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise RepeatedKeyError
    return fields
