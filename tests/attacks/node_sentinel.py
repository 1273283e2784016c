"""A radiograph with a sentinel in every attribute that names a person, a place, an order or a study."""

from __future__ import annotations

from typing import Any

from tests.serving.node_site import radiograph

SENTINEL = "ZZYZXJANE"
UID_SENTINEL = "77316831"
"""In the UIDs, which are digits."""

IDENTIFYING = (
    "PatientName", "PatientID", "IssuerOfPatientID", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName",
    "PatientAddress", "PatientTelephoneNumbers", "PatientComments", "AdditionalPatientHistory", "EthnicGroup",
    "Occupation", "MilitaryRank", "MedicalRecordLocator", "PatientReligiousPreference", "CountryOfResidence",
    "AccessionNumber", "StudyID", "StudyDescription", "SeriesDescription", "ReferringPhysicianName",
    "PerformingPhysicianName", "OperatorsName", "PhysiciansOfRecord", "NameOfPhysiciansReadingStudy",
    "RequestingPhysician", "InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName", "StationName",
    "DeviceSerialNumber", "ProtocolName", "RequestedProcedureDescription", "PerformedProcedureStepID",
    "PerformedProcedureStepDescription", "ImageComments", "AdmissionID", "CurrentPatientLocation",
)  # fmt: skip


def sentinel_radiograph(number: int, **attributes: Any) -> Any:
    study = f"1.2.826.{UID_SENTINEL}.{number}"
    return radiograph(study, side=128, **{**dict.fromkeys(IDENTIFYING, SENTINEL), **attributes})
