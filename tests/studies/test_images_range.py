"""Grey ranges above 8 bits: markers, dead pixels, padding, offsets, and what the report says about them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from r2gen_export.runtime.pipeline import Pipeline
from r2gen_export.studies.images import Picture, load_image, read_image
from r2gen_export.studies.pixels import to_eight_bits

DATA = Path(__file__).parents[1] / "data"


def levels() -> np.ndarray:
    """uint8 [96, 120], 1 to about 235: a radiograph in which neither black nor white is an area."""
    with Image.open(DATA / "chest-cr-ap.png") as picture:
        return np.asarray(picture.convert("L").resize((120, 96), Image.Resampling.LANCZOS))


def load(tmp_path: Path, values: np.ndarray) -> Picture:
    tifffile.imwrite(tmp_path / "x.tif", values)
    return read_image(tmp_path / "x.tif")


def contrast(pixels: np.ndarray, where: np.ndarray) -> float:
    """Spread of the middle 90 % of the anatomy, in grey levels."""
    low, high = np.percentile(pixels[:, :, 0][where], [5, 95])
    return float(high - low)


def disturbed(kind: str, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """A 12-bit picture with something in it that is no anatomy, and where the anatomy is."""
    unsigned = np.dtype(dtype).kind == "u"
    least, most = (0, 65535) if unsigned else (-30000, 30000)
    values = np.rint(levels() * 4095.0 / 255)
    anatomy = np.ones(values.shape, bool)
    if kind == "hot pixel":
        anatomy[3, 3] = False
    elif kind == "ten hot pixels":
        anatomy.reshape(-1)[::1153] = False
    elif kind == "marker":
        anatomy[4:12, 4:18] = False  # 1 %
    elif kind in ("padding", "black padding"):
        anatomy[:, :36] = False  # 30 %
    elif kind == "both ends":
        anatomy[0, :2] = False
    if kind in ("black padding", "both ends"):
        values += 20000 if unsigned else 0
    values[~anatomy] = least if kind == "black padding" else most
    if kind == "both ends":
        values[0, 0] = least
    return values.astype(dtype), anatomy


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.uint32, np.float32])
@pytest.mark.parametrize("kind", ["hot pixel", "ten hot pixels", "marker", "padding", "black padding", "both ends"])
def test_the_anatomy_keeps_its_contrast(tmp_path: Path, kind: str, dtype: type) -> None:
    values, anatomy = disturbed(kind, dtype)
    actual = load(tmp_path, values)
    assert contrast(actual.pixels, anatomy) >= 0.75 * contrast(levels()[:, :, None], anatomy)
    assert any("clipped" in warning for warning in actual.warnings), actual.warnings


def test_an_offset_is_removed_and_said(tmp_path: Path) -> None:
    actual = load(tmp_path, (levels().astype(np.uint16) * 4 + 40000).astype(np.uint16))
    assert (actual.pixels.min(), actual.pixels.max()) == (0, 255)
    assert ["stretched" in warning for warning in actual.warnings] == [True]


@pytest.mark.parametrize("zero", [0, 1000])
def test_no_single_value_changes_the_picture_at_a_threshold(zero: int) -> None:
    """The largest value grows by 0.1 % at a time, as that of the whole picture and as that of one pixel."""
    shares = levels()[::3, ::3] / levels().max()
    for whole in (True, False):
        before = None
        # Past 2^15, and past the distance at which a single pixel no longer counts.
        for most in np.geomspace(17000, 52000, 1120).astype(int):
            values = (shares * ((most if whole else 17000) - zero) + zero).astype(np.uint16)
            values[0, 0] = most
            pixels = to_eight_bits(values[:, :, None])[0].astype(int)
            if before is not None:
                assert np.abs(pixels - before)[1:].max() <= 8, most
            before = pixels


def test_either_side_of_15_bits_looks_alike(tmp_path: Path) -> None:
    shares = levels() / levels().max()
    below, above = (load(tmp_path, np.rint(shares * most).astype(np.uint16)) for most in (32767, 32768))
    assert np.abs(below.pixels.astype(int) - above.pixels).max() <= 1


def test_sound_pictures_give_no_warning(tmp_path: Path) -> None:
    for name in ("chest-cr-ap", "chest-dx-pa", "phantom"):
        deep = load_image(DATA / f"{name}.png")[:, :, 0].astype(np.uint16) * 257
        assert load(tmp_path, deep).warnings == ()
        assert read_image(DATA / f"{name}.png").warnings == ()


@pytest.mark.parametrize("form", ["png", "tif"])
def test_few_grey_levels_are_said_at_every_depth(tmp_path: Path, form: str) -> None:
    """12 bits divided by 256 leave at most 16 levels, which is what a careless conversion writes."""
    path = tmp_path / f"x.{form}"
    Image.fromarray(levels() >> 4).save(path)
    assert ["holds only 14 grey levels" in warning for warning in read_image(path).warnings] == [True]


def test_huge_values_and_small_ones(tmp_path: Path) -> None:
    values = levels().astype(np.float64)
    values[5, 5], values[6, 6] = 1.7e308, -1.7e308
    actual = load(tmp_path, values)
    assert np.abs(actual.pixels[:, :, 0].astype(int) - levels())[7:].max() <= 1
    values[:20], values[-20:] = 1.7e308, -1.7e308
    assert load(tmp_path, values).pixels[50, 50, 0] in range(100, 156)  # between black and white areas, and no error
    tiny = load(tmp_path, levels() * 1e-310)
    assert contrast(tiny.pixels, levels() > 0) >= contrast(levels()[:, :, None], levels() > 0)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


LARGE = zlib.compress(bytes(2_000_000))
METADATA = {
    "text": chunk(b"zTXt", b"Comment\0\0" + LARGE),
    "xmp": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LARGE),
    "plain xmp": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b" " * 2_000_000),
    "profile": chunk(b"iCCP", b"icc\0\0" + LARGE),
    "broken exif": chunk(b"eXIf", b"Exif\0\0II*\0"),
    "cut exif": chunk(b"eXIf", b"II*\0\x08\0\0\0\xff\xff"),
    "bad checksum": chunk(b"eXIf", b"II*\0\x08\0\0\0")[:-1] + b"!",
}


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("place", ["before", "behind"])
@pytest.mark.parametrize("kind", METADATA)
def test_metadata_of_a_png_is_ignored(tmp_path: Path, kind: str, place: str, depth: int) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(levels() if depth == 8 else levels().astype(np.uint16) * 257).save(path)
    data = path.read_bytes()
    where = 33 if place == "before" else len(data) - 12
    path.write_bytes(data[:where] + METADATA[kind] + data[where:])
    assert np.array_equal(load_image(path)[:, :, 0], levels())


def test_orientation_in_xmp_still_counts(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(levels()).save(path)
    data = path.read_bytes()
    xmp = chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>')
    path.write_bytes(data[:33] + xmp + data[33:])
    assert load_image(path).shape == (120, 96, 3)


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"])
def test_broken_exif_of_a_jpeg_is_ignored(tmp_path: Path, exif: bytes) -> None:
    path = tmp_path / "x.jpg"
    Image.fromarray(levels()).save(path, quality=95)
    plain = load_image(path)
    data = path.read_bytes()
    path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:])
    assert np.array_equal(load_image(path), plain)


def test_the_report_names_the_view_and_no_file(tmp_path: Path) -> None:
    values, _ = disturbed("marker", np.uint16)
    tifffile.imwrite(tmp_path / "doe^john.tif", values)
    report = Pipeline.from_bundle(device="cpu").generate([DATA / "phantom.png", tmp_path / "doe^john.tif"])
    assert len(report.warnings) == 1
    assert report.warnings[0].startswith("view 2: ")
    assert report.to_dict()["warnings"] == report.warnings
    shown = " ".join(report.to_text().split())
    assert f"WARNING {report.warnings[0]}" in shown
    assert "doe" not in shown
