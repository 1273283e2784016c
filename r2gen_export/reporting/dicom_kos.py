"""A report as the description of a DICOM Key Object Selection (PS3.3 A.35.4) of template TID 2010 (PS3.16)."""

from __future__ import annotations

from typing import Final

from r2gen_export.errors import R2GenError
from r2gen_export.reporting import dicom_modules as modules
from r2gen_export.reporting.document import Document
from r2gen_export.reporting.sr_items import Code, image_item, language, observer, root, text_item

KEY_OBJECT_SELECTION: Final = "1.2.840.10008.5.1.4.1.1.88.59"
SERIES_NUMBER: Final = 9803

OF_INTEREST: Final[Code] = ("113000", "DCM", "Of Interest")
DESCRIPTION: Final[Code] = ("113012", "DCM", "Key Object Description")


def key_object_selection(document: Document) -> bytes:
    """A DICOM file of SOP class Key Object Selection: the images of the study, with the report as their description.

    The description begins with the notice: a key object has no flags for preliminary or unverified.

    Raises:
        R2GenError: `R2G-DICOM-SOURCE` when no image is named, since a selection of nothing is none.
    """
    images = document.identity.images
    if not images:
        message = "no kos: the study's images are not DICOM instances that it could select"
        raise R2GenError("R2G-DICOM-SOURCE", message, "give the study as DICOM files, or take --format sr")
    dataset = modules.study_modules(document)
    modules.series_modules(dataset, document, modality="KO", number=SERIES_NUMBER)
    modules.instance_modules(dataset, document, KEY_OBJECT_SELECTION)
    dataset.ReferencedPerformedProcedureStepSequence = []
    modules.document_references(dataset, document)
    words = "\n\n".join((document.notice, *document.remarks, document.text))
    items = [
        language(),
        *observer(document),
        text_item("CONTAINS", DESCRIPTION, words),
        *(image_item(image, None) for image in images),
    ]
    root(dataset, OF_INTEREST, "2010", items)
    return modules.as_file(dataset, document)
