"""The files that a DICOMDIR names (PS3.3 annex F), read without a library.

A DICOMDIR is written in explicit VR little endian (PS3.10 section 8.6). Its elements are looked at one after another:
sequences and items are entered, not skipped, so nesting of any depth needs no recursion, and the file's size bounds
time and memory.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from r2gen_export.errors import R2GenError
from r2gen_export.studies.refusal import reading, reason_of

MAX_BYTES: Final = 64 << 20
"""Largest DICOMDIR that is read; one of 100,000 images has about 40 MB."""

EXPLICIT_LITTLE_ENDIAN: Final = b"1.2.840.10008.1.2.1"

TRANSFER_SYNTAX, IN_USE, FILE_ID = 0x00020010, 0x00041410, 0x00041500
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
LONG_FORMS: Final = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
"""Value representations whose length has four bytes (PS3.5 section 7.1.2)."""

UNDEFINED: Final = 0xFFFFFFFF
FIX: Final = "name the folder that holds the images instead"


def directory_files(path: Path, subject: str) -> tuple[Path, ...]:
    """The files that the records of a DICOMDIR name, in their order, each once; whether they are there is not checked.

    Args:
        path: the DICOMDIR. Names start from its folder; records that are not in use are left out.
        subject: what messages call it.

    Raises:
        R2GenError: `R2G-DICOM-FORMAT` when it cannot be read, or names a file outside its folder; `R2G-DICOM-LIMIT`
            when it is too large.
        InternalError: anything else that went wrong.
    """
    with reading(subject):
        try:
            if path.stat().st_size > MAX_BYTES:
                message = f"{subject} is larger than {MAX_BYTES >> 20} MB"
                raise R2GenError("R2G-DICOM-LIMIT", message, FIX)
            data = path.read_bytes()
        except (OSError, ValueError) as error:
            message = f"{subject} cannot be read ({reason_of(error)})"
            raise R2GenError("R2G-DICOM-FORMAT", message, "check the path and its permissions") from error
        try:
            names = list(dict.fromkeys(_file_ids(data)))
        except (ValueError, struct.error) as error:
            message = f"{subject} is damaged, or not in explicit VR little endian"
            raise R2GenError("R2G-DICOM-FORMAT", message, FIX) from error
        return tuple(_located(path.parent, name, subject) for name in names)


def _file_ids(data: bytes) -> Iterator[tuple[str, ...]]:
    """ReferencedFileID of each record in use: the names of its folders and of the file."""
    in_use = True
    for tag, value in _elements(data):
        if tag == TRANSFER_SYNTAX and value.rstrip(b"\0 ") != EXPLICIT_LITTLE_ENDIAN:
            raise ValueError("transfer syntax")
        if tag == IN_USE:
            in_use = value != b"\0\0"
        elif tag == FILE_ID and in_use and value.strip(b"\0 "):
            yield tuple(part.strip() for part in value.rstrip(b"\0 ").decode("latin-1").split("\\"))


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Tags and values of all elements, those of sequence items too."""
    if data[128:132] != b"DICM":
        raise ValueError("no preamble")
    position, raw_items = 132, False
    while position < len(data):
        group, element = struct.unpack_from("<HH", data, position)
        tag = group << 16 | element
        if tag in (ITEM, ITEM_END, SEQUENCE_END):
            (length,) = struct.unpack_from("<I", data, position + 4)
            position += 8
            # Inside pixel data of an icon, an item holds bytes and not elements.
            if raw_items and tag == ITEM:
                position += length
            raw_items = raw_items and tag != SEQUENCE_END
            continue
        form = data[position + 4 : position + 6]
        if not form.isalpha() or not form.isupper():
            raise ValueError("no value representation")
        layout, start = ("<I", position + 12) if form in LONG_FORMS else ("<H", position + 8)
        (length,) = struct.unpack_from(layout, data, start - struct.calcsize(layout))
        if form == b"SQ" or length == UNDEFINED:
            raw_items, position = form != b"SQ", start
            continue
        if start + length > len(data):
            raise ValueError("an element ends behind the file")
        yield tag, data[start : start + length]
        position = start + length


def _located(folder: Path, parts: tuple[str, ...], subject: str) -> Path:
    """A file by the parts of its name; as ISO 9660 without extensions is mounted, its letters may be small."""
    if any(part in ("", ".", "..") or set(part) & {"/", "\0", ":"} for part in parts):
        raise R2GenError("R2G-DICOM-FORMAT", f"{subject} names a file outside its folder", FIX)
    exact = folder.joinpath(*parts)
    small = folder.joinpath(*(part.lower() for part in parts))
    return small if not os.path.isfile(exact) and os.path.isfile(small) else exact  # noqa: PTH113
