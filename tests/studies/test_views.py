"""Views that do not belong together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from r2gen_export.studies.views import view_warnings

UNLIKE = "views of very different size or shape in one study"
COLOUR = "colour and grey views in one study"


def picture(folder: Path, name: str, size: tuple[int, int], *, mode: str = "L", colour: bool = False) -> Path:
    rng = np.random.default_rng(0)
    pixels = np.repeat(rng.integers(0, 256, (size[1], size[0], 1), np.uint8), 3, axis=2)
    if colour:
        pixels[..., 0] = 255 - pixels[..., 0]
    path = folder / name
    Image.fromarray(pixels).convert(mode).save(path)
    return path


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
def test_what_is_unlike(tmp_path, first, second, expected):
    images = [picture(tmp_path, f"{at}.png", size, **more) for at, (size, more) in enumerate((first, second))]
    assert view_warnings(images) == expected


def test_jpeg_and_files_that_are_no_images(tmp_path):
    grey = picture(tmp_path, "grey.jpg", (600, 700), mode="RGB")
    colour = picture(tmp_path, "colour.jpg", (600, 700), mode="RGB", colour=True)
    (tmp_path / "text.png").write_text("text")
    assert view_warnings([grey, grey]) == ()
    assert view_warnings([grey, colour]) == (COLOUR,)
    assert view_warnings([grey, tmp_path / "text.png", tmp_path / "gone.png"]) == ()
    assert view_warnings([colour]) == ()


def test_many_views(tmp_path):
    image = picture(tmp_path, "a.png", (40, 40))
    assert view_warnings([image] * 4) == ()
    assert view_warnings([image] * 5) == ("5 views in one study, more than 4: are they of one patient?",)
