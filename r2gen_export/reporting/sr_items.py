"""Content items of structured reports (PS3.3 C.17.3), and those that all of ours share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from r2gen_export.reporting.dicom_modules import item_of, reference
from r2gen_export.reporting.document import Document
from r2gen_export.reporting.predecessor import MANUFACTURER
from r2gen_export.studies.identity import SourceImage

if TYPE_CHECKING:
    from pydicom import Dataset

Code: TypeAlias = tuple[str, str, str]
"""Code value, coding scheme, meaning."""

REPORT_TITLE: Final[Code] = ("18748-4", "LN", "Diagnostic Imaging Report")


def code(value: Code) -> Dataset:
    """An item of a code sequence."""
    return item_of(CodeValue=value[0], CodingSchemeDesignator=value[1], CodeMeaning=value[2])


def root(dataset: Dataset, title: Code, template: str, items: list[Dataset]) -> None:
    """Make a dataset the root container of a document of a DICOM template."""
    dataset.ValueType = "CONTAINER"
    dataset.ConceptNameCodeSequence = [code(title)]
    dataset.ContinuityOfContent = "SEPARATE"
    dataset.ContentTemplateSequence = [item_of(MappingResource="DCMR", TemplateIdentifier=template)]
    dataset.ContentSequence = items


def text_item(relationship: str, concept: Code, words: str) -> Dataset:
    """A TEXT item; its lines end with CR LF (PS3.5 6.1.3)."""
    item = _item(relationship, "TEXT", concept)
    item.TextValue = words.strip().replace("\n", "\r\n") or "(empty)"
    return item


def code_item(relationship: str, concept: Code, value: Code) -> Dataset:
    """A CODE item."""
    item = _item(relationship, "CODE", concept)
    item.ConceptCodeSequence = [code(value)]
    return item


def image_item(image: SourceImage, concept: Code | None) -> Dataset:
    """An IMAGE item that its parent contains; a key object has no concept name."""
    item = _item("CONTAINS", "IMAGE", concept)
    item.ReferencedSOPSequence = [reference(image)]
    return item


def section(concept: Code, items: list[Dataset]) -> Dataset:
    """A CONTAINER item below the root."""
    item = _item("CONTAINS", "CONTAINER", concept)
    item.ContinuityOfContent = "SEPARATE"
    item.ContentSequence = items
    return item


def language() -> Dataset:
    """The language of the text (TID 1204)."""
    concept = ("121049", "DCM", "Language of Content Item and Descendants")
    return code_item("HAS CONCEPT MOD", concept, ("en", "RFC5646", "English"))


def observer(document: Document) -> list[Dataset]:
    """The device that observed (TID 1002, 1004): the bundle, as r2gen ran it."""
    uid = _item("HAS OBS CONTEXT", "UIDREF", ("121012", "DCM", "Device Observer UID"))
    uid.UID = document.device_uid()
    named = (
        (("121013", "DCM", "Device Observer Name"), f"{document.software} {document.settings}"),
        (("121014", "DCM", "Device Observer Manufacturer"), MANUFACTURER),
        (("121015", "DCM", "Device Observer Model Name"), document.report.model_id),
        (("121016", "DCM", "Device Observer Serial Number"), f"sha256:{document.source.bundle_sha256}"),
    )
    return [
        code_item("HAS OBS CONTEXT", ("121005", "DCM", "Observer Type"), ("121007", "DCM", "Device")),
        uid,
        *(text_item("HAS OBS CONTEXT", concept, value) for concept, value in named),
    ]


def _item(relationship: str, value_type: str, concept: Code | None) -> Dataset:
    item = item_of(RelationshipType=relationship, ValueType=value_type)
    if concept is not None:
        item.ConceptNameCodeSequence = [code(concept)]
    return item
