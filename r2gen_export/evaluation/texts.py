"""Small facts about texts that several parts share."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any


def text_hash(text: str) -> str:
    """16 hex digits that are equal for equal texts."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def first_difference(first: Sequence[Any], second: Sequence[Any]) -> int | None:
    """The place, from 0, where two sequences of words or token ids begin to differ; None where they are equal."""
    missing = object()
    pairs = enumerate(zip_longest(first, second, fillvalue=missing))
    return next((at for at, (left, right) in pairs if left != right), None)
