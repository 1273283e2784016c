"""Messages between a process and its child over pipes: a JSON object and raw bytes, both with their length in front.

No pickle: what the child sends was made from a file that may be hostile.
"""

from __future__ import annotations

import json
import struct
from typing import Any, Final, Protocol

HEAD: Final = struct.Struct(">II")
MAX_JSON: Final = 32 << 20
MAX_RAW: Final = 1 << 28


class Readable(Protocol):
    """An unbuffered or buffered binary stream."""

    def read(self, size: int, /) -> bytes | None:
        """Up to `size` bytes."""


class Writable(Protocol):
    """An unbuffered or buffered binary stream."""

    def write(self, data: bytes | memoryview, /) -> int | None:
        """How many bytes were written."""


class ClosedError(Exception):
    """The other side ended in the middle of a message, or sent something else than a message."""


def send(stream: Writable, message: dict[str, Any], raw: bytes | memoryview = b"") -> None:
    """Write one message.

    Raises:
        OSError: the other side is gone.
    """
    text = json.dumps(message).encode()
    # One write for the head: a pipe may take less than is given, what follows is written in parts.
    for part in (HEAD.pack(len(text), len(raw)) + text, raw):
        view = memoryview(part)
        while view:
            view = view[stream.write(view) or 0 :]


def receive(stream: Readable) -> tuple[dict[str, Any], bytearray] | None:
    """Read one message; None when the stream ends before it.

    Raises:
        ClosedError: the stream ends inside a message, or this is no message.
    """
    head = _exactly(stream, HEAD.size, may_end=True)
    if not head:
        return None
    text_bytes, raw_bytes = HEAD.unpack(head)
    if text_bytes > MAX_JSON or raw_bytes > MAX_RAW:
        raise ClosedError
    try:
        message = json.loads(bytes(_exactly(stream, text_bytes)))
    except ValueError as error:
        raise ClosedError from error
    if not isinstance(message, dict):
        raise ClosedError
    return message, _exactly(stream, raw_bytes)


def _exactly(stream: Readable, size: int, may_end: bool = False) -> bytearray:
    data = bytearray()
    while len(data) < size:
        part = stream.read(min(size - len(data), 1 << 20))
        if not part:
            if may_end and not data:
                return data
            raise ClosedError
        data += part
    return data
