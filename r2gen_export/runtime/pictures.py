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
from r2gen_export.studies.dicom.types import DicomSettings
from r2gen_export.studies.dicom_studies import LATERAL_BY_FORCE, lateral_only, mixture
from r2gen_export.studies.file_kinds import DICOM, argument_kind
from r2gen_export.studies.identity import SourceImage
from r2gen_export.studies.images import Picture, check_pixels, read_image, view_of
from r2gen_export.studies.study import Study
from r2gen_export.studies.views import view_warnings

Image: TypeAlias = "str | os.PathLike[str] | NDArray[np.uint8]"
"""A file, or pixels uint8 [H, W] grey or [H, W, 3] RGB."""
Images: TypeAlias = "Image | Sequence[Image] | Study"
"""One image, the views of one study, or a study as `collect_studies` gives it."""


@dataclass(frozen=True)
class Pictures:
    """The decoded views of one study, what is odd about them ("view 2: ..."), and the milliseconds of reading them."""

    pictures: list[Picture]
    warnings: tuple[str, ...]
    read_ms: float


def read_pictures(images: Images, subject: str = "", dicom: DicomSettings | None = None) -> Pictures:
    """Decode the views of a study.

    Args:
        images: one image or the views of one study. DICOM files among them that are not in a `Study` are checked to be
            of one study and patient, with a frontal view; they stay in the given order.
        subject: what errors call the study ("study 3"); they give the view by its number, counted from 1.
        dicom: how DICOM files are read; `DicomSettings()` when None.

    Raises:
        R2GenError: `R2G-IMAGE-*`, `R2G-DICOM-*`, `R2G-DATA-EMPTY`, `R2G-RESOURCE-MEMORY`, `R2G-DEPENDENCY-MISSING`.
        InternalError: anything else that went wrong.
    """
    start = perf_counter()
    settings = dicom or DicomSettings()
    warnings: tuple[str, ...] = ()
    views: list[Image]
    sources: tuple[SourceImage, ...] = ()
    if isinstance(images, Study):
        views, warnings = list(images.readable_images(subject)), images.warnings
        sources = images.identity.images if images.identity is not None else ()
    else:
        views = [images] if isinstance(images, (str, os.PathLike, np.ndarray)) else list(images)
    # Files with the suffix of another format have not been looked into when the studies were collected.
    if any(map(_is_dicom, views[len(sources) :])):
        warnings += _check_dicom(views, subject, settings)
    if not views:
        raise R2GenError("R2G-DATA-EMPTY", f"{subject or 'the study'} has no images", "give at least one image")
    pictures = [_picture(view, view_of(subject, number), settings) for number, view in enumerate(views, start=1)]
    _check_sources(pictures, sources, subject)
    remarks = [f"view {number}: {remark}" for number, view in enumerate(pictures, 1) for remark in view.warnings]
    unlike = view_warnings([picture.pixels for picture in pictures])
    return Pictures(pictures, (*warnings, *remarks, *unlike), (perf_counter() - start) * 1000)


def _check_sources(pictures: Sequence[Picture], sources: Sequence[SourceImage], subject: str) -> None:
    """Refuse files that were replaced since their headers were read: the report would be filed under another patient.

    Args:
        sources: of the first of the pictures, in their order.
    """
    for number, (picture, source) in enumerate(zip(pictures, sources, strict=False), start=1):
        if source.header_sha256 not in ("", picture.header_sha256):
            message = f"{view_of(subject, number)} changed after its header was read"
            raise R2GenError("R2G-IMAGE-FORMAT", message, "run the command again")


def _is_dicom(view: Image) -> bool:
    return isinstance(view, (str, os.PathLike)) and argument_kind(Path(view)) == DICOM


def _check_dicom(views: Sequence[Image], subject: str, settings: DicomSettings) -> tuple[str, ...]:
    """Refuse DICOM files that are not one study; gives warnings about it."""
    files = {number: Path(view) for number, view in enumerate(views, 1) if _is_dicom(view)}  # type: ignore[arg-type]
    from r2gen_export.studies.dicom.reader import read_header

    headers = [read_header(path, view_of(subject, number), settings) for number, path in files.items()]
    lateral = len(files) == len(views) and all(header.view == "lateral" for header in headers)
    refusal = mixture(headers) or (lateral_only(settings) if lateral else None)
    if refusal is not None:
        raise refusal.about(subject) if subject else refusal
    return (LATERAL_BY_FORCE,) if lateral else ()


def _picture(image: Image, subject: str, settings: DicomSettings) -> Picture:
    if not isinstance(image, np.ndarray):
        try:
            path = Path(image)
        except TypeError as error:  # its text shows what was given
            raise InternalError(f"{subject} is of type {type(image).__name__}, expected a path or an array") from error
        return read_image(path, subject, settings)
    pixels: NDArray[np.uint8] = np.repeat(image[:, :, None], 3, axis=2) if image.ndim == 2 else image
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise R2GenError(
            "R2G-IMAGE-FORMAT",
            f"{subject} is an array of {image.dtype} {list(image.shape)}, expected uint8 [H, W] or [H, W, 3]",
            "convert it first",
        )
    check_pixels(pixels, subject)
    return Picture(pixels, (), hashlib.sha256(image.tobytes()).hexdigest())
