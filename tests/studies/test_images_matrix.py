"""Every encoding of one picture gives the same 8-bit levels within one; tifffile, pypng and Pillow write."""

from __future__ import annotations

import io
import itertools
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import png
import pytest
import tifffile
from PIL import Image

from r2gen_export.studies.images import load_image, read_image

DATA = Path(__file__).parents[1] / "data"
WIDTH, HEIGHT = 61, 50  # neither a multiple of a tile, nor of a byte


def radiograph(name: str = "chest-cr-ap.png") -> np.ndarray:
    """uint8 [HEIGHT, WIDTH]; black to nearly white."""
    with Image.open(DATA / name) as picture:
        return np.asarray(picture.convert("L").resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS))


# How levels 0..255 are stored: dtype, value of level 0, value of level 255.
DEPTHS: dict[str, tuple[str, float, float]] = {
    "8": ("u1", 0, 255),
    "8 signed": ("i1", -128, 127),
    "10 in 16": ("u2", 0, 1023),
    "12 in 16": ("u2", 0, 4095),
    "14 in 16": ("u2", 0, 16383),
    "16": ("u2", 0, 65535),
    "12 in signed 16": ("i2", 0, 4095),
    "16 signed": ("i2", -32768, 32767),
    "16 in 32": ("u4", 0, 65535),
    "32": ("u4", 0, 2**32 - 1),
    "32 signed": ("i4", -(2**31), 2**31 - 1),
    "float16": ("f2", 0, 1),
    "float32": ("f4", 0, 1),
    "float32 of 12 bits": ("f4", 0, 4095),
    "float32 around 0": ("f4", -1, 1),
    "float64": ("f8", 0, 65535),
}
COLOURS = ("grey", "grey+alpha", "rgb", "rgb+alpha")


def picture(colour: str) -> tuple[np.ndarray, np.ndarray]:
    """Levels uint8 [H, W, C] with the alpha last, and the RGB [H, W, 3] that is to come out."""
    levels = radiograph()
    shades = (1.0, 0.8, 0.6) if "rgb" in colour else (1.0,)
    layers = np.stack([np.rint(levels * shade) for shade in shades], axis=2)
    shown = np.repeat(layers, 3 // len(shades), axis=2)
    if "alpha" in colour:
        alpha = np.broadcast_to(np.rint(np.linspace(0, 255, WIDTH)), levels.shape)
        layers = np.concatenate([layers, alpha[:, :, None]], axis=2)
        shown = shown * alpha[:, :, None] / 255
    return layers.astype(np.uint8), shown


def stored(levels: np.ndarray, depth: str, *, white_is_zero: bool = False) -> np.ndarray:
    """Levels [H, W, C] as values of a depth; the alpha in the last of 2 or 4 channels goes up to its dtype's most."""
    kind, zero, full = DEPTHS[depth]
    dtype = np.dtype(kind)
    shares = levels.astype(np.float64) / 255
    has_alpha = levels.shape[2] in (2, 4)
    colours = shares[:, :, :-1] if has_alpha else shares
    values = zero + (1 - colours if white_is_zero else colours) * (full - zero)
    if has_alpha:
        most = full if dtype.kind == "f" or zero < 0 else np.iinfo(dtype).max
        values = np.concatenate([values, shares[:, :, -1:] * most], axis=2)
    return (values if dtype.kind == "f" else np.rint(values)).astype(dtype)


def assert_same(path: Path, shown: np.ndarray, what: str) -> None:
    actual = read_image(path)
    assert actual.pixels.shape == shown.shape, what
    difference = np.abs(actual.pixels - shown.astype(np.float64)).max()
    assert difference <= 1, f"{what}: differs by {difference} levels"
    assert actual.warnings == (), what


def layouts(depth: str, colour: str) -> Iterator[dict[str, Any]]:
    """Arguments of `tifffile.imwrite`: byte orders, compressions, predictors, strips, tiles, planes."""
    planes: list[str | None] = ["contig", "separate"] if "rgb" in colour else [None]
    shapes: list[dict[str, Any]] = [{"rowsperstrip": HEIGHT}, {"rowsperstrip": 7}, {"tile": (16, 32)}]
    predictor = 3 if depth.startswith("float") else 2
    compressions: list[dict[str, Any]] = [
        {},
        {"compression": "packbits"},
        {"compression": "lzw"},
        {"compression": "lzw", "predictor": predictor},
        {"compression": "zlib"},
        {"compression": "zlib", "predictor": predictor},
    ]
    for order, plane, shape, compression in itertools.product("<>", planes, shapes, compressions):
        yield {"byteorder": order, "planarconfig": plane, **shape, **compression}


def write_tiff(path: Path, values: np.ndarray, *, photometric: str, **layout: Any) -> None:
    colours = 3 if photometric == "rgb" else 1
    extra = ["unassalpha"] if values.shape[2] > colours else None
    data = values[:, :, 0] if values.shape[2] == 1 else values
    if layout.get("planarconfig") == "separate":
        data = np.ascontiguousarray(np.moveaxis(data, 2, 0))
    if data.ndim == 3 and layout.get("planarconfig") is None:
        layout["planarconfig"] = "contig"
    tifffile.imwrite(path, data, photometric=photometric, extrasamples=extra, metadata=None, **layout)


# Alpha has no negative values.
KINDS = [(depth, colour) for depth in DEPTHS for colour in COLOURS if "alpha" not in colour or DEPTHS[depth][1] >= 0]


@pytest.mark.parametrize(("depth", "colour"), KINDS)
def test_tiff(tmp_path: Path, depth: str, colour: str) -> None:
    levels, shown = picture(colour)
    path = tmp_path / "x.tif"
    count = 0
    for white_is_zero in (False,) if "rgb" in colour else (False, True):
        values = stored(levels, depth, white_is_zero=white_is_zero)
        photometric = "rgb" if "rgb" in colour else ("miniswhite" if white_is_zero else "minisblack")
        for layout in layouts(depth, colour):
            write_tiff(path, values, photometric=photometric, **layout)
            assert_same(path, shown, f"{depth} {colour} {photometric} {layout}")
            count += 1
    assert count == 72  # of rgb both planar configurations, of grey both polarities


def packed(values: np.ndarray, bits: int) -> bytes:
    """Rows of samples [H, N] of few bits, the most significant first; every row begins at a byte."""
    ones = (values[:, :, None] >> np.arange(bits)[::-1]) & 1
    return np.packbits(ones.reshape(len(values), -1).astype(np.uint8), axis=1).tobytes()


def tiff_by_hand(path: Path, pixels: bytes, tags: dict[int, tuple[int, ...]], order: str = "<") -> None:
    """One strip, all tags of type SHORT but the strip's place."""
    base = {256: (WIDTH,), 257: (HEIGHT,), 259: (1,), 262: (1,), 277: (1,), 278: (HEIGHT,), 279: (len(pixels),)}
    entries = {**base, 273: (8,), **tags}
    start = 8 + len(pixels) + len(pixels) % 2
    behind = b""
    records = struct.pack(f"{order}H", len(entries))
    for tag, values in sorted(entries.items()):
        kind = "I" if tag in (273, 279) else "H"
        field = struct.pack(f"{order}{len(values)}{kind}", *values)
        if len(field) > 4:
            place = start + 2 + 12 * len(entries) + 4 + len(behind)
            behind, field = behind + field, struct.pack(f"{order}I", place)
        records += struct.pack(f"{order}HHI", tag, 4 if kind == "I" else 3, len(values)) + field.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", start)
    path.write_bytes(head + pixels + b"\0" * (len(pixels) % 2) + records + b"\0" * 4 + behind)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("fill_order", [1, 2])
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 10, 12, 14])
def test_tiff_of_packed_bits(tmp_path: Path, bits: int, photometric: int, fill_order: int, order: str) -> None:
    most = 2**bits - 1
    values = np.rint(radiograph() / 255 * most).astype(np.int64)
    pixels = packed(most - values if photometric == 0 else values, bits)
    if fill_order == 2:
        pixels = bytes(int(f"{byte:08b}"[::-1], 2) for byte in pixels)
    tags = {258: (bits,), 262: (photometric,), 266: (fill_order,)}
    tiff_by_hand(tmp_path / "x.tif", pixels, tags, order)
    actual = load_image(tmp_path / "x.tif")[:, :, 0]
    assert np.abs(actual - values / most * 255).max() <= 1


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("form", ["png", "tif"])
def test_palette(tmp_path: Path, form: str, bits: int) -> None:
    most = 2**bits - 1
    values = np.rint(radiograph() / 255 * most).astype(np.uint8)
    table = np.random.default_rng(3).integers(0, 256, (2**bits, 3), dtype=np.uint8)
    path = tmp_path / f"x.{form}"
    if form == "png":
        with path.open("wb") as file:
            png.Writer(WIDTH, HEIGHT, palette=table.tolist(), bitdepth=bits).write(file, values.tolist())
    else:
        colours = tuple(int(entry) * 257 for entry in table.T.reshape(-1))
        tiff_by_hand(path, packed(values.astype(np.int64), bits), {258: (bits,), 262: (3,), 320: colours})
    assert np.array_equal(load_image(path), table[values])


@pytest.mark.parametrize("interlace", [False, True])
@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("depth", ["8", "10 in 16", "12 in 16", "14 in 16", "16"])
def test_png(tmp_path: Path, depth: str, colour: str, interlace: bool) -> None:
    levels, shown = picture(colour)
    values = stored(levels, depth)
    path = tmp_path / "x.png"
    with path.open("wb") as file:
        png.Writer(
            WIDTH,
            HEIGHT,
            greyscale="rgb" not in colour,
            alpha="alpha" in colour,
            bitdepth=8 * values.dtype.itemsize,
            interlace=interlace,
        ).write(file, values.reshape(HEIGHT, -1).tolist())
    assert_same(path, shown, f"{depth} {colour}")


@pytest.mark.parametrize("greyscale", [False, True])
@pytest.mark.parametrize("depth", ["12 in 16", "16"])
def test_png_of_16_bits_with_a_transparent_value(tmp_path: Path, depth: str, greyscale: bool) -> None:
    levels, shown = picture("grey" if greyscale else "rgb")
    values = stored(levels, depth)
    clear = values[5, 5]
    shown = np.where((values == clear).all(axis=2)[:, :, None], 0, shown)
    with (tmp_path / "x.png").open("wb") as file:
        transparent = int(clear[0]) if greyscale else tuple(map(int, clear))
        writer = png.Writer(WIDTH, HEIGHT, greyscale=greyscale, bitdepth=16, transparent=transparent)
        writer.write(file, values.reshape(HEIGHT, -1).tolist())
    assert_same(tmp_path / "x.png", shown, depth)


@pytest.mark.parametrize("depth", ["8", "16"])
@pytest.mark.parametrize("compression", [None, "packbits", "tiff_lzw", "tiff_adobe_deflate", "jpeg"])
def test_tiff_written_by_pillow(tmp_path: Path, compression: str | None, depth: str) -> None:
    if (compression, depth) == ("jpeg", "16"):
        return  # no such thing in Pillow
    levels, shown = picture("grey")
    options = {"quality": 95} if compression == "jpeg" else {}
    values = stored(levels, depth)[:, :, 0]
    Image.fromarray(values).save(tmp_path / "x.tif", compression=compression, **options)
    loss = 20 if compression == "jpeg" else 0
    assert np.abs(load_image(tmp_path / "x.tif") - shown).max() <= loss


@pytest.mark.parametrize("form", ["tif", "png"])
@pytest.mark.parametrize("depth", ["8", "16"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path: Path, orientation: int, depth: str, form: str) -> None:
    levels, _ = picture("rgb")
    values = stored(levels, depth)
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = {
        1: levels,
        2: levels[:, ::-1],
        3: levels[::-1, ::-1],
        4: levels[::-1],
        5: levels.swapaxes(0, 1),
        6: levels[::-1].swapaxes(0, 1),
        7: levels[::-1, ::-1].swapaxes(0, 1),
        8: levels[:, ::-1].swapaxes(0, 1),
    }[orientation]
    path = tmp_path / f"x.{form}"
    if form == "tif":
        tifffile.imwrite(path, values, photometric="rgb", extratags=[(274, 3, 1, orientation, True)], metadata=None)
    else:
        plain = io.BytesIO()
        writer = png.Writer(WIDTH, HEIGHT, greyscale=False, bitdepth=8 * values.dtype.itemsize)
        writer.write(plain, values.reshape(HEIGHT, -1).tolist())
        with path.open("wb") as file:
            chunks = list(png.Reader(bytes=plain.getvalue()).chunks())
            png.write_chunks(file, [chunks[0], (b"eXIf", exif.tobytes()[6:]), *chunks[1:]])
    assert np.array_equal(load_image(path), expected)


@pytest.mark.parametrize("transform", ["CMYK", "YCCK"])
def test_cmyk_jpeg_keeps_its_polarity(tmp_path: Path, transform: str) -> None:
    """Adobe stores CMYK inverted (its marker says so), Pillow too; YCCK is written by imagecodecs."""
    levels, shown = picture("rgb")
    inks = Image.fromarray(levels).convert("CMYK")
    path = tmp_path / "x.jpg"
    if transform == "CMYK":
        inks.save(path, quality=100)
    else:
        inverted = 255 - np.asarray(inks)
        path.write_bytes(imagecodecs.jpeg8_encode(inverted, level=100, colorspace="CMYK", outcolorspace="YCCK"))
    assert b"Adobe" in path.read_bytes()
    assert np.abs(load_image(path) - shown).mean() < 3


@pytest.mark.parametrize("meaning", ["assocalpha", "unspecified"])
def test_extra_samples_that_are_not_laid_over_black(tmp_path: Path, meaning: str) -> None:
    """Associated alpha is multiplied in already; an unspecified sample is no alpha."""
    levels = radiograph().astype(np.uint16) * 257
    extra = np.where(levels > 30000, 65535, 40000).astype(np.uint16)
    values = np.stack([levels, extra], axis=2)
    tifffile.imwrite(
        tmp_path / "x.tif", values, photometric="minisblack", planarconfig="contig", extrasamples=[meaning]
    )
    assert np.array_equal(load_image(tmp_path / "x.tif")[:, :, 0], radiograph())


@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("depth", [depth for depth, (_, zero, _) in DEPTHS.items() if zero >= 0])
def test_a_picture_without_black_and_white_is_not_stretched(tmp_path: Path, depth: str, white_is_zero: bool) -> None:
    """Levels 77 to 212, half of the range: absolute levels, not the picture's own minimum and maximum."""
    levels = np.rint(77 + radiograph() / radiograph().max() * 135).astype(np.uint8)[:, :, None]
    values = stored(levels, depth, white_is_zero=white_is_zero)
    write_tiff(tmp_path / "x.tif", values, photometric="miniswhite" if white_is_zero else "minisblack", byteorder=">")
    assert_same(tmp_path / "x.tif", np.repeat(levels, 3, axis=2), depth)


@pytest.mark.parametrize("name", ["chest-cr-ap.png", "chest-dx-pa.png", "phantom.png"])
def test_real_pictures_are_alike_at_every_depth(tmp_path: Path, name: str) -> None:
    """Among them one of which only the burned-in marker is white: at full range it is as dark as in 8 bits."""
    expected = load_image(DATA / name)
    for depth in ("12 in 16", "16", "32", "float32"):
        write_tiff(tmp_path / "x.tif", stored(expected[:, :, :1], depth), photometric="minisblack")
        assert_same(tmp_path / "x.tif", expected, f"{name} {depth}")


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_bits_that_the_file_states_are_not_estimated(tmp_path: Path, bits: int) -> None:
    """A dark picture, below half of 2^bits, in a file whose samples have that many bits."""
    values = np.rint(radiograph() / 255 * 0.4 * (2**bits - 1)).astype(np.int64)
    tiff_by_hand(tmp_path / "x.tif", packed(values, bits), {258: (bits,)})
    assert np.abs(load_image(tmp_path / "x.tif")[:, :, 0] - radiograph() * 0.4).max() <= 1
