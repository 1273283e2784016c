"""The attributes of patient, study and order that a result in DICOM repeats, in the DICOM JSON Model."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Final

from r2gen_export.studies.dicom.values import text, texts
from r2gen_export.studies.refusal import RefusedError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_MODULES: Final = """
    # Patient module (PS3.3 C.7.1.1)
    PatientName PatientID IssuerOfPatientID TypeOfPatientID IssuerOfPatientIDQualifiersSequence PatientBirthDate
    PatientBirthTime PatientSex OtherPatientIDsSequence OtherPatientNames EthnicGroup QualityControlSubject
    PatientIdentityRemoved DeidentificationMethod DeidentificationMethodCodeSequence
    # Study module (C.7.2.1) and patient study module (C.7.2.2)
    StudyInstanceUID StudyDate StudyTime StudyID StudyDescription AccessionNumber IssuerOfAccessionNumberSequence
    ReferringPhysicianName ReferringPhysicianIdentificationSequence PhysiciansOfRecord ProcedureCodeSequence
    ReferencedStudySequence PatientAge PatientSize PatientWeight AdmissionID IssuerOfAdmissionIDSequence
    # The order
    RequestAttributesSequence ReferencedRequestSequence ReferencedPerformedProcedureStepSequence RequestingPhysician
    RequestedProcedureID RequestedProcedureDescription RequestedProcedureCodeSequence
    PlacerOrderNumberImagingServiceRequest FillerOrderNumberImagingServiceRequest
    InstitutionName TimezoneOffsetFromUTC
"""
KEYWORDS: Final = tuple(
    word for line in _MODULES.splitlines() if not line.lstrip().startswith("#") for word in line.split()
)
"""Attributes of `Identity.attributes`."""

MOST_BYTES: Final = 1 << 20
"""Of all values together as JSON; a real file has 2 kB."""


def identity_attributes(dataset: Dataset, remarks: list[str]) -> dict[str, Any]:
    """Those of `KEYWORDS` that the file has, with text decoded by its SpecificCharacterSet.

    A value that cannot be read is left out, and text that its character set does not fit is decoded as well as it can
    be; `remarks` says so.

    Raises:
        RefusedError: `R2G-DICOM-LIMIT` when they are larger than `MOST_BYTES`.
    """
    from pydicom.datadict import tag_for_keyword

    result: dict[str, Any] = {}
    size = 0
    unreadable = False
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for keyword in KEYWORDS:
            tag = tag_for_keyword(keyword)
            try:
                if tag is None or tag not in dataset:
                    continue
                element = dataset[tag]
                value = element.to_json_dict(None, 0)
                size += len(repr(value))
            except MemoryError:
                raise
            except Exception:
                unreadable = True
                continue
            if size > MOST_BYTES:
                raise RefusedError("R2G-DICOM-LIMIT", "has patient and study attributes of more than 1 MB", "")
            result[f"{tag:08X}"] = value
    if unreadable:
        remarks.append("some attributes of its patient, study or order cannot be read and were left out")
    if any("ncoding" in str(warning.message) or "decode" in str(warning.message) for warning in said):
        remarks.append("its text does not fit its character set: names may be wrong")
    return result


def character_set(dataset: Dataset) -> tuple[str, ...]:
    """SpecificCharacterSet as in the file."""
    return tuple(value[:64] for value in texts(dataset, "SpecificCharacterSet"))


def patient_text(dataset: Dataset) -> str:
    """What tells patients apart: id, issuer, name and birth date."""
    return "\n".join(
        text(dataset, key) for key in ("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate")
    )
