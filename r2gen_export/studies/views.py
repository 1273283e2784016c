"""What is odd about the views of one study: they are averaged, so a picture that does not belong spoils the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

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
"""Rows and columns by which a picture is judged to be colour or grey."""


def view_warnings(views: Sequence[NDArray[np.uint8]]) -> tuple[str, ...]:
    """Sentences about views that may not be of one patient; none for a single one.

    Args:
        views: uint8 RGB [H, W, 3] each, of any size.
    """
    if len(views) < 2:
        return ()
    remarks = []
    if len(views) > MOST_VIEWS:
        remarks.append(f"{len(views)} views in one study, more than {MOST_VIEWS}: are they of one patient?")
    if len({_shows_colours(view) for view in views}) > 1:
        remarks.append("colour and grey views in one study")
    sizes = [view.shape[0] * view.shape[1] for view in views]
    shapes = [max(view.shape[:2]) / min(view.shape[:2]) for view in views]
    if max(sizes) / min(sizes) > SIZE_RATIO or max(shapes) / min(shapes) > SHAPE_RATIO:
        remarks.append("views of very different size or shape in one study")
    return tuple(remarks)


def _shows_colours(view: NDArray[np.uint8]) -> bool:
    """By at most `SAMPLE` x `SAMPLE` pixels of an even grid: many files with colour channels hold grey alone."""
    rows, columns = (np.linspace(0, size - 1, min(size, SAMPLE)).astype(int) for size in view.shape[:2])
    pixels = view[rows[:, None], columns].astype(np.int16)  # [<= SAMPLE, <= SAMPLE, 3]
    spread = pixels.max(axis=2) - pixels.min(axis=2)
    return bool((spread > COLOUR_LEVELS).mean() > COLOUR_SHARE)
