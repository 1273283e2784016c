"""How many pixels an image file claims to have, read from its header alone."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO, Final

from r2gen_export.errors import R2GenError
from r2gen_export.studies import png, tiff
from r2gen_export.studies.images import JPEG_HEAD
from r2gen_export.studies.refusal import RefusedError

MOST_SEGMENTS: Final = 4096


def check_claim(path: Path, most: int, subject: str) -> None:
    """Refuse an image whose header claims too many pixels, before anything of it is decoded.

    A file without a readable header passes: its reader says what is wrong with it. DICOM files pass too: the process
    that reads them has its own limit (`studies/dicom/limits.py`).

    Args:
        path: the file.
        most: pixels allowed.
        subject: what the error calls it.

    Raises:
        R2GenError: `R2G-IMAGE-SIZE`.
    """
    size = claimed_size(path)
    if size is not None and size[0] * size[1] > most:
        message = f"{subject} claims {size[0]} x {size[1]} pixels, and this service takes {most:,}"
        raise R2GenError("R2G-IMAGE-SIZE", message, "send a smaller picture")


def claimed_size(path: Path) -> tuple[int, int] | None:
    """Width and height by the header of a PNG, JPEG or TIFF file; None for anything else.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(32)
        if head.startswith(png.SIGNATURE) and len(head) >= 24:
            width, height = struct.unpack(">II", head[16:24])
            return width, height
        if head.startswith(JPEG_HEAD):
            return _jpeg(file)
        if head.startswith(tiff.HEADS):
            file.seek(0)
            try:
                page = tiff.full_page(file.read())
            except RefusedError:
                return None
            except Exception:  # a damaged directory; `read_image` names it
                return None
            return page.width, page.height
    return None


def _jpeg(file: BinaryIO) -> tuple[int, int] | None:
    """From the first frame header (T.81 B.2.2), behind the segments before it."""
    file.seek(2)
    for _ in range(MOST_SEGMENTS):
        marker = file.read(2)
        while marker[1:2] == b"\xff":  # fill bytes
            marker = b"\xff" + file.read(1)
        if len(marker) < 2 or marker[0] != 0xFF:
            return None
        length = file.read(2)
        if len(length) < 2:
            return None
        kind = marker[1]
        if kind == 0xF7 or (0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC)):
            frame = file.read(5)
            if len(frame) < 5:
                return None
            height, width = struct.unpack(">HH", frame[1:5])
            return width, height
        file.seek(max(0, int.from_bytes(length, "big") - 2), 1)
    return None
