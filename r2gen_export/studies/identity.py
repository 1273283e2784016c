"""Whom a study belongs to. Only the writers of `reporting` read it; it is never printed or logged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class SourceImage:
    """The DICOM instance a view was read from.

    `header_sha256`: over its UIDs and whom it belongs to, as hex, by which a file that was replaced after its header
    was read is told; empty where nobody compares.
    """

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    header_sha256: str = field(default="", compare=False)


@dataclass(frozen=True, repr=False)
class Identity:
    """A study as DICOM names it.

    Attributes:
        attributes: attributes of the patient, study and order of the study's first image, in the DICOM JSON Model
            (PS3.18 annex F, as `pydicom.Dataset.to_json_dict` gives it), text decoded. Its `repr` is empty on purpose.
        character_set: the first image's SpecificCharacterSet; empty when it has none.
        images: one for each view, in the order of the views.
    """

    attributes: Mapping[str, Any] = field(default_factory=dict)
    character_set: tuple[str, ...] = ()
    images: tuple[SourceImage, ...] = ()

    def __repr__(self) -> str:
        return "Identity()"
