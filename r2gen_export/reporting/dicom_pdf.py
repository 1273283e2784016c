"""A report as a PDF page in a DICOM Encapsulated PDF (PS3.3 A.45.1)."""

from __future__ import annotations

from typing import Final

from r2gen_export.reporting import dicom_modules as modules
from r2gen_export.reporting.document import TITLE, Document
from r2gen_export.reporting.patient import Patient
from r2gen_export.reporting.pdf_page import pdf_page
from r2gen_export.reporting.sr_items import REPORT_TITLE, code

ENCAPSULATED_PDF: Final = "1.2.840.10008.5.1.4.1.1.104.1"
SERIES_NUMBER: Final = 9802


def encapsulated_pdf(document: Document) -> bytes:
    """A DICOM file of SOP class Encapsulated PDF. Its page names the patient: a page of an archive must."""
    page = pdf_page(document, Patient.of(document.identity).heading())
    dataset = modules.study_modules(document)
    modules.series_modules(dataset, document, modality="DOC", number=SERIES_NUMBER)
    modules.instance_modules(dataset, document, ENCAPSULATED_PDF)
    dataset.ConversionType = "WSD"
    dataset.AcquisitionDateTime = ""
    dataset.BurnedInAnnotation = "YES"
    dataset.VerificationFlag = "UNVERIFIED"
    dataset.DocumentTitle = TITLE
    dataset.ConceptNameCodeSequence = [code(REPORT_TITLE)]
    if document.identity.images:
        dataset.SourceInstanceSequence = list(map(modules.reference, document.identity.images))
    if predecessors := modules.predecessors(document):
        dataset.PredecessorDocumentsSequence = predecessors
    dataset.MIMETypeOfEncapsulatedDocument = "application/pdf"
    dataset.EncapsulatedDocumentLength = len(page)
    dataset.EncapsulatedDocument = page + b"\0" * (len(page) % 2)
    return modules.as_file(dataset, document)
