"""The forms a report is written in for hospital systems, and the function that writes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from r2gen_export.errors import R2GenError
from r2gen_export.reporting.document import Document
from r2gen_export.reporting.predecessor import Predecessor
from r2gen_export.reporting.report import Report
from r2gen_export.reporting.source import Source
from r2gen_export.reporting.unvalidated import unvalidated
from r2gen_export.system.extras import needs

NO_SOURCE: Final = "give the study as DICOM files, or take --format text, json or pdf"


@dataclass(frozen=True)
class Form:
    """A written form.

    Attributes:
        name: what `--format` and `render` call it.
        suffix: of its files.
        needs_source: it is filed by patient and study: only for studies from DICOM files.
        needs_pictures: it shows the images.
        is_dicom: a file of it is a DICOM instance, which a later one can name as its predecessor.
        is_text: it may be shown on a terminal.
    """

    name: str
    suffix: str
    needs_source: bool = True
    needs_pictures: bool = False
    is_dicom: bool = False
    is_text: bool = False


_FORMS: Final = (
    Form("sr", ".dcm", is_dicom=True),
    Form("pdf", ".pdf", needs_source=False, needs_pictures=True),
    Form("dicom-pdf", ".dcm", needs_pictures=True, is_dicom=True),
    Form("kos", ".dcm", is_dicom=True),
    Form("fhir", ".json", is_text=True),
    Form("fhir-r5", ".json", is_text=True),
    Form("hl7", ".hl7"),
)

FORMS: Final[Mapping[str, Form]] = MappingProxyType({form.name: form for form in _FORMS})
"""Every written form by its name; `fhir` is release R4."""


def render(form: str, report: Report, source: Source, *, replaces: Predecessor | None = None) -> bytes:
    """A report as the bytes of a file.

    Equal arguments give equal bytes but for the date and time attributes, which are those of `report.created` in the
    study's time zone, or this machine's where the images name none.

    Args:
        form: a key of `FORMS`.
        report: of the study.
        source: the study; `pictures` may be empty for forms that show none.
        replaces: an earlier result of the same study in the same form.

    Raises:
        R2GenError: `R2G-DICOM-SOURCE` when the form needs a study from DICOM files and this is none; what
            `check_predecessor` raises; `R2G-CONFIG-VALUE` for an unknown form; `R2G-DEPENDENCY-MISSING`.
    """
    chosen = FORMS.get(form)
    if chosen is None:
        raise R2GenError("R2G-CONFIG-VALUE", f"unknown form {form!r}", f"one of {', '.join(FORMS)}")
    study_uid = check_source(chosen, source)
    if replaces is not None:
        check_predecessor(chosen, source, replaces)
    document = Document(form, report, source, study_uid, replaces)
    with needs("dicom"), unvalidated() if chosen.is_dicom else nullcontext():
        return _writer(form)(document)


def check_installed(form: Form) -> None:
    """Import what the form needs, so that a package that is missing is named before any report is generated.

    Raises:
        R2GenError: `R2G-DEPENDENCY-MISSING`.
    """
    with needs("dicom"):
        if form.is_dicom:
            import pydicom  # noqa: F401
        if form.needs_pictures:
            import reportlab  # noqa: F401


def check_source(form: Form, source: Source) -> str:
    """The StudyInstanceUID, empty for a study that did not come from DICOM files and need not.

    Raises:
        R2GenError: `R2G-DICOM-SOURCE`.
    """
    attributes = source.identity.attributes if source.identity else {}
    values = attributes.get("0020000D", {}).get("Value") or [""]
    study_uid = str(values[0] or "").strip()
    if study_uid or not form.needs_source:
        return study_uid
    reason = "has no StudyInstanceUID" if source.identity else "did not come from DICOM files"
    raise R2GenError("R2G-DICOM-SOURCE", f"no {form.name}: the study {reason}", NO_SOURCE)


def check_predecessor(form: Form, source: Source, replaces: Predecessor) -> None:
    """Refuse to replace what is of another study, or of another form.

    Raises:
        R2GenError: `R2G-DICOM-STUDY`; `R2G-CONFIG-VALUE` for another form; `R2G-DICOM-SOURCE`.
    """
    study_uid = check_source(form, source)
    if study_uid and replaces.study_instance_uid != study_uid:
        raise R2GenError("R2G-DICOM-STUDY", "the result to replace is of another study", "give one of this study")
    if form.is_dicom and replaces.sop_class_uid != _sop_class(form):
        message = f"the result to replace is no {form.name}"
        raise R2GenError("R2G-CONFIG-VALUE", message, "give one of this form, or take the --format that it has")


def _sop_class(form: Form) -> str:
    from r2gen_export.reporting import dicom_kos, dicom_pdf, dicom_sr

    return {
        "sr": dicom_sr.BASIC_TEXT_SR,
        "dicom-pdf": dicom_pdf.ENCAPSULATED_PDF,
        "kos": dicom_kos.KEY_OBJECT_SELECTION,
    }[form.name]


def _writer(form: str) -> Callable[[Document], bytes]:
    from r2gen_export.reporting import dicom_kos, dicom_pdf, dicom_sr, fhir, hl7, pdf_page

    return {
        "sr": dicom_sr.structured_report,
        "pdf": pdf_page.pdf_page,
        "dicom-pdf": dicom_pdf.encapsulated_pdf,
        "kos": dicom_kos.key_object_selection,
        "fhir": fhir.diagnostic_report_r4,
        "fhir-r5": fhir.diagnostic_report_r5,
        "hl7": hl7.observation_message,
    }[form]
