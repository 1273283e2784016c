"""A report as a DICOM Basic Text SR (PS3.3 A.35.1) of template TID 2000 (PS3.16)."""

from __future__ import annotations

from typing import Final

from r2gen_export.reporting import dicom_modules as modules
from r2gen_export.reporting.document import Document
from r2gen_export.reporting.sr_items import (
    REPORT_TITLE,
    Code,
    code_item,
    image_item,
    language,
    observer,
    root,
    section,
    text_item,
)

BASIC_TEXT_SR: Final = "1.2.840.10008.5.1.4.1.1.88.11"
SERIES_NUMBER: Final = 9801

CHEST_RADIOGRAPH: Final[Code] = ("399208008", "SCT", "Chest X-ray")
SUMMARY: Final[Code] = ("121111", "DCM", "Summary")
FINDINGS: Final[Code] = ("121070", "DCM", "Findings")
FINDING: Final[Code] = ("121071", "DCM", "Finding")
ILLUSTRATION: Final[Code] = ("121080", "DCM", "Best illustration of finding")


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
    modules.document_references(dataset, document)
    images = document.identity.images
    # TID 2000 says that this order is significant: procedure, language, observer, sections.
    items = [
        code_item("HAS CONCEPT MOD", ("121058", "DCM", "Procedure reported"), CHEST_RADIOGRAPH),
        language(),
        *observer(document),
        section(SUMMARY, [text_item("CONTAINS", SUMMARY, words) for words in (document.notice, *document.remarks)]),
        section(
            FINDINGS,
            [text_item("CONTAINS", FINDING, document.text), *(image_item(image, ILLUSTRATION) for image in images)],
        ),
    ]
    root(dataset, REPORT_TITLE, "2000", items)
    return modules.as_file(dataset, document)
