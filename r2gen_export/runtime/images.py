"""Image files to pixel values, as the vision encoder's Hugging Face processor makes them; Pillow and numpy only.

Follows `ViTImageProcessor` of transformers 4.57 (`image_processing_vit.py`), which Swin uses: RGB, resize by Pillow's
filter on 8-bit grey levels, times `rescale_factor`, minus mean, over standard deviation.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from r2gen_export.bundle import ImageSpec
from r2gen_export.errors import R2GenError

FORMATS: Final = ("PNG", "JPEG", "TIFF")
MAX_PIXELS: Final = 100_000_000
"""Largest picture that is decoded. Detectors give up to 20 megapixels; a forged header can claim 10,000."""

DEEP_MODES: Final = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")
"""Pillow's modes with more than 8 bits per grey level."""


def load_image(path: Path) -> NDArray[np.uint8]:
    """Decode one image file.

    PNG, JPEG and TIFF; 1, 8 and 16 bit, grey, RGB, palette, CMYK; EXIF orientation is applied, transparency is laid
    over black. Of several pages the first is taken. 16-bit grey is divided by 257 (65535 becomes 255) when it uses the
    upper half of its range, else stretched from its own least to its own largest value: radiographs come with 10 to 14
    used bits in 16, and a division would make those nearly black. Floating-point and 32-bit grey is stretched too.

    Args:
        path: the file.

    Returns:
        uint8 RGB [H, W, 3]; grey images have three equal channels.

    Raises:
        R2GenError: `R2G-IMAGE-MISSING`, `R2G-IMAGE-FORMAT`, `R2G-IMAGE-TRUNCATED`, `R2G-IMAGE-SIZE`, `R2G-IMAGE-BLANK`.
    """
    if path.exists() and not path.is_file():
        # A pipe would wait for a writer for ever.
        raise R2GenError("R2G-IMAGE-FORMAT", f"{path} is not a regular file", "name an image file")
    try:
        # Pillow's own guard warns or raises at another size; the header is checked here, before any pixel is decoded.
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")
            with Image.open(file, formats=FORMATS) as picture:
                _check_size(path, picture)
                return _decode(path, picture)
    except FileNotFoundError as error:
        raise R2GenError("R2G-IMAGE-MISSING", f"no file {path}", "check the path") from error
    except (UnidentifiedImageError, IsADirectoryError) as error:
        message = f"{path} is not a PNG, JPEG or TIFF image"
        raise R2GenError("R2G-IMAGE-FORMAT", message, "convert it to PNG first") from error
    except Image.DecompressionBombError as error:
        raise R2GenError("R2G-IMAGE-SIZE", f"{path} claims too many pixels", _SMALLER) from error
    except PermissionError as error:
        raise R2GenError("R2G-IMAGE-MISSING", f"{path} may not be read", "check its permissions") from error


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


def load_views(paths: Sequence[Path], spec: ImageSpec) -> NDArray[np.float32]:
    """`load_image` and `preprocess` for the views of one study: float32 [V, 3, spec.height, spec.width]."""
    return preprocess([load_image(path) for path in paths], spec)


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


def _check_size(path: Path, picture: Image.Image) -> None:
    width, height = picture.size
    if width * height > MAX_PIXELS:
        message = f"{path} claims {width} x {height} pixels, more than {MAX_PIXELS // 1_000_000} megapixels"
        raise R2GenError("R2G-IMAGE-SIZE", message, _SMALLER)


def _decode(path: Path, picture: Image.Image) -> NDArray[np.uint8]:
    try:
        picture.load()
        upright = ImageOps.exif_transpose(picture)
        pixels = _rgb(upright)
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, Image.DecompressionBombError) as error:
        # Pillow does not tell broken from truncated; the header was that of an image, so it is cut or damaged.
        message = f"{path} begins as {picture.format} but its pixels cannot be read: it is truncated or damaged"
        raise R2GenError("R2G-IMAGE-TRUNCATED", message, "copy it again from its source") from error
    check_pixels(pixels, str(path))
    return pixels


def _rgb(picture: Image.Image) -> NDArray[np.uint8]:
    if picture.mode in DEEP_MODES:
        grey = _eight_bits(np.asarray(picture))
        return np.repeat(grey[:, :, None], 3, axis=2)
    if picture.has_transparency_data:
        layers = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), layers)
    pixels: NDArray[np.uint8] = np.asarray(picture.convert("RGB"))
    return pixels


def _eight_bits(levels: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Grey levels of more than 8 bits to uint8, as `load_image` says."""
    values = levels.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("NaN or infinity")
    least, most = values.min(), values.max()
    if least >= 0 and 32768 <= most <= 65535:
        least, most = 0.0, 65535.0
    scaled = (values - least) * (255.0 / max(most - least, 1e-30))
    rounded: NDArray[np.uint8] = np.rint(scaled).astype(np.uint8)
    return rounded
