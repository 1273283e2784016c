"""Image files to pixel values, as the vision encoder's Hugging Face processor makes them; Pillow and numpy only.

Follows `ViTImageProcessor` of transformers 4.57 (`image_processing_vit.py`), which Swin uses: RGB, resize by Pillow's
filter on 8-bit grey levels, times `rescale_factor`, minus mean, over standard deviation.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from r2gen_export.bundle import ImageSpec
from r2gen_export.errors import R2GenError
from r2gen_export.studies import png, tiff
from r2gen_export.studies.dicom.types import DicomSettings
from r2gen_export.studies.file_kinds import HEAD_BYTES, looks_like_dicom
from r2gen_export.studies.pixels import few_levels, to_eight_bits
from r2gen_export.studies.refusal import AGAIN, RefusedError, damaged, not_read, reading, reason_of, too_large
from r2gen_export.system import git_lfs

MAX_PIXELS: Final = 100_000_000
"""Largest picture that is decoded. Detectors give up to 20 megapixels; a forged header can claim 10,000."""

MAX_FILE_BYTES: Final = 1 << 30
"""Largest file that is read into memory."""

JPEG_HEAD: Final = b"\xff\xd8\xff"


class Picture(NamedTuple):
    """One decoded file.

    Attributes:
        pixels: uint8 RGB [H, W, 3], upright; grey images have three equal channels.
        warnings: what a reader of the report should know about them, sentences without the subject.
        sha256: of the bytes of the file, as hex; of the array's bytes where there was no file.
        header_sha256: as in `SourceImage`; empty where it is no DICOM file.
    """

    pixels: NDArray[np.uint8]
    warnings: tuple[str, ...]
    sha256: str = ""
    header_sha256: str = ""


def load_image(path: Path, subject: str = "the image", dicom: DicomSettings | None = None) -> NDArray[np.uint8]:
    """`read_image` without its warnings: uint8 RGB [H, W, 3]."""
    return read_image(path, subject, dicom).pixels


def read_image(path: Path, subject: str = "the image", dicom: DicomSettings | None = None) -> Picture:
    """Decode one image file.

    DICOM as `studies/dicom` reads it; PNG, JPEG and TIFF. These up to 8 bits: grey, RGB, palette, CMYK, as Pillow
    converts them. More: grey and RGB with and without alpha, of 10 to 64 bits, signed, unsigned or floating point, on
    the range of `pixels.grey_range`. TIFF in which zero is white is inverted at every depth; PNG and JPEG know no such
    thing. EXIF orientation is applied, transparency is laid over black; text, colour profiles and damaged EXIF are
    ignored.

    Args:
        path: the file. No error names it: it may identify a patient.
        subject: what errors call the image, such as "study 3, view 1".
        dicom: how a DICOM file is read; `DicomSettings()` when None.

    Raises:
        R2GenError: `R2G-IMAGE-MISSING`, `R2G-IMAGE-FORMAT`, `R2G-IMAGE-TRUNCATED`, `R2G-IMAGE-SIZE`, `R2G-IMAGE-BLANK`,
            `R2G-RESOURCE-MEMORY`; of a DICOM file `R2G-DICOM-*`, and `R2G-DEPENDENCY-MISSING` without the extra
            `dicom`.
        InternalError: anything else that went wrong.
    """
    with reading(subject):
        try:
            with warnings.catch_warnings():
                # Pillow warns of large pictures and of odd metadata; sizes are checked here.
                warnings.simplefilter("ignore")
                data = read_contents(path)
                if looks_like_dicom(data[:HEAD_BYTES], path.suffix.lower()):
                    del data  # the child process reads the file itself
                    picture = _dicom(path, subject, dicom or DicomSettings())
                else:
                    picture = _decode(data)._replace(sha256=hashlib.sha256(data).hexdigest())
        except RefusedError as error:
            raise R2GenError(error.code, f"{subject} {error.what}", error.fix) from error
        check_pixels(picture.pixels, subject)
        return picture


_POLARITY: Final = {"shape": "PresentationLUTShape", "photometric": "PhotometricInterpretation"}


def _dicom(path: Path, subject: str, settings: DicomSettings) -> Picture:
    from r2gen_export.studies.dicom.reader import read_dicom

    image = read_dicom(path, subject, settings)
    pixels = np.repeat(image.pixels[:, :, None], 3, axis=2)
    warnings = image.warnings
    if settings.polarity != "auto":
        warnings += (f"polarity by {_POLARITY[settings.polarity]} alone (--polarity {settings.polarity})",)
    return Picture(pixels, warnings, image.sha256, image.header_sha256)


def preprocess(images: Sequence[NDArray[np.uint8]], spec: ImageSpec) -> NDArray[np.float32]:
    """Pixel values of a study's views.

    Args:
        images: uint8 RGB [H, W, 3] each, of any size.
        spec: the encoder's preprocessing.

    Returns:
        float32 [V, 3, spec.height, spec.width].

    Raises:
        R2GenError: `R2G-IMAGE-BLANK` when a picture holds one grey value, `R2G-IMAGE-SIZE` when it has no pixels.
    """
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (spec.mean, spec.std))
    views = np.empty((len(images), 3, spec.height, spec.width), np.float32)
    for view, image in enumerate(images):
        check_pixels(image)
        resized = Image.fromarray(image).resize((spec.width, spec.height), Image.Resampling(spec.resample))
        levels = np.asarray(resized, np.float32).transpose(2, 0, 1)
        views[view] = (levels * np.float32(spec.rescale_factor) - mean) / std
    return views


def load_views(paths: Sequence[Path], spec: ImageSpec, subject: str = "") -> NDArray[np.float32]:
    """`load_image` and `preprocess` for the views of one study: float32 [V, 3, spec.height, spec.width].

    `subject` names the study in errors ("study 3").
    """
    return preprocess([load_image(path, view_of(subject, view)) for view, path in enumerate(paths, start=1)], spec)


def view_of(subject: str, view: int) -> str:
    """A view's name in errors: "study 3, view 1", or "view 1" for a study without a name. Views count from 1."""
    return f"{subject}, view {view}" if subject else f"view {view}"


def check_pixels(image: NDArray[np.uint8], name: str = "the image") -> None:
    """Refuse pixels that no report can be about.

    Raises:
        R2GenError: `R2G-IMAGE-SIZE` without pixels, `R2G-IMAGE-BLANK` when all are alike.
    """
    if image.size == 0:
        raise R2GenError("R2G-IMAGE-SIZE", f"{name} has no pixels", "export it again from its source")
    if (image == image[0, 0]).all():
        level = "black" if not image.any() else f"of one grey value ({image.flat[0]})"
        raise R2GenError("R2G-IMAGE-BLANK", f"{name} is all {level}", "export it again from its source")


_SMALLER: Final = f"give an image of at most {MAX_PIXELS // 1_000_000} megapixels"


def read_contents(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        RefusedError: whatever the system says about the file, without its name.
    """
    missing = "R2G-IMAGE-MISSING"
    try:
        if path.is_dir() or (path.exists() and not path.is_file()):
            # A pipe would wait for a writer for ever.
            raise not_read("is not a regular file", "name an image file")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise too_large(f"is larger than {MAX_FILE_BYTES >> 30} GB", _SMALLER)
        return path.read_bytes()
    except FileNotFoundError as error:
        raise RefusedError(missing, "is not there", "check the path") from error
    except PermissionError as error:
        raise RefusedError(missing, "may not be read", "check its permissions") from error
    except (OSError, ValueError) as error:
        raise RefusedError(missing, f"cannot be read ({reason_of(error)})", "check the path and its disk") from error


def content_sha256(path: Path) -> str:
    """What `Picture.sha256` would be: SHA-256 as hex of an image file's bytes.

    Raises:
        RefusedError: as `read_contents`.
    """
    return hashlib.sha256(read_contents(path)).hexdigest()


def _decode(data: bytes) -> Picture:
    """The format by the file's first bytes."""
    if data.startswith(png.SIGNATURE):
        return _guarded("PNG", _png, png.without_metadata(data))
    if data.startswith(JPEG_HEAD):
        return _guarded("JPEG", _jpeg, data)
    if data.startswith(tiff.HEADS):
        return _guarded("TIFF", _tiff, data)
    if data.startswith(git_lfs.HEAD):
        raise not_read("is a git-lfs pointer, not the image", git_lfs.FIX)
    if not data:
        raise not_read("is empty and not a PNG, JPEG, TIFF or DICOM image", AGAIN)
    raise not_read("is not a PNG, JPEG, TIFF or DICOM image", "convert it to PNG first")


def _guarded(kind: str, read: Callable[[bytes], Picture], data: bytes) -> Picture:
    """Whatever a library raises about a user's file is the file's fault: the header was that of an image."""
    try:
        return read(data)
    except (RefusedError, MemoryError):
        raise
    except Exception as error:
        raise damaged(kind) from error


def _png(data: bytes) -> Picture:
    width, height, depth, colour = png.header(data)
    _check_size(width, height)
    if depth != 16:
        return _by_pillow(data, "PNG")
    tiff.check_bytes(width, height, 2 * png.CHANNELS.get(colour, 4))
    deep = png.read_deep(data)
    pixels, remarks = to_eight_bits(deep.values, alpha=deep.alpha)
    with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
        picture.load()  # EXIF may stand behind the pixels
        turn = _turn(picture)
    return _finished(pixels if turn is None else np.asarray(Image.fromarray(pixels).transpose(turn)), remarks)


def _jpeg(data: bytes) -> Picture:
    try:
        return _by_pillow(data, "JPEG")
    except UnidentifiedImageError:
        process, precision = jpeg_process(data)
        if process in (0xC0, 0xC1, 0xC2) and precision == 8:
            raise
        kind = f"{precision}-bit " + ("lossless " if process in (0xC3, 0xC7, 0xCB, 0xCF, 0xF7) else "")
        raise not_read(f"is a {kind}JPEG, which is not read") from None


def _tiff(data: bytes) -> Picture:
    page = tiff.full_page(data)
    _check_size(page.width, page.height)
    if page.for_pillow:
        try:
            return _by_pillow(data, "TIFF", page.number)
        except (UnidentifiedImageError, ValueError):
            pass  # a combination of tags for which Pillow has no mode, or a mode but no unpacker
    deep = tiff.read_deep(data, page)
    try:
        pixels, remarks = to_eight_bits(deep.values, alpha=deep.alpha, top=deep.top, zero_is_white=deep.zero_is_white)
    except FloatingPointError:
        raise not_read(f"is {page.kind} with NaN or infinite pixel values") from None
    return _finished(pixels, remarks)


def jpeg_process(data: bytes) -> tuple[int, int]:
    """The SOF marker of a JPEG (T.81 table B.1; 0xF7: JPEG-LS) and its bits per sample; zeros without one."""
    position = 2
    while position + 5 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            return marker, data[position + 4]
        position += 1 if marker == 0xFF else 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return 0, 0


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        message = f"claims {width} x {height} pixels, more than {MAX_PIXELS // 1_000_000} megapixels"
        raise too_large(message, _SMALLER)


def _by_pillow(data: bytes, kind: str, frame: int = 0) -> Picture:
    """A picture of up to 8 bits, exactly as Pillow converts it."""
    try:
        with Image.open(io.BytesIO(data), formats=(kind,)) as picture:
            if frame:
                picture.seek(frame)
            _check_size(*picture.size)
            picture.load()
            turn = _turn(picture)
            return _finished(_rgb(picture if turn is None else picture.transpose(turn)), [])
    except Image.DecompressionBombError as error:
        raise too_large("claims too many pixels", _SMALLER) from error


def _finished(pixels: NDArray[np.uint8], remarks: list[str]) -> Picture:
    return Picture(pixels, (*remarks, *few_levels(pixels)))


def _rgb(picture: Image.Image) -> NDArray[np.uint8]:
    if picture.has_transparency_data:
        layers = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), layers)
    pixels: NDArray[np.uint8] = np.asarray(picture.convert("RGB"))
    return pixels


_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _turn(picture: Image.Image) -> Image.Transpose | None:
    """What `ImageOps.exif_transpose` would do, without writing EXIF anew: that fails where a part of it is damaged."""
    try:
        return _TURNS.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return None
