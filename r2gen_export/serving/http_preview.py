"""A picture of an image file as it is read for the model, small enough for a page. Made in the worker process."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final

from r2gen_export.studies.dicom.types import DicomSettings

PICTURE: Final = "picture"
"""What a request for a picture has as its form."""

MOST_SIDE: Final = 1024


def preview(path: Path, dicom: DicomSettings) -> bytes:
    """The picture as PNG: grey, 8 bits, at most `MOST_SIDE` pixels a side; smaller ones keep their pixels.

    It is one image and no study: a lateral view has a picture although there is no report of it alone.

    Args:
        path: an image file.
        dicom: how a DICOM file is read.

    Raises:
        R2GenError, InternalError: as `studies.images.read_image`.
    """
    from PIL import Image

    from r2gen_export.studies.images import read_image
    from r2gen_export.studies.pixels import grey_levels

    picture = Image.fromarray(grey_levels(read_image(path, "the image", dicom).pixels))
    picture.thumbnail((MOST_SIDE, MOST_SIDE))
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()
