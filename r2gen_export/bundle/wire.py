"""The wire format of protocol buffers: the fields of a message, read and written without the onnx package."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

Bytes = mmap.mmap | bytes

Span = tuple[int, int]
"""First byte, last byte + 1."""


def read_fields(data: Bytes, start: int, end: int) -> Iterator[tuple[int, int, int | Span]]:
    """(number, where its tag is, value) of a message's fields between two offsets.

    The value is a whole number, or the span of a length-delimited field; fields of fixed width are skipped.

    Raises:
        ValueError, IndexError: when the bytes are not a message.
    """
    at = start
    while at < end:
        tag_at = at
        tag, at = read_varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = read_varint(data, at)
            yield number, tag_at, value
        elif wire == 1:
            at += 8
        elif wire == 5:
            at += 4
        elif wire == 2:
            size, at = read_varint(data, at)
            if at + size > end:
                raise ValueError("a field ends behind its message")
            yield number, tag_at, (at, at + size)
            at += size
        else:
            raise ValueError(f"wire type {wire}")
    if at != end:
        raise ValueError("a field ends behind its message")


def read_spans(data: Bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(number, where its tag is, first byte, last byte + 1) of the length-delimited fields between two offsets."""
    for number, tag_at, value in read_fields(data, start, end):
        if isinstance(value, tuple):
            yield number, tag_at, *value


def read_varint(data: Bytes, at: int) -> tuple[int, int]:
    """A protobuf number at an offset, and where it ends. Raises ValueError for one of more than 64 bits."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")


def bytes_field(number: int, content: bytes) -> bytes:
    """A length-delimited field: bytes, text or a message."""
    return b"".join([_varint(number << 3 | 2), _varint(len(content)), content])


def number_field(number: int, value: int) -> bytes:
    """A field of a whole number, 0 or more."""
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
