"""The images of one study, files or arrays, as decoded pictures."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from r2gen_export.errors import InternalError, R2GenError
from r2gen_export.studies.images import Picture, check_pixels, read_image, view_of

Image: TypeAlias = "str | os.PathLike[str] | NDArray[np.uint8]"
"""A file, or pixels uint8 [H, W] grey or [H, W, 3] RGB."""
Images: TypeAlias = "Image | Sequence[Image]"
"""One image, or the views of one study."""


@dataclass(frozen=True)
class Pictures:
    """The decoded views of one study, and the milliseconds that reading them took."""

    pictures: list[Picture]
    read_ms: float


def read_pictures(images: Images, subject: str = "") -> Pictures:
    """Decode the views of a study.

    Args:
        images: one image or the views of one study.
        subject: what errors call the study ("study 3"); they give the view by its number, counted from 1.

    Raises:
        R2GenError: `R2G-IMAGE-*`, `R2G-DATA-EMPTY`, `R2G-RESOURCE-MEMORY`.
        InternalError: anything else that went wrong.
    """
    start = perf_counter()
    views = [images] if isinstance(images, (str, os.PathLike, np.ndarray)) else list(images)
    if not views:
        raise R2GenError("R2G-DATA-EMPTY", f"{subject or 'the study'} has no images", "give at least one image")
    pictures = [_picture(view, view_of(subject, number)) for number, view in enumerate(views, start=1)]
    return Pictures(pictures, (perf_counter() - start) * 1000)


def _picture(image: Image, subject: str) -> Picture:
    if not isinstance(image, np.ndarray):
        try:
            path = Path(image)
        except TypeError as error:  # its text shows what was given
            raise InternalError(f"{subject} is of type {type(image).__name__}, expected a path or an array") from error
        return read_image(path, subject)
    pixels: NDArray[np.uint8] = np.repeat(image[:, :, None], 3, axis=2) if image.ndim == 2 else image
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise R2GenError(
            "R2G-IMAGE-FORMAT",
            f"{subject} is an array of {image.dtype} {list(image.shape)}, expected uint8 [H, W] or [H, W, 3]",
            "convert it first",
        )
    check_pixels(pixels, subject)
    return Picture(pixels, (), hashlib.sha256(image.tobytes()).hexdigest())
