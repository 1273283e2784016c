"""What is odd about the views of one study: they are averaged, so a picture that does not belong spoils the report."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from PIL import Image

MOST_VIEWS: Final = 4
"""MIMIC-CXR and IU X-Ray have rarely more; twelve are twelve patients."""

SIZE_RATIO: Final = 16.0
"""Of the pixel counts of two views: 20 megapixels of a detector and 1.2 of a printed or scanned one still pass."""

SHAPE_RATIO: Final = 1.8
"""Of the long side over the short side of two views. Views of a chest are at most 1.25 long."""

COLOUR_LEVELS: Final = 40
COLOUR_SHARE: Final = 0.02
"""A picture is colour when this share of its pixels has channels that differ by so many of 255 levels."""

SAMPLE: Final = 128

MOST_PIXELS: Final = 50_000_000
"""Larger pictures are not decoded a second time for this."""


class View(NamedTuple):
    """What a header says: pixels in all, long side over short side, and whether the picture shows colours."""

    pixels: int
    shape: float
    colour: bool


def view_warnings(images: Sequence[Path]) -> tuple[str, ...]:
    """Sentences without the study's name; none for a single image. What cannot be read is left to the reader."""
    if len(images) < 2:
        return ()
    remarks = []
    if len(images) > MOST_VIEWS:
        remarks.append(f"{len(images)} views in one study, more than {MOST_VIEWS}: are they of one patient?")
    views = [view for image in images if (view := _view(image)) is not None]
    if len({view.colour for view in views}) > 1:
        remarks.append("colour and grey views in one study")
    if _ratio([view.pixels for view in views]) > SIZE_RATIO or _ratio([view.shape for view in views]) > SHAPE_RATIO:
        remarks.append("views of very different size or shape in one study")
    return tuple(remarks)


def _ratio(values: Sequence[float]) -> float:
    return max(values) / min(values) if values else 1.0


def _view(image: Path) -> View | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(image, formats=("PNG", "JPEG", "TIFF")) as picture:
                width, height = picture.size
                return View(width * height, max(width, height) / min(width, height), _shows_colours(picture))
    except Exception:
        return None


def _shows_colours(picture: Image.Image) -> bool:
    """Only pictures with colour channels are decoded, small ones where the format allows: many hold grey alone."""
    width, height = picture.size
    if picture.mode not in ("RGB", "RGBA", "P", "CMYK", "YCbCr") or width * height > MOST_PIXELS:
        return False
    picture.draft("RGB", (SAMPLE, SAMPLE))
    pixels = np.asarray(picture.convert("RGB").resize((SAMPLE, SAMPLE), Image.Resampling.NEAREST), np.int16)
    spread = pixels.max(axis=2) - pixels.min(axis=2)
    return bool((spread > COLOUR_LEVELS).mean() > COLOUR_SHARE)
