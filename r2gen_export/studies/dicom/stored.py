"""The stored pixel values of an image: one frame, native or compressed, as unsigned numbers of BitsStored bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from r2gen_export.studies.dicom import codecs
from r2gen_export.studies.dicom.limits import Limits
from r2gen_export.studies.dicom.parse import BIG_ENDIAN, DEFLATED, EXPLICIT, IMPLICIT, Parsed, PixelElement
from r2gen_export.studies.dicom.values import UnreadableError, integer
from r2gen_export.studies.refusal import AGAIN, RefusedError

NATIVE: Final = frozenset({IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN})
READ: Final = NATIVE | codecs.JPEG | codecs.JPEG_LS | codecs.JPEG_2000 | {codecs.RLE}
"""Transfer syntaxes that are read."""


@dataclass(frozen=True)
class Format:
    """How pixels are stored (PS3.3 C.7.6.3.1)."""

    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    frames: int

    @property
    def frame_bytes(self) -> int:
        """Of one frame that is not compressed."""
        return self.rows * self.columns * self.bits_allocated // 8


def pixel_format(parsed: Parsed, limits: Limits) -> Format:
    """The format of an image, checked before anything is decoded.

    Raises:
        RefusedError: `R2G-DICOM-PIXELS` when it is absent, contradicts itself or is not read, `R2G-DICOM-LIMIT`.
    """
    dataset = parsed.dataset
    try:
        rows, columns = integer(dataset, "Rows"), integer(dataset, "Columns")
        allocated = integer(dataset, "BitsAllocated")
        stored = integer(dataset, "BitsStored") or allocated
        high = integer(dataset, "HighBit")
        sign = integer(dataset, "PixelRepresentation") or 0
        frames = integer(dataset, "NumberOfFrames")
    except UnreadableError as error:
        raise _pixels(f"has a damaged header: its {error} is no number") from error
    if parsed.pixels is None or not rows or not columns or not allocated or not stored:
        raise _pixels("has no pixels")
    if max(rows, columns) > limits.side or rows * columns > limits.pixels:
        most = f"{limits.pixels // 1_000_000} megapixels or {limits.side} a side"
        what = f"claims {columns} x {rows} pixels, more than {most}"
        raise RefusedError("R2G-DICOM-LIMIT", what, "give a smaller image")
    if min(rows, columns) < 0:
        raise _pixels("has a damaged header: its size is negative")
    high = stored - 1 if high is None else high
    if allocated not in (8, 16):
        raise _pixels(f"has {allocated} bits for a pixel; 8 and 16 are read")
    if not 1 <= stored <= allocated or not stored - 1 <= high < allocated or sign not in (0, 1):
        raise _pixels("has a damaged header: BitsAllocated, BitsStored and HighBit contradict each other")
    if parsed.syntax not in READ:
        raise _pixels("has pixels in a transfer syntax that is not read", codecs.DECOMPRESS)
    result = Format(rows, columns, allocated, stored, high, bool(sign), frames or 1)
    _check_length(parsed.pixels, result, parsed.syntax in NATIVE)
    return result


def _check_length(pixels: PixelElement, shape: Format, native: bool) -> None:
    if native != (pixels.length is not None):
        raise _pixels("has pixels of another encoding than its transfer syntax")
    if pixels.length is not None and min(pixels.length, pixels.available) < shape.frame_bytes:
        raise _pixels("has truncated pixels" if pixels.length > pixels.available else "has fewer pixels than it claims")
    if not pixels.available:
        raise _pixels("has truncated pixels")


def stored_pixels(parsed: Parsed, shape: Format) -> tuple[NDArray[np.uint16], list[str]]:
    """The first frame as uint16 [rows, columns] of BitsStored bits each, and what is odd about it.

    Bits outside BitsStored (overlays, or what a scanner left there) are masked.

    Raises:
        RefusedError: as `codecs.decode_frame`.
    """
    assert parsed.pixels is not None
    remarks = []
    if parsed.syntax in NATIVE:
        raw, precision = _native(parsed, parsed.pixels, shape), 0
        if parsed.pixels.length is not None and parsed.pixels.length >= (shape.frames + 1) * shape.frame_bytes:
            remarks.append("it holds more pixels than it states; the first ones were taken")
    else:
        frame = _first_frame(parsed, parsed.pixels, shape)
        expected = codecs.Shape(shape.rows, shape.columns, shape.bits_allocated)
        raw, precision = codecs.decode_frame(frame, parsed.syntax, expected)
    if precision and precision < shape.bits_stored:
        remarks.append(f"its compressed pixels have {precision} bits and its header says {shape.bits_stored}")
    # A decoder's samples begin at bit 0 wherever HighBit is, unless they are wider than BitsStored.
    shift = shape.high_bit + 1 - shape.bits_stored if precision == 0 or precision > shape.bits_stored else 0
    values = np.right_shift(raw.astype(np.uint16), np.uint16(shift)) & np.uint16((1 << shape.bits_stored) - 1)
    return values, remarks


def _native(parsed: Parsed, pixels: PixelElement, shape: Format) -> NDArray[Any]:
    parsed.stream.seek(pixels.start)
    data = parsed.stream.read(shape.frame_bytes + shape.frame_bytes % 2)
    big = parsed.syntax == BIG_ENDIAN
    count = shape.rows * shape.columns
    if shape.bits_allocated == 16:
        return np.frombuffer(data, ">u2" if big else "<u2", count).reshape(shape.rows, shape.columns)
    bytes_ = np.frombuffer(data, np.uint8)
    if big and pixels.words and len(bytes_) % 2 == 0:
        bytes_ = bytes_.reshape(-1, 2)[:, ::-1].reshape(-1)  # two pixels a word (PS3.5 annex A.3)
    return bytes_[:count].reshape(shape.rows, shape.columns)


def _first_frame(parsed: Parsed, pixels: PixelElement, shape: Format) -> bytes:
    """The fragments of the first frame, which must be complete."""
    from pydicom.encaps import generate_frames, parse_basic_offsets, parse_fragments

    stream = parsed.stream
    stream.seek(pixels.start)
    parse_basic_offsets(stream)
    _, starts = parse_fragments(stream)
    if not starts:
        raise _pixels("has no pixels")
    last = starts[-1] if shape.frames == 1 else starts[0]
    stream.seek(last + 4)
    length = int.from_bytes(stream.read(4), "little")
    if last + 8 + length > pixels.start + pixels.available:
        raise _pixels("has truncated pixels")
    stream.seek(pixels.start)
    return next(iter(generate_frames(stream, number_of_frames=shape.frames)))


def _pixels(what: str, fix: str = AGAIN) -> RefusedError:
    return RefusedError("R2G-DICOM-PIXELS", what, fix)
