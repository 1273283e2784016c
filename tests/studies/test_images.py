"""Images: what is read, what Hugging Face's processor makes of it, what is refused."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from r2gen_export.bundle import ImageSpec
from r2gen_export.errors import R2GenError
from r2gen_export.studies.images import load_image, load_views, preprocess

DATA = Path(__file__).parents[1] / "data"
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
    expected = processor(Image.open(path).convert("RGB"), return_tensors="np").pixel_values
    actual = load_views([path], spec)
    assert actual.dtype == np.float32
    one_level = 1 / 255 / min(SPEC.std)
    assert np.abs(actual - expected).max() <= one_level


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(grey()).save(tmp_path / "x.jpg", exif=exif, quality=95)
    assert load_image(tmp_path / "x.jpg").shape == (60, 40, 3)


def png_header(width: int, height: int, depth: int = 8, colour: int = 0) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


def hostile(folder: Path, kind: str) -> Path:
    path = folder / ("x.DCM" if kind == "dicom by suffix" else "x.png")
    Image.fromarray(grey(200, 200)).save(path, format="PNG")
    data = path.read_bytes()
    contents = {
        "text": b"not an image",
        "empty": b"",
        "truncated": data[: len(data) // 2],
        "bomb": png_header(100_000, 100_000) + data[33:],
        "bomb of 16 bits": png_header(9000, 9000, depth=16, colour=2) + data[33:],
        "dicom": bytes(128) + b"DICM" + data,
        "dicom without preamble": b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100",
        "dicom by suffix": b"\1\2\3\4",
        "git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    }
    if kind in contents:
        path.write_bytes(contents[kind])
    elif kind == "black":
        Image.new("L", (64, 64)).save(path)
    elif kind in ("missing", "folder"):
        path.unlink()
        if kind == "folder":
            path.mkdir()
    else:
        path = path.with_suffix(".tif")
        write_odd_tiff(path, kind)
    return path


def patched(data: bytes, tags: dict[int, int]) -> bytes:
    """A little-endian TIFF with other values in some tags of its first page (of one SHORT or LONG)."""
    body = bytearray(data)
    start = int.from_bytes(data[4:8], "little")
    for number in range(int.from_bytes(data[start : start + 2], "little")):
        entry = start + 2 + 12 * number
        tag = int.from_bytes(data[entry : entry + 2], "little")
        if tag in tags:
            body[entry + 2 : entry + 12] = struct.pack("<HII", 4, 1, tags[tag])
    return bytes(body)


def write_odd_tiff(path: Path, kind: str) -> None:
    full = grey().astype(np.uint16) * 257
    if kind == "many bytes":
        full = np.zeros((4, 4, 3))
    with tifffile.TiffWriter(path) as file:
        if kind == "pages":
            for page in (full, full, full):
                file.write(page)
        elif kind == "unmarked thumbnail":
            file.write(full[::4, ::4])
            file.write(full)
        elif kind == "thumbnail alone":
            file.write(full[::4, ::4], subfiletype=1)
        elif kind == "nan":
            file.write(np.where(full == full.max(), np.nan, full).astype(np.float32))
        elif kind == "infinity":
            file.write(np.where(full == full.max(), np.inf, full).astype(np.float64))
        elif kind == "complex":
            file.write(full.astype(np.complex64))
        elif kind == "cmyk 16":
            file.write(np.stack([full] * 4, axis=2), photometric="separated")
        else:
            file.write(full)
    changes = {
        "unknown compression": {259: 34712},
        "short strips": {279: 10**6},
        "unknown predictor": {317: 9},
        "many bytes": {256: 9000, 257: 9000},
    }
    if kind == "unknown predictor":
        tifffile.imwrite(path, full, compression="zlib", predictor=2)
    path.write_bytes(patched(path.read_bytes(), changes.get(kind, {})))


KINDS = {
    "missing": "R2G-IMAGE-MISSING",
    "text": "R2G-IMAGE-FORMAT",
    "empty": "R2G-IMAGE-FORMAT",
    "folder": "R2G-IMAGE-FORMAT",
    "truncated": "R2G-IMAGE-TRUNCATED",
    "bomb": "R2G-IMAGE-SIZE",
    "bomb of 16 bits": "R2G-IMAGE-SIZE",
    "black": "R2G-IMAGE-BLANK",
    "dicom": "R2G-DICOM-REFUSED",
    "dicom without preamble": "R2G-DICOM-REFUSED",
    "dicom by suffix": "R2G-DICOM-FORMAT",
    "git-lfs": "R2G-IMAGE-FORMAT",
    "many bytes": "R2G-IMAGE-SIZE",
    "pages": "R2G-IMAGE-FORMAT",
    "unmarked thumbnail": "R2G-IMAGE-FORMAT",
    "thumbnail alone": "R2G-IMAGE-FORMAT",
    "nan": "R2G-IMAGE-FORMAT",
    "infinity": "R2G-IMAGE-FORMAT",
    "complex": "R2G-IMAGE-FORMAT",
    "cmyk 16": "R2G-IMAGE-FORMAT",
    "unknown compression": "R2G-IMAGE-FORMAT",
    "unknown predictor": "R2G-IMAGE-FORMAT",
    "short strips": "R2G-IMAGE-TRUNCATED",
}
SAID = {
    "missing": "is not there",
    "text": "not a PNG, JPEG, TIFF or DICOM",
    "empty": "empty",
    "folder": "regular file",
    "truncated": "begins as PNG",
    "bomb": "100000 x 100000",
    "bomb of 16 bits": "486 MB decoded",
    "dicom without preamble": "has no meta header",
    "dicom by suffix": "is not a DICOM file",
    "git-lfs": "git-lfs pointer",
    "many bytes": "1944 MB decoded",
    "pages": "TIFF of 3 pages",
    "unmarked thumbnail": "TIFF of 2 pages",
    "thumbnail alone": "only a thumbnail",
    "nan": "32-bit floating-point grey with NaN or infinite",
    "infinity": "64-bit floating-point grey with NaN or infinite",
    "complex": "64-bit complex",
    "cmyk 16": "16-bit CMYK",
    "unknown compression": "compression 34712 (JPEG 2000)",
    "unknown predictor": "predictor 9",
    "short strips": "ends before its pixels",
}
"""What each message must say."""


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_files_are_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(R2GenError) as caught:
        load_image(hostile(tmp_path, kind))
    assert caught.value.code == KINDS[kind]
    assert SAID.get(kind, "") in caught.value.message
    if "dicom" in kind:
        assert "convert" not in caught.value.fix
    if kind == "git-lfs":
        assert "git lfs pull" in caught.value.fix


@pytest.mark.parametrize("pages", [("thumbnail", "full"), ("full", "thumbnail"), ("full", "mask")])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_full_size_page_is_taken(tmp_path: Path, dtype: type, pages: tuple[str, ...]) -> None:
    full = grey().astype(dtype) * (257 if dtype == np.uint16 else 1)
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        for page in pages:
            if page == "full":
                file.write(full)
            elif page == "thumbnail":
                file.write(full[::4, ::4], subfiletype=1)
            else:
                file.write(full > 0, subfiletype=4, photometric="mask")
    assert np.array_equal(load_image(tmp_path / "x.tif")[:, :, 0], grey())


BOMB = """
import pathlib, resource, sys
from r2gen_export.studies.images import load_image
used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000,) * 2)
print(load_image(pathlib.Path(sys.argv[1])).shape)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_strip_expands_to_no_more_than_the_picture(tmp_path: Path) -> None:
    """1 MB that inflates to 1 GB, in a picture of 64 x 64, with room for 300 MB."""
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, grey(64, 64).astype(np.uint16), compression="zlib")
    body = path.read_bytes()
    packer = zlib.compressobj(9)
    rows = packer.compress(grey(64, 64).astype("<u2").tobytes())
    strip = rows + b"".join(packer.compress(bytes(1_000_000)) for _ in range(1000)) + packer.flush()
    path.write_bytes(patched(body, {273: len(body), 279: len(strip)}) + strip)
    done = subprocess.run([sys.executable, "-c", BOMB, path], capture_output=True, text=True, check=False)
    assert done.stdout == "(64, 64, 3)\n", done.stderr


@pytest.mark.parametrize(("process", "kind"), [(0xC3, "12-bit lossless JPEG"), (0xC1, "12-bit JPEG")])
def test_jpegs_that_are_not_read_are_named(tmp_path: Path, process: int, kind: str) -> None:
    frame = struct.pack(">HBHHB", 11, 12, 40, 60, 1) + b"\1\x11\0"
    (tmp_path / "x.jpg").write_bytes(b"\xff\xd8\xff\xe0\0\2\xff" + bytes([process]) + frame + b"\xff\xd9")
    with pytest.raises(R2GenError, match=f"R2G-IMAGE-FORMAT.*is a {kind}"):
        load_image(tmp_path / "x.jpg")


def as_released(path: Path) -> np.ndarray:
    """8-bit files as the first release read them: Pillow's conversions, nothing else."""
    with path.open("rb") as file, Image.open(file) as picture:
        picture.load()
        upright = ImageOps.exif_transpose(picture)
        if upright.has_transparency_data:
            ground = Image.new("RGBA", upright.size, (0, 0, 0, 255))
            upright = Image.alpha_composite(ground, upright.convert("RGBA"))
        return np.asarray(upright.convert("RGB"))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
@pytest.mark.parametrize("form", ["png", "jpg", "tif"])
def test_eight_bits_stay_as_they_were(tmp_path: Path, form: str, mode: str) -> None:
    if mode in {"png": ("CMYK", "YCbCr"), "jpg": ("LA", "P", "RGBA"), "tif": ()}[form]:
        return  # Pillow writes no such file
    exif = Image.Exif()
    for number, name in enumerate(("chest-cr-ap", "chest-dx-pa", "phantom")):
        exif[0x0112] = (1, 6, 3)[number]
        path = tmp_path / f"{number}.{form}"
        with Image.open(DATA / f"{name}.png") as picture:
            picture.convert(mode).resize((300, 280)).save(path, exif=exif)
        assert np.array_equal(load_image(path), as_released(path))


def test_radiographs_stay_as_they_were() -> None:
    for path in DATA.glob("*.png"):
        assert np.array_equal(load_image(path), as_released(path))


def test_arrays_without_content_are_refused() -> None:
    for pixels in (np.zeros((0, 4, 3), np.uint8), np.full((4, 4, 3), 9, np.uint8)):
        with pytest.raises(R2GenError, match="R2G-IMAGE"):
            preprocess([pixels], SPEC)
