"""What a written form of a report needs beside the report itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from r2gen_export.studies.identity import Identity


@dataclass(frozen=True, repr=False)
class Source:
    """The study a report is about.

    Attributes:
        identity: None when the images did not come from DICOM files.
        pictures: the views as pixels [H, W] uint8, 255 the brightest, in their order; for forms that show them.
        bundle_sha256: hash over the bundle's files as 64 hex digits.
    """

    identity: Identity | None
    pictures: tuple[NDArray[np.uint8], ...]
    bundle_sha256: str
