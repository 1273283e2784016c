"""Images: what is read, what Hugging Face's processor makes of it, what is refused."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from r2gen_export.bundle import ImageSpec
from r2gen_export.errors import R2GenError
from r2gen_export.runtime.images import load_image, load_views, preprocess

SPEC = ImageSpec(56, 48, 3, 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def grey(height: int = 40, width: int = 60) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)


@pytest.mark.parametrize("resample", [2, 3])
@pytest.mark.parametrize("size", [(40, 60), (500, 311), (17, 900), (56, 48)])
@pytest.mark.parametrize("mode", ["L", "RGB", "P", "RGBA", "LA", "CMYK", "1"])
def test_pixel_values_are_hugging_faces(tmp_path: Path, mode: str, size: tuple[int, int], resample: int) -> None:
    from transformers import ViTImageProcessor

    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    picture = Image.fromarray(grey(*size)).convert(mode)
    picture.save(path)
    spec = ImageSpec(56, 48, resample, 1 / 255, SPEC.mean, SPEC.std)
    processor = ViTImageProcessor(
        size={"height": 56, "width": 48}, resample=resample, image_mean=list(SPEC.mean), image_std=list(SPEC.std)
    )
    wanted = processor(Image.open(path).convert("RGB"), return_tensors="np").pixel_values
    found = load_views([path], spec)
    assert found.dtype == np.float32
    one_level = 1 / 255 / min(SPEC.std)
    assert np.abs(found - wanted).max() <= one_level


def test_sixteen_bits_keep_their_contrast(tmp_path: Path) -> None:
    full = (grey().astype(np.uint16) * 257).astype(np.uint16)
    Image.fromarray(full).save(tmp_path / "full.png")
    assert np.array_equal(load_image(tmp_path / "full.png")[:, :, 0], grey())
    twelve = (grey().astype(np.uint16) * 16).astype(np.uint16)
    Image.fromarray(twelve).save(tmp_path / "twelve.tif")
    levels = load_image(tmp_path / "twelve.tif")
    assert (levels.min(), levels.max()) == (0, 255)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(grey()).save(tmp_path / "x.jpg", exif=exif, quality=95)
    assert load_image(tmp_path / "x.jpg").shape == (60, 40, 3)


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


def hostile(folder: Path, kind: str) -> Path:
    path = folder / "x.png"
    Image.fromarray(grey(200, 200)).save(path)
    data = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "text":
        path.write_text("not an image")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "bomb":
        path.write_bytes(png_header(100_000, 100_000) + data[33:])
    elif kind == "black":
        Image.new("L", (64, 64)).save(path)
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    return path


KINDS = {
    "missing": "R2G-IMAGE-MISSING",
    "text": "R2G-IMAGE-FORMAT",
    "empty": "R2G-IMAGE-FORMAT",
    "folder": "R2G-IMAGE-FORMAT",
    "truncated": "R2G-IMAGE-TRUNCATED",
    "bomb": "R2G-IMAGE-SIZE",
    "black": "R2G-IMAGE-BLANK",
}


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_files_are_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(R2GenError) as caught:
        load_image(hostile(tmp_path, kind))
    assert caught.value.code == KINDS[kind]


def test_arrays_without_content_are_refused() -> None:
    for pixels in (np.zeros((0, 4, 3), np.uint8), np.full((4, 4, 3), 9, np.uint8)):
        with pytest.raises(R2GenError, match="R2G-IMAGE"):
            preprocess([pixels], SPEC)
