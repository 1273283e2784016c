"""Views that do not belong together."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from r2gen_export.studies.images import load_image
from r2gen_export.studies.views import view_warnings

UNLIKE = "views of very different size or shape in one study"
COLOUR = "colour and grey views in one study"


def picture(size: tuple[int, int], *, mode: str = "L", colour: bool = False) -> NDArray[np.uint8]:
    """Noise of a size, as a file of a mode of Pillow's is read."""
    rng = np.random.default_rng(0)
    pixels = np.repeat(rng.integers(0, 256, (size[1], size[0], 1), np.uint8), 3, axis=2)
    if colour:
        pixels[..., 0] = 255 - pixels[..., 0]
    return np.asarray(Image.fromarray(pixels).convert(mode).convert("RGB"))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (((250, 306), {}), ((306, 250), {}), ()),
        (((2500, 3056), {}), ((1024, 1250), {}), ()),
        (((250, 306), {}), ((250, 306), {"mode": "RGB"}), ()),
        (((250, 306), {"mode": "RGB"}), ((250, 306), {"mode": "P"}), ()),
        (((2500, 3056), {}), ((400, 489), {}), (UNLIKE,)),
        (((250, 306), {}), ((700, 300), {}), (UNLIKE,)),
        (((250, 306), {}), ((250, 306), {"mode": "RGB", "colour": True}), (COLOUR,)),
        (((250, 306), {"mode": "RGB", "colour": True}), ((250, 306), {"mode": "RGB", "colour": True}), ()),
    ],
    ids=str,
)
def test_what_is_unlike(first, second, expected):
    assert view_warnings([picture(size, **more) for size, more in (first, second)]) == expected


def test_jpeg(tmp_path):
    """Its grey pictures have channels that differ a little."""
    for name, colour in (("grey", False), ("colour", True)):
        Image.fromarray(picture((600, 700), colour=colour, mode="RGB")).save(tmp_path / f"{name}.jpg")
    grey, colour = (load_image(tmp_path / f"{name}.jpg") for name in ("grey", "colour"))
    assert view_warnings([grey, grey]) == ()
    assert view_warnings([grey, colour]) == (COLOUR,)
    assert view_warnings([colour]) == ()


def test_many_views():
    image = picture((40, 40))
    assert view_warnings([image] * 4) == ()
    assert view_warnings([image] * 5) == ("5 views in one study, more than 4: are they of one patient?",)
