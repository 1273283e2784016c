"""Modules that our DICOM documents share: patient, study, order, equipment, references (PS3.3 annex C).

`render` calls them with pydicom's checks off (`unvalidated`): values of the images are copied as they are.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final

from r2gen_export.reporting.document import Document, derived_uid
from r2gen_export.reporting.predecessor import MANUFACTURER
from r2gen_export.studies.identity import SourceImage

if TYPE_CHECKING:
    from pydicom import DataElement, Dataset

EMPTY: Final = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
"""Type 2 attributes of patient and study: empty where the images do not have them."""

COPIED: Final = (
    *EMPTY,
    "StudyInstanceUID", "TimezoneOffsetFromUTC",
    "IssuerOfPatientID", "IssuerOfPatientIDQualifiersSequence", "TypeOfPatientID", "OtherPatientIDsSequence",
    "OtherPatientNames",
    "PatientBirthTime", "EthnicGroup", "QualityControlSubject", "PatientIdentityRemoved", "DeidentificationMethod",
    "DeidentificationMethodCodeSequence", "LongitudinalTemporalInformationModified",
    "PatientSpeciesDescription", "PatientSpeciesCodeSequence", "PatientBreedDescription", "PatientBreedCodeSequence",
    "BreedRegistrationSequence", "PatientSexNeutered", "ResponsiblePerson", "ResponsiblePersonRole",
    "ResponsibleOrganization",
    "StudyDescription", "IssuerOfAccessionNumberSequence", "PhysiciansOfRecord", "PatientAge",
    "AdmissionID", "IssuerOfAdmissionIDSequence",
)  # fmt: skip
"""What is taken from the images as it is. An archive files another PatientID, or another issuer, as another patient."""

CODE: Final = ("CodeValue", "CodingSchemeDesignator", "CodeMeaning", "CodingSchemeVersion")
"""A code; the last one may be absent."""

ORDER: Final = (
    "AccessionNumber", "PlacerOrderNumberImagingServiceRequest", "FillerOrderNumberImagingServiceRequest",
    "RequestedProcedureID", "RequestedProcedureDescription", "RequestedProcedureCodeSequence",
)  # fmt: skip
"""Type 2 attributes of an item of ReferencedRequestSequence."""


def study_modules(document: Document) -> Dataset:
    """A dataset with the patient's and the study's attributes, as the images have them; the text is Unicode."""
    dataset = _copied(document, COPIED)
    # The text of items is Unicode too by now; a character set of their own would be wrong.
    dataset.walk(_drop_character_set)
    for keyword in EMPTY:
        if keyword not in dataset:
            setattr(dataset, keyword, "")
    dataset.SpecificCharacterSet = "ISO_IR 192"
    return dataset


def _copied(document: Document, keywords: Sequence[str]) -> Dataset:
    """Those of the attributes that have a value."""
    from pydicom import Dataset
    from pydicom.datadict import tag_for_keyword

    tags = {f"{tag_for_keyword(keyword):08X}" for keyword in keywords}
    named = document.identity.attributes.items()
    values = {tag: value for tag, value in named if tag in tags and any(value.get("Value") or [])}
    return Dataset.from_json(values)


def _drop_character_set(dataset: Dataset, element: DataElement) -> None:
    if element.keyword == "SpecificCharacterSet":
        del dataset[element.tag]


def series_modules(dataset: Dataset, document: Document, *, modality: str, number: int) -> None:
    """Series and equipment: the software as the maker of the document, the bundle as its serial number."""
    report = document.report
    dataset.Modality = modality
    dataset.SeriesInstanceUID = document.series_uid()
    dataset.SeriesNumber = number
    dataset.SeriesDescription = "AI draft report, research use only"
    dataset.Manufacturer = MANUFACTURER
    dataset.ManufacturerModelName = short(report.model_id)
    dataset.DeviceSerialNumber = short(document.source.bundle_sha256)
    dataset.SoftwareVersions = [short(document.software), short(f"semantics {report.semantics}")]
    processing = item_of(CodeValue="109102", CodingSchemeDesignator="DCM", CodeMeaning="Processing Equipment")
    equipment = item_of(
        Manufacturer=MANUFACTURER,
        ManufacturerModelName=short(report.model_id),
        DeviceSerialNumber=short(document.source.bundle_sha256),
        SoftwareVersions=[short(document.software), short(f"semantics {report.semantics}")],
        ContributionDateTime=date_time(document.created()),
        ContributionDescription=document.settings[:1024],
        PurposeOfReferenceCodeSequence=[processing],
    )
    dataset.ContributingEquipmentSequence = [equipment]


def instance_modules(dataset: Dataset, document: Document, sop_class: str) -> None:
    """SOP common, instance number, content date and time."""
    dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = document.instance_uid()
    dataset.InstanceNumber = document.revision
    created = document.created()
    dataset.ContentDate = f"{created:%Y%m%d}"
    dataset.ContentTime = f"{created:%H%M%S}"


def document_references(dataset: Dataset, document: Document) -> None:
    """What a document of the SR family refers to: the order, the images, the document it replaces."""
    if orders := requests(document):
        dataset.ReferencedRequestSequence = orders
    if images := evidence(document.identity.images, document.study_uid):
        dataset.CurrentRequestedProcedureEvidenceSequence = images
    if earlier := predecessors(document):
        dataset.PredecessorDocumentsSequence = earlier


def requests(document: Document) -> list[Dataset]:
    """ReferencedRequestSequence: the order the images name, in an item; empty when they name none."""
    from pydicom import Dataset

    top = _copied(document, (*ORDER, "RequestAttributesSequence"))
    orders = list(top.get("RequestAttributesSequence") or [Dataset()])
    items = [_request(order, top, document.study_uid) for order in orders]
    return [item for item in items if any(item[keyword].value for keyword in ORDER)]


def _request(request: Dataset, top: Dataset, study_uid: str) -> Dataset:
    item = item_of(StudyInstanceUID=study_uid, ReferencedStudySequence=[])
    for keyword in ORDER:
        holder = request if request.get(keyword) else top
        if keyword.endswith("CodeSequence"):
            setattr(item, keyword, _codes(holder.get(keyword)))
        elif holder.get(keyword):
            setattr(item, keyword, holder[keyword].value)
        else:
            setattr(item, keyword, [] if keyword.endswith("Sequence") else "")
    return item


def _codes(items: Sequence[Dataset] | None) -> list[Dataset]:
    """The codes among the items of a sequence, without what does not belong to a code."""
    codes = []
    for item in items or ():
        values = {keyword: str(item.get(keyword) or "") for keyword in CODE}
        if all(values[keyword] for keyword in CODE[:3]):
            codes.append(item_of(**{keyword: value for keyword, value in values.items() if value}))
    return codes


def evidence(images: Iterable[SourceImage], study_uid: str) -> list[Dataset]:
    """CurrentRequestedProcedureEvidenceSequence: the images, by series."""
    by_series: dict[str, list[Dataset]] = {}
    for image in images:
        by_series.setdefault(image.series_instance_uid, []).append(reference(image))
    series = [item_of(SeriesInstanceUID=uid, ReferencedSOPSequence=references) for uid, references in by_series.items()]
    return [item_of(StudyInstanceUID=study_uid, ReferencedSeriesSequence=series)] if series else []


def predecessors(document: Document) -> list[Dataset]:
    """PredecessorDocumentsSequence; empty for a first result."""
    if document.replaces is None:
        return []
    earlier = document.replaces
    image = SourceImage(earlier.sop_class_uid, earlier.sop_instance_uid, earlier.series_instance_uid)
    return evidence([image], earlier.study_instance_uid)


def reference(image: SourceImage) -> Dataset:
    """An item that names an instance."""
    return item_of(ReferencedSOPClassUID=image.sop_class_uid, ReferencedSOPInstanceUID=image.sop_instance_uid)


def date_time(moment: datetime) -> str:
    """A DT value with its offset from UTC."""
    return f"{moment:%Y%m%d%H%M%S%z}"


def short(text: str) -> str:
    """A value of VR LO: at most 64 characters, no backslash, which would separate values."""
    return " ".join(text.replace("\\", "/").split())[:64].strip() or "unknown"


def as_file(dataset: Dataset, document: Document) -> bytes:
    """A DICOM file (PS3.10), explicit VR little endian."""
    from pydicom import dcmwrite
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(derived_uid("implementation", "r2gen"))
    meta.ImplementationVersionName = f"R2GEN_{document.report.r2gen_version}"[:16]
    dataset.file_meta = meta
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def item_of(**attributes: str | int | Sequence[str] | list[Dataset]) -> Dataset:
    """An item of a sequence, with attributes by their keywords."""
    from pydicom import Dataset

    item = Dataset()
    for keyword, value in attributes.items():
        setattr(item, keyword, value)
    return item
