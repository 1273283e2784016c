"""The attributes of patient, study and order that a result in DICOM repeats, in the DICOM JSON Model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from r2gen_export.studies.dicom.values import text, texts
from r2gen_export.studies.refusal import AGAIN, RefusedError

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

MOST_CHARACTERS: Final = 1 << 20
"""Of all values together; a real file has 2 kB."""


def identity_attributes(dataset: Dataset, remarks: list[str]) -> dict[str, Any]:
    """Those of `KEYWORDS` that the file has, with text decoded by its SpecificCharacterSet.

    A value that cannot be read is left out, and text that its character set does not fit is decoded as well as it can
    be; `remarks` says so.

    Raises:
        RefusedError: `R2G-DICOM-LIMIT` when they are longer than `MOST_CHARACTERS`.
    """
    from pydicom.datadict import tag_for_keyword

    result: dict[str, Any] = {}
    shown = ""
    unreadable = False
    for keyword in KEYWORDS:
        tag = tag_for_keyword(keyword)
        try:
            if tag is None or tag not in dataset:
                continue
            value = dataset[tag].to_json_dict(None, 0)
            shown += str(value)
        except MemoryError:
            raise
        except Exception:
            unreadable = True
            continue
        if len(shown) > MOST_CHARACTERS:
            raise RefusedError("R2G-DICOM-LIMIT", "has patient and study attributes of more than 1 MB", AGAIN)
        result[f"{tag:08X}"] = value
    if unreadable:
        remarks.append("some attributes of its patient, study or order cannot be read and were left out")
    if not _fits(shown, character_set(dataset)):
        remarks.append("its text does not fit its character set: names may be wrong")
    return result


def _fits(decoded: str, terms: tuple[str, ...]) -> bool:
    """Whether text was decoded without loss. pydicom replaces what it cannot decode, and takes Latin-1 without a set.

    `decoded` is the `str` of containers, in which ESC is escaped: an escape sequence that remained is one nobody knows.
    """
    from pydicom.charset import python_encoding

    if any(term not in python_encoding for term in terms) or "\ufffd" in decoded or "\\x1b" in decoded:
        return False
    return decoded.isascii() or any(term not in ("", "ISO_IR 6", "ISO 2022 IR 6") for term in terms)


def character_set(dataset: Dataset) -> tuple[str, ...]:
    """SpecificCharacterSet as in the file."""
    return tuple(value[:64] for value in texts(dataset, "SpecificCharacterSet"))


def patient_text(dataset: Dataset) -> str:
    """What tells patients apart: id, issuer, name and birth date."""
    return "\n".join(
        text(dataset, key) for key in ("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate")
    )
