"""What reading a DICOM file takes and gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from r2gen_export.studies.identity import SourceImage

Polarity = Literal["auto", "shape", "photometric"]


@dataclass(frozen=True)
class DicomSettings:
    """How DICOM files are read.

    Attributes:
        polarity: which attribute says that high values are dark: PresentationLUTShape where it is there, else
            PhotometricInterpretation (`auto`); or only one of them.
        force: read what is refused otherwise (modality, body part, for processing, ...), where there are pixels.
    """

    polarity: Polarity = "auto"
    force: bool = False


@dataclass(frozen=True, repr=False)
class DicomHeader:
    """What the header of a DICOM file says, without its pixels.

    Attributes:
        source: the instance and its series.
        study_instance_uid: the study, empty where it is absent. `patient` tells patients apart (id, issuer, name, birth
            date as one text); both identify a patient and are not for messages.
        modality: CR, DX, ...; empty where it is absent.
        view: by ViewPosition and ViewCodeSequence.
        series_number, instance_number: None where absent or no number.
        problem: why no report must be written for it, empty when nothing is wrong. It continues a sentence that begins
            with the image: "is in colour". Never names the patient.
        warnings: what is odd about it, sentences without the subject.
        attributes, character_set: as in `Identity`.
        problem_code: `R2G-DICOM-REFUSED` (`force` reads it all the same), or `R2G-DICOM-PIXELS` without usable pixels.
    """

    source: SourceImage
    study_instance_uid: str
    patient: str
    modality: str
    view: Literal["frontal", "lateral", "unknown"]
    series_number: int | None
    instance_number: int | None
    problem: str
    warnings: tuple[str, ...]
    attributes: Mapping[str, Any]
    character_set: tuple[str, ...]
    problem_code: str = "R2G-DICOM-REFUSED"


@dataclass(frozen=True)
class DicomImage:
    """Pixels [H, W] uint8 of a DICOM file, 255 the brightest, as a viewer shows them.

    Attributes:
        sha256: of the file's bytes, as hex.
        warnings: what is odd about the image, in words that name no patient.
        header_sha256: as in `SourceImage`, of the header these pixels came with.
    """

    pixels: NDArray[np.uint8]
    sha256: str
    warnings: tuple[str, ...]
    header_sha256: str = ""
