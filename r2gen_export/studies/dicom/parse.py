"""A DICOM file up to its pixels, as a pydicom data set; the pixels stay where they are.

pydicom's `dcmread` is not used: it inflates a deflated file without a bound (2 MB took 12 s and 2 GB), and it reads the
pixels of files that are refused by their header.
"""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final

from r2gen_export.studies.dicom.detect import begins_as_dataset, is_dicom
from r2gen_export.studies.dicom.limits import Limits
from r2gen_export.studies.dicom.values import text
from r2gen_export.studies.refusal import AGAIN, RefusedError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

IMPLICIT: Final = "1.2.840.10008.1.2"
EXPLICIT: Final = "1.2.840.10008.1.2.1"
DEFLATED: Final = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"

_FIRST_PIXEL_TAG: Final = 0x7FE00008
_PIXEL_DATA: Final = 0x7FE00010
_LONG_VRS: Final = frozenset({b"OB", b"OW", b"OD", b"OF", b"OL", b"OV", b"UN"})
UNDEFINED: Final = 0xFFFFFFFF


@dataclass(frozen=True)
class PixelElement:
    """Where the pixels are.

    Attributes:
        start: offset of the value in `Parsed.stream`.
        length: bytes it claims; None where it is undefined, as for encapsulated frames.
        available: bytes from `start` to the end of the stream.
        words: the value representation is OW.
    """

    start: int
    length: int | None
    available: int
    words: bool


@dataclass(frozen=True, repr=False)
class Parsed:
    """A file's header.

    Attributes:
        dataset: all attributes before the pixels.
        sop_class: by the meta header where the data set has none.
        syntax: transfer syntax UID.
        stream: the file, or what it inflates to.
        pixels: None when there are none.
        problem: what is missing in the meta header, empty when nothing is.
    """

    dataset: Dataset
    sop_class: str
    syntax: str
    stream: BinaryIO
    pixels: PixelElement | None
    problem: str = ""


class Bounded:
    """A file of which no more is asked than it has: a file object reserves memory for what a damaged length claims."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self.seek, self.tell = stream.seek, stream.tell
        self._read, self._size = stream.read, size

    def read(self, size: int = -1) -> bytes:
        """As that of the file."""
        return self._read(size if 0 <= size <= self._size else self._size)


def parse(stream: BinaryIO, size: int, limits: Limits) -> Parsed:
    """Read a file's header.

    Args:
        stream: the file, at its start; it must be seekable.
        size: its bytes.

    Raises:
        RefusedError: `R2G-DICOM-FORMAT`, `R2G-DICOM-LIMIT`.
        Exception: what pydicom raises on a damaged file, which is nearly anything.
    """
    from pydicom.filereader import read_dataset

    head = stream.read(132)
    meta, problem = None, ""
    if is_dicom(head):
        meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    elif begins_as_dataset(head):
        stream.seek(0)
        problem = "has no meta header that states its transfer syntax"
        if head[:1] == b"\2":
            meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
            problem = "has no preamble with the prefix of a DICOM file"
    else:
        raise RefusedError("R2G-DICOM-FORMAT", "is not a DICOM file", AGAIN)
    syntax = "" if meta is None else text(meta, "TransferSyntaxUID")
    if not syntax:
        problem = problem or "has no transfer syntax in its meta header"
        syntax = _guessed_syntax(stream)
    if syntax == DEFLATED:
        stream = io.BytesIO(_inflated(stream, limits.inflated_bytes))
        size = len(stream.getbuffer())
    little = syntax != BIG_ENDIAN
    dataset = read_dataset(
        stream, syntax == IMPLICIT, little, stop_when=lambda tag, vr, length: int(tag) >= _FIRST_PIXEL_TAG
    )
    if not len(dataset):
        raise RefusedError("R2G-DICOM-FORMAT", "is a DICOM file without any attribute: it is truncated", AGAIN)
    sop_class = text(dataset, "SOPClassUID") or ("" if meta is None else text(meta, "MediaStorageSOPClassUID"))
    return Parsed(dataset, sop_class, syntax, stream, _pixel_element(stream, size, little), problem)


def _guessed_syntax(stream: BinaryIO) -> str:
    """By the first element of a data set: whether it has a value representation. Used under `--force` alone."""
    position = stream.tell()
    head = stream.read(8)
    stream.seek(position)
    return EXPLICIT if head[4:6].isalpha() and head[4:6].isupper() else IMPLICIT


def _inflated(stream: BinaryIO, most: int) -> bytes:
    """What follows the meta header, inflated up to a bound (PS3.5 section A.5)."""
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = inflate.decompress(stream.read(), most + 1)
    except zlib.error as error:
        raise RefusedError("R2G-DICOM-FORMAT", "is deflated and damaged", AGAIN) from error
    if len(data) > most:
        what = f"is deflated and expands to more than {most >> 20} MiB"
        raise RefusedError("R2G-DICOM-LIMIT", what, "store it without deflation, or check its source")
    if not inflate.eof:
        raise RefusedError("R2G-DICOM-FORMAT", "is deflated and truncated", AGAIN)
    return data


def _pixel_element(stream: BinaryIO, size: int, little: bool) -> PixelElement | None:
    """The element the stream stands at, if it is PixelData."""
    order = "little" if little else "big"
    head = stream.read(8)
    if len(head) < 8:
        return None
    if (int.from_bytes(head[:2], order) << 16 | int.from_bytes(head[2:4], order)) != _PIXEL_DATA:  # type: ignore[arg-type]
        return None
    words = True
    if head[4:6].isalpha() and head[4:6].isupper():
        if head[4:6] not in _LONG_VRS:
            return None
        words = head[4:6] == b"OW"
        length = int.from_bytes(stream.read(4), order)  # type: ignore[arg-type]
    else:
        length = int.from_bytes(head[4:8], order)  # type: ignore[arg-type]
    start = stream.tell()
    return PixelElement(start, None if length == UNDEFINED else length, max(0, size - start), words)
