"""TIFF: which page holds the picture, and pixels that Pillow itself has no mode for.

Pillow reads what has up to 8 unsigned bits. For the rest it has either no mode (16-bit colour, grey+alpha, 64-bit
float, unsigned 32 bit) or one that drops what matters (zero-is-white, signed 8 bit). Its libtiff can still decompress
the strips or tiles of such a page: they are handed to it as 8-bit grey with as many columns as a row has bytes, and
predictor, byte order and bit packing are undone here with numpy. `tifffile` was measured instead (2.2 MB, 40 ms to
import): without `imagecodecs` (80 MB) it has no LZW, floating-point predictor or 12-bit samples, and no bound on what a
deflated strip expands to.

Source: TIFF 6.0 and Adobe's Photoshop TIFF Technical Notes (predictor 3); BigTIFF.
"""

from __future__ import annotations

import io
import struct
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import COMPRESSION_INFO, ImageFileDirectory_v2

from r2gen_export.studies.refusal import AGAIN, RefusedError, damaged, not_read, too_large

HEADS: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MAX_PAGES: Final = 100
MAX_BYTES: Final = 170_000_000
"""Most bytes of decoded samples: 85 megapixels of 16-bit grey. Below the size at which Pillow suspects a bomb."""

COMPRESSIONS: Final = frozenset({1, 5, 8, 32773, 32946, 34925, 50000})
"""None, LZW, deflate (two numbers), PackBits, LZMA, Zstandard: those of which nothing but bytes comes out."""

MORE_NAMES: Final = {34712: "JPEG 2000", 34887: "LERC", 34892: "lossy JPEG of DNG", 50001: "WebP", 50002: "JPEG XL"}
PHOTOMETRIC: Final = {3: "palette", 5: "CMYK", 6: "YCbCr", 8: "Lab", 32803: "colour filter array", 34892: "linear raw"}


class Page(NamedTuple):
    """What a page's tags say. `number` counts the pages of the file from 0."""

    number: int
    width: int
    height: int
    bits: tuple[int, ...]
    sample_format: int
    photometric: int
    compression: int
    samples: int
    extra: tuple[int, ...]
    planar: bool
    predictor: int
    fill_order: int
    orientation: int
    tile: tuple[int, int] | None
    rows_per_strip: int
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    byte_order: str

    @property
    def for_pillow(self) -> bool:
        """Whether Pillow's own modes are right for it, if it has one."""
        return self.sample_format in (1, 4) and max(self.bits) <= 8

    @property
    def kind(self) -> str:
        """In words, for messages."""
        number = {1: "", 2: "signed ", 3: "floating-point ", 4: "", 5: "complex ", 6: "complex "}
        colour = PHOTOMETRIC.get(self.photometric, "RGB" if self.photometric == 2 else "grey")
        return f"a TIFF of {max(self.bits)}-bit {number.get(self.sample_format, 'unknown ')}{colour}"


class Deep(NamedTuple):
    """Pixels: values [H, W, 1 or 3], alpha [H, W] of the same dtype or None, and the scale's top where it is known."""

    values: NDArray[Any]
    alpha: NDArray[Any] | None
    top: float | None
    zero_is_white: bool


def full_page(data: bytes) -> Page:
    """The one page with the full-size picture; pages marked as reduced or as a mask are passed over.

    Raises:
        RefusedError: several such pages or none, or tags that describe no picture.
    """
    directories = _directories(data)
    full = [index for index, tags in enumerate(directories) if not int(tags.get(254, 0)) & 0b101]
    if not full and len(directories) == 1:
        raise not_read("is a TIFF that holds only a thumbnail", "export the full-size image")
    if len(full) != 1:
        # Old writers mark no page as reduced: which one is meant is not for us to guess.
        count = f"{len(full) or len(directories)}" + (" or more" if len(directories) == MAX_PAGES else "")
        raise not_read(f"is a TIFF of {count} pages", "save each page as a file of its own")
    try:
        return _page(full[0], directories[full[0]])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise damaged("TIFF") from error


def read_deep(data: bytes, page: Page) -> Deep:
    """The pixels of a page, upright.

    Raises:
        RefusedError: a kind that is not read, too many bytes, or strips that are not in the file.
        Exception: whatever Pillow raises for damaged strips.
    """
    _check_kind(page)
    planes = page.samples if page.planar else 1
    per_plane = 1 if page.planar else page.samples
    segments = len(page.offsets) // planes
    parts = [
        _plane(data, page, slice(plane * segments, (plane + 1) * segments), per_plane)
        for plane in range(min(planes, 4))  # further ones are neither colour nor alpha
    ]
    values = np.concatenate(parts, axis=2) if len(parts) > 1 else parts[0]
    values = _upright(values, page.orientation)
    colours = 3 if page.photometric == 2 else 1
    has_alpha = values.shape[2] > colours and page.extra[:1] == (2,)
    bits = page.bits[0]
    stated = page.sample_format in (1, 4) and bits not in (16, 32, 64)
    return Deep(
        values[:, :, :colours],
        values[:, :, colours] if has_alpha else None,
        2.0**bits - 1 if stated else None,
        page.photometric == 0,
    )


def _directories(data: bytes) -> list[ImageFileDirectory_v2]:
    big = 43 in data[2:4]
    if data[:4] == b"MM\0+":
        raise not_read("is a big-endian BigTIFF")
    directories: list[ImageFileDirectory_v2] = []
    seen: set[int] = set()
    try:
        tags = ImageFileDirectory_v2(data[: 16 if big else 8])
        file = io.BytesIO(data)
        position = tags.next
        while position and position not in seen and len(directories) < MAX_PAGES:
            seen.add(position)
            file.seek(position)
            tags = ImageFileDirectory_v2(data[: 16 if big else 8])
            tags.load(file)
            directories.append(tags)
            position = tags.next
    except Exception as error:
        raise damaged("TIFF") from error
    return directories


def _page(number_of_page: int, tags: ImageFileDirectory_v2) -> Page:
    def numbers(tag: int, default: tuple[int, ...]) -> tuple[int, ...]:
        value = tags.get(tag, default)
        return tuple(map(int, value)) if isinstance(value, tuple) else (int(value),)

    def number(tag: int, default: int | None = None) -> int:
        return numbers(tag, () if default is None else (default,))[0]

    samples = number(277, 1)
    formats = set(numbers(339, (1,)))
    bits = numbers(258, (1,))
    tiled = 322 in tags
    page = Page(
        number=number_of_page,
        width=number(256),
        height=number(257),
        bits=bits,
        sample_format=formats.pop() if len(formats) == 1 else 0,
        photometric=number(262, 1),
        compression=number(259, 1),
        samples=samples,
        extra=numbers(338, ()),
        planar=number(284, 1) == 2 and samples > 1,
        predictor=number(317, 1),
        fill_order=number(266, 1),
        orientation=number(274, 1),
        tile=(number(322), number(323)) if tiled else None,
        rows_per_strip=max(1, min(number(278, 2**31), number(257))),
        offsets=numbers(324 if tiled else 273, ()),
        counts=numbers(325 if tiled else 279, ()),
        byte_order=">" if tags.prefix == b"MM" else "<",
    )
    sizes = (page.width, page.height, page.samples, *page.bits, *(page.tile or ()))
    if min(sizes) < 1 or min(page.offsets + page.counts, default=0) < 0:
        raise ValueError("a size is not positive")
    return page


def _check_kind(page: Page) -> None:
    if page.compression not in COMPRESSIONS:
        name = MORE_NAMES.get(page.compression) or COMPRESSION_INFO.get(page.compression, "unknown")
        raise not_read(f"is a TIFF with compression {page.compression} ({name}), which is not read")
    if page.sample_format in (5, 6) or page.photometric not in (0, 1, 2) or len(set(page.bits)) > 1:
        raise not_read(f"is {page.kind}, which is not read")
    bits = page.bits[0]
    allowed = {1: {1, 2, 4, 8, 10, 12, 14, 16, 32, 64}, 2: {8, 16, 32, 64}, 3: {16, 32, 64}}
    # Void data (4) is commonly written for unsigned.
    if bits not in allowed.get({4: 1}.get(page.sample_format, page.sample_format), ()):
        raise not_read(f"is {page.kind}, which is not read")
    if page.predictor not in (1, 2, 3) or (page.predictor == 3) > (page.sample_format == 3):
        raise not_read(f"is a TIFF with predictor {page.predictor}, which is not read")
    if page.predictor == 2 and bits not in (8, 16, 32, 64):
        raise not_read(f"is {page.kind} with a predictor, which is not read")
    if page.photometric == 2 and page.samples < 3:
        raise damaged("TIFF")
    # Less than a byte becomes one.
    size = -(-bits // 8) * page.samples
    check_bytes(page.width, page.height, size)
    if page.tile is not None:
        check_bytes(*page.tile, size)


def check_bytes(width: int, height: int, pixel_bytes: int) -> None:
    """Refuse a picture of more than 8 bits that would decode to too many bytes.

    Raises:
        RefusedError: `R2G-IMAGE-SIZE`.
    """
    size = width * height * pixel_bytes
    if size > MAX_BYTES:
        message = f"claims {width} x {height} pixels, {size // 1_000_000} MB decoded"
        raise too_large(message, f"give an image of at most {MAX_BYTES // 1_000_000} MB decoded")


def _plane(data: bytes, page: Page, segments: slice, samples: int) -> NDArray[Any]:
    """One plane [H, W, samples] in native byte order."""
    bits = page.bits[0]
    across = page.tile[0] if page.tile else page.width
    columns = -(-page.width // across)
    row_bytes = -(-across * samples * bits // 8)  # of one tile or strip
    packed = _decompress(data, page, segments, columns * row_bytes, row_bytes)
    height = page.height
    tiles = packed.reshape(height, columns, row_bytes)
    if page.predictor == 3:
        tiles = _undo_float_predictor(tiles, samples, bits // 8)
        values = tiles.view(f">f{bits // 8}")
    elif bits < 8 or bits in (10, 12, 14):
        values = _unpack(tiles, across * samples, bits)
    else:
        order = page.byte_order
        values = np.ascontiguousarray(tiles).view(f"{order}u{bits // 8}")
        if page.predictor == 2:
            pixels = values.astype(values.dtype.newbyteorder("=")).reshape(height, columns, across, samples)
            values = np.cumsum(pixels, axis=2, dtype=pixels.dtype).reshape(height, columns, -1)
        else:
            values = values.astype(values.dtype.newbyteorder("="))
        if page.sample_format in (2, 3):
            values = values.view(f"{'i' if page.sample_format == 2 else 'f'}{bits // 8}")
    return values.astype(values.dtype.newbyteorder("="), copy=False).reshape(height, -1, samples)[:, : page.width]


def _decompress(data: bytes, page: Page, segments: slice, width: int, segment_width: int) -> NDArray[np.uint8]:
    """Bytes [H, width] of the strips or tiles: a small TIFF of 8-bit grey around them, read by Pillow's libtiff."""
    offsets, counts = page.offsets[segments], page.counts[segments]
    across = width // segment_width if page.tile else 1
    down = page.tile[1] if page.tile else page.rows_per_strip
    needed = across * -(-page.height // down)
    if len(offsets) < needed or len(counts) < needed:
        raise damaged("TIFF")
    body = bytearray(8)
    places = []
    for offset, count in zip(offsets[:needed], counts[:needed], strict=True):
        if offset + count > len(data):
            raise RefusedError("R2G-IMAGE-TRUNCATED", "is a TIFF that ends before its pixels do", AGAIN)
        if len(body) + count > len(data) + 8:
            raise damaged("TIFF")  # strips that overlap would multiply a file
        places.append(len(body))
        body += data[offset : offset + count]
    layout = [(322, [segment_width]), (323, [down]), (324, places), (325, list(counts[:needed]))]
    if page.tile is None:
        layout = [(273, places), (278, [down]), (279, list(counts[:needed]))]
    constant = [(256, [width]), (257, [page.height]), (258, [8]), (259, [page.compression]), (262, [1])]
    entries = sorted([*constant, (266, [page.fill_order]), (277, [1]), *layout])
    with Image.open(io.BytesIO(_with_directory(body, entries)), formats=("TIFF",)) as picture:
        pixels: NDArray[np.uint8] = np.asarray(picture)
    if pixels.shape != (page.height, width) or pixels.dtype != np.uint8:
        raise damaged("TIFF")
    return pixels


def _with_directory(body: bytearray, entries: list[tuple[int, list[int]]]) -> bytes:
    """A little-endian TIFF: `body`, whose first 8 bytes are free, and one directory of LONG values behind it."""
    body += b"\0" * (len(body) % 2)
    records = bytearray(struct.pack("<H", len(entries)))
    behind = bytearray()
    start = len(body) + 2 + 12 * len(entries) + 4
    for tag, values in entries:
        packed = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            packed, long_values = struct.pack("<I", start + len(behind)), packed
            behind += long_values
        records += struct.pack("<HHI", tag, 4, len(values)) + packed
    body[:8] = b"II*\0" + struct.pack("<I", len(body))
    return bytes(body + records + b"\0\0\0\0" + behind)


def _undo_float_predictor(tiles: NDArray[np.uint8], samples: int, size: int) -> NDArray[np.uint8]:
    """Predictor 3: differences of bytes, of which all most significant ones of a row come first. Gives big-endian."""
    height, columns, row_bytes = tiles.shape
    steps = tiles.reshape(height, columns, -1, samples)
    planes = np.cumsum(steps, axis=2, dtype=np.uint8).reshape(height, columns, size, row_bytes // size)
    return np.ascontiguousarray(planes.swapaxes(2, 3)).reshape(height, columns, row_bytes)


def _unpack(tiles: NDArray[np.uint8], count: int, bits: int) -> NDArray[np.uint16]:
    """Samples of `bits` bits, most significant bit first whatever the byte order; every row begins at a byte."""
    values = np.zeros((*tiles.shape[:2], count), np.uint16)
    weights = (1 << np.arange(bits)[::-1]).astype(np.uint16)
    for row in range(0, len(tiles), 64):  # eight times the memory while it lasts
        part = np.unpackbits(tiles[row : row + 64], axis=2)[:, :, : count * bits]
        values[row : row + 64] = (part.reshape(*part.shape[:2], count, bits) * weights).sum(axis=3, dtype=np.uint16)
    return values


def _upright(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """By tag Orientation, as Pillow's `ImageOps.exif_transpose` does for files it reads itself."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    # Rows and columns to reverse, after the exchange of both.
    rows, columns = {2: (0, 1), 3: (1, 1), 4: (1, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}.get(orientation, (0, 0))
    return values[:: -1 if rows else 1, :: -1 if columns else 1]
