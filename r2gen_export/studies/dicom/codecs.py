"""One compressed frame to stored values. What the frame's own header claims is checked before it is decoded.

Only codecs that survived damaged frames: libjpeg-turbo by `imagecodecs.jpeg8_decode`, CharLS by `pyjpegls`, OpenJPEG by
`pylibjpeg-openjpeg`. python-gdcm and other decoders of imagecodecs end the process, and none of them is loaded.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from r2gen_export.studies.refusal import AGAIN, RefusedError


class Coded(NamedTuple):
    """What a compressed frame's header says."""

    rows: int
    columns: int
    components: int
    precision: int


class Shape(NamedTuple):
    """What the data set says."""

    rows: int
    columns: int
    bits_allocated: int


JPEG: Final = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70))
JPEG_LS: Final = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (80, 81))
JPEG_2000: Final = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (90, 91, 201, 202, 203))
RLE: Final = "1.2.840.10008.1.2.5"

_SOF_READ: Final = frozenset({0xC0, 0xC1, 0xC3})
"""Baseline, extended sequential and lossless, with Huffman coding (T.81 table B.1)."""

MOST_PADDING: Final = 64
"""Bytes from a frame's end marker to its end: the marker, and what writers pad frames with."""


def decode_frame(frame: bytes, syntax: str, shape: Shape) -> tuple[NDArray[Any], int]:
    """Decode one frame of one component.

    Returns:
        uint8 or uint16 [rows, columns] with the bits that were stored (two's complement where they are signed), and the
        bits per sample that the frame states; 0 where it states none.

    Raises:
        RefusedError: `R2G-DICOM-PIXELS`; `R2G-DEPENDENCY-MISSING` without the decoder.
        Exception: whatever a decoder raises on a damaged frame.
    """
    if syntax == RLE:
        return _run_lengths(frame, shape), 0
    header, decode = _header_and_decoder(frame, syntax)
    if header.components != 1:
        raise _damaged(f"has pixels of {header.components} components, although its header says grey")
    if (header.rows, header.columns) != (shape.rows, shape.columns):
        raise _damaged("has compressed pixels of another size than its header says")
    if header.precision > shape.bits_allocated:
        raise _damaged("has compressed pixels of more bits than its header says")
    # libjpeg fills what is missing with grey, without an error. The end marker occurs in no compressed data.
    if frame.rfind(b"\xff\xd9") < len(frame) - MOST_PADDING:
        raise _damaged("has truncated pixels")
    pixels = decode(frame)
    if pixels.shape != (shape.rows, shape.columns) or pixels.dtype.kind not in "ui" or pixels.dtype.itemsize > 2:
        raise _damaged("has compressed pixels that decode to something else than its header says")
    return pixels.view(f"u{pixels.dtype.itemsize}"), header.precision


def _header_and_decoder(frame: bytes, syntax: str) -> tuple[Coded, Callable[[bytes], NDArray[Any]]]:
    try:
        if syntax in JPEG:
            return jpeg_header(frame, _SOF_READ), _jpeg
        if syntax in JPEG_LS:
            return jpeg_header(frame, frozenset({0xF7})), _jpeg_ls
        if syntax in JPEG_2000:
            return jpeg_2000_header(frame), _jpeg_2000
    except (struct.error, IndexError) as error:
        raise _damaged("has compressed pixels without a usable header") from error
    raise RefusedError("R2G-DICOM-PIXELS", "has pixels in a transfer syntax that is not read", DECOMPRESS)


DECOMPRESS: Final = (
    "store it in a transfer syntax that r2gen reads, such as Explicit VR Little Endian (dcmconv, gdcmconv)"
)


def jpeg_header(frame: bytes, processes: frozenset[int]) -> Coded:
    """The frame header of a JPEG (T.81 B.2.2) or JPEG-LS (T.87 C.2.2).

    Raises:
        RefusedError: it is of a process that is not read.
        struct.error, IndexError: the frame ends inside a marker segment.
    """
    if not frame.startswith(b"\xff\xd8"):
        raise _damaged("has compressed pixels that are no JPEG")
    position = 2
    while frame[position] == 0xFF:
        marker = frame[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            if marker not in processes:
                raise _damaged("has JPEG pixels of a process that its transfer syntax does not allow")
            precision, rows, columns, components = struct.unpack_from(">BHHB", frame, position + 4)
            return Coded(rows, columns, components, precision)
        if marker == 0xDA:
            break
        position += 2 + struct.unpack_from(">H", frame, position + 2)[0]
    raise _damaged("has compressed pixels without a usable header")


def jpeg_2000_header(frame: bytes) -> Coded:
    """The SIZ marker segment of a JPEG 2000 codestream (T.800 A.5.1).

    Raises:
        RefusedError: it does not begin as one.
        struct.error: it ends inside the segment.
    """
    if not frame.startswith(b"\xff\x4f\xff\x51"):
        raise _damaged("has compressed pixels that are no JPEG 2000 codestream")
    right, bottom, left, top = struct.unpack_from(">IIII", frame, 8)
    components, depth, across, down = struct.unpack_from(">HBBB", frame, 40)
    if (across, down) != (1, 1):
        raise _damaged("has subsampled JPEG 2000 pixels")
    return Coded(bottom - top, right - left, components, (depth & 0x7F) + 1)


def _jpeg(frame: bytes) -> NDArray[Any]:
    try:
        from imagecodecs import jpeg8_decode
    except ImportError as error:
        raise missing("imagecodecs") from error
    return np.asarray(jpeg8_decode(frame))


def _jpeg_ls(frame: bytes) -> NDArray[Any]:
    try:
        import jpeg_ls
    except ImportError as error:
        raise missing("pyjpegls") from error
    return np.asarray(jpeg_ls.decode(np.frombuffer(frame, np.uint8)))


def _jpeg_2000(frame: bytes) -> NDArray[Any]:
    try:
        import openjpeg
    except ImportError as error:
        raise missing("pylibjpeg-openjpeg") from error
    return np.asarray(openjpeg.decode(frame, 0))


def missing(package: str) -> RefusedError:
    """For a package of the extra that is not installed."""
    what = f"is DICOM, for which {package} is needed, and that is not installed"
    return RefusedError("R2G-DEPENDENCY-MISSING", what, "pip install 'r2gen[dicom]'")


def _run_lengths(frame: bytes, shape: Shape) -> NDArray[Any]:
    """RLE Lossless (PS3.5 annex G): a segment for each byte of a sample, the most significant one first."""
    count = shape.bits_allocated // 8
    if len(frame) < 64:
        raise _damaged("has truncated pixels")
    segments, *offsets = struct.unpack_from("<16I", frame)
    if segments != count:
        raise _damaged("has run-length coded pixels of another depth than its header says")
    ends = [*offsets[1:count], len(frame)]
    planes = np.empty((shape.rows, shape.columns, count), np.uint8)
    for number, (start, end) in enumerate(zip(offsets, ends, strict=False)):
        if not 64 <= start < end <= len(frame):
            raise _damaged("has run-length coded pixels with a damaged header")
        plane = _unpacked(frame, start, end, shape.rows * shape.columns)
        planes[:, :, count - 1 - number] = plane.reshape(shape.rows, shape.columns)
    return planes.view(f"<u{count}")[:, :, 0]


def _unpacked(frame: bytes, position: int, end: int, size: int) -> NDArray[np.uint8]:
    """One segment, inflated to `size` bytes."""
    result = bytearray()
    while len(result) < size:
        if position >= end:
            raise _damaged("has truncated pixels")
        control = frame[position]
        if control < 128:
            result += frame[position + 1 : min(position + 2 + control, end)]
            position += 2 + control
        elif control > 128:
            result += frame[position + 1 : min(position + 2, end)] * (257 - control)
            position += 2
        else:
            position += 1
    return np.frombuffer(result, np.uint8, size)


def _damaged(what: str) -> RefusedError:
    return RefusedError("R2G-DICOM-PIXELS", what, AGAIN)
