"""A report as a DICOM Basic Text SR (PS3.3 A.35.1) of template TID 2000 (PS3.16)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from r2gen_export.reporting import dicom_modules as modules
from r2gen_export.reporting.dicom_modules import MANUFACTURER, code
from r2gen_export.reporting.document import Document

if TYPE_CHECKING:
    from pydicom import Dataset

BASIC_TEXT_SR: Final = "1.2.840.10008.5.1.4.1.1.88.11"
SERIES_NUMBER: Final = 9801

REPORT_TITLE: Final = ("18748-4", "LN", "Diagnostic Imaging Report")
CHEST_RADIOGRAPH: Final = ("399208008", "SCT", "Chest X-ray")


def structured_report(document: Document) -> bytes:
    """A DICOM file of SOP class Basic Text SR.

    The notice and the warnings are the first section, the text and the images the second. The document says
    PRELIMINARY, PARTIAL (no radiologist has read the images) and UNVERIFIED.
    """
    dataset = modules.study_modules(document)
    modules.series_modules(dataset, document, modality="SR", number=SERIES_NUMBER)
    modules.instance_modules(dataset, document, BASIC_TEXT_SR)
    dataset.ReferencedPerformedProcedureStepSequence = []
    dataset.PerformedProcedureCodeSequence = []
    dataset.PreliminaryFlag = "PRELIMINARY"
    dataset.CompletionFlag = "PARTIAL"
    dataset.CompletionFlagDescription = "AI draft, not read by a radiologist"
    dataset.VerificationFlag = "UNVERIFIED"
    dataset.ContentQualification = "RESEARCH"
    if requests := modules.requests(document):
        dataset.ReferencedRequestSequence = requests
    if document.identity.images:
        dataset.CurrentRequestedProcedureEvidenceSequence = modules.evidence(
            document.identity.images, document.study_uid
        )
    if predecessors := modules.predecessors(document):
        dataset.PredecessorDocumentsSequence = predecessors
    _root(dataset, document)
    return modules.as_file(dataset, document)


def _root(dataset: Dataset, document: Document) -> None:
    """The root container. The order of the items is significant: procedure, language, observer, sections."""
    dataset.ValueType = "CONTAINER"
    dataset.ConceptNameCodeSequence = [code(*REPORT_TITLE)]
    dataset.ContinuityOfContent = "SEPARATE"
    dataset.ContentTemplateSequence = [modules.item_of(MappingResource="DCMR", TemplateIdentifier="2000")]
    findings = [text_item("CONTAINS", ("121071", "DCM", "Finding"), document.text)]
    findings += [
        _image(image_reference, ("121080", "DCM", "Best illustration of finding"))
        for image_reference in map(modules.reference, document.identity.images)
    ]
    summary = ("121111", "DCM", "Summary")
    dataset.ContentSequence = [
        _coded("HAS CONCEPT MOD", ("121058", "DCM", "Procedure reported"), CHEST_RADIOGRAPH),
        language(),
        *observer(document),
        _section(summary, [text_item("CONTAINS", summary, words) for words in (document.notice, *document.remarks)]),
        _section(("121070", "DCM", "Findings"), findings),
    ]


def language() -> Dataset:
    """The language of the text (TID 1204)."""
    return _coded(
        "HAS CONCEPT MOD",
        ("121049", "DCM", "Language of Content Item and Descendants"),
        ("en", "RFC5646", "English"),
    )


def observer(document: Document) -> list[Dataset]:
    """The device that observed (TID 1002, 1004): the bundle, as r2gen ran it."""
    report = document.report
    uid = _content_item("HAS OBS CONTEXT", "UIDREF", ("121012", "DCM", "Device Observer UID"))
    uid.UID = document.device_uid()
    named = (
        (("121013", "DCM", "Device Observer Name"), f"{document.software} {document.settings}"),
        (("121014", "DCM", "Device Observer Manufacturer"), MANUFACTURER),
        (("121015", "DCM", "Device Observer Model Name"), report.model_id),
        (("121016", "DCM", "Device Observer Serial Number"), f"sha256:{document.source.bundle_sha256}"),
    )
    return [
        _coded("HAS OBS CONTEXT", ("121005", "DCM", "Observer Type"), ("121007", "DCM", "Device")),
        uid,
        *(text_item("HAS OBS CONTEXT", concept, value) for concept, value in named),
    ]


def text_item(relationship: str, concept: tuple[str, str, str], words: str) -> Dataset:
    """A TEXT item; lines end as PS3.5 6.1.3 wants it."""
    item = _content_item(relationship, "TEXT", concept)
    item.TextValue = words.strip().replace("\n", "\r\n") or "(empty)"
    return item


def _section(concept: tuple[str, str, str], items: list[Dataset]) -> Dataset:
    section = _content_item("CONTAINS", "CONTAINER", concept)
    section.ContinuityOfContent = "SEPARATE"
    section.ContentSequence = items
    return section


def _coded(relationship: str, concept: tuple[str, str, str], value: tuple[str, str, str]) -> Dataset:
    item = _content_item(relationship, "CODE", concept)
    item.ConceptCodeSequence = [code(*value)]
    return item


def _image(reference: Dataset, concept: tuple[str, str, str]) -> Dataset:
    item = _content_item("CONTAINS", "IMAGE", concept)
    item.ReferencedSOPSequence = [reference]
    return item


def _content_item(relationship: str, value_type: str, concept: tuple[str, str, str]) -> Dataset:
    return modules.item_of(
        RelationshipType=relationship, ValueType=value_type, ConceptNameCodeSequence=[code(*concept)]
    )
