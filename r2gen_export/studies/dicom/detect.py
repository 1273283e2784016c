"""Whether a file is DICOM, by its first bytes and without pydicom."""

from __future__ import annotations

from typing import Final

HEAD_BYTES: Final = 132
"""How much of a file `is_dicom` looks at: the preamble of 128 bytes and the prefix (PS3.10 section 7.1)."""


def is_dicom(head: bytes) -> bool:
    """Whether a file that begins with `head` (132 bytes or more) has the prefix of a DICOM file."""
    return head[128:132] == b"DICM"


def begins_as_dataset(head: bytes) -> bool:
    """Whether a file without the prefix begins with an element of group 2 or 8, as DICOM without meta header does.

    Such a file is refused, and `--force` reads it; for this it has to be recognised. Little endian only.
    """
    if head[:1] not in (b"\2", b"\x08") or head[1:2] != b"\0" or head[3:4] != b"\0":
        return False
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    return explicit or int.from_bytes(head[4:8], "little") <= 1024
