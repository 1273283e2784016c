"""A report as an HL7 v2.5.1 message ORU^R01 (HL7 chapter 7), for a file or an interface engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from r2gen_export.reporting.document import Document
from r2gen_export.reporting.patient import Patient

REPORT: Final = ("18748-4", "Diagnostic Imaging Report", "LN")
NOTICE: Final = ("NOTICE", "Notice: AI-generated draft", "99R2GEN")
DICOM_STUDY: Final = ("113014", "DICOM Study", "DCM")

ESCAPES: Final = str.maketrans({"\\": "\\E\\", "|": "\\F\\", "^": "\\S\\", "&": "\\T\\", "~": "\\R\\", "\n": "\\.br\\"})


def observation_message(document: Document) -> bytes:
    """Segments MSH, PID, OBR and OBX as UTF-8, each ended by CR.

    The result is preliminary (OBR-25 and OBX-11 are P), and the notice is the first observation. The filler number
    (OBR-3) is our own and the same for all results of a study: receivers replace by it, and the order's would replace
    the radiologist's report.
    """
    patient, report = Patient.of(document.identity), document.report
    now = f"{document.created():%Y%m%d%H%M%S%z}"
    when = patient.study_date and patient.study_date + patient.study_time
    when += patient.utc_offset if patient.study_time else ""
    control = document.content_hash()[:20]
    # Receivers in routine use refuse training messages, which those of a model of phantoms are.
    processing = "T" if document.synthetic else "P"
    header = ["MSH", "^~\\&", "R2GEN", "", "", "", now, "", "ORU^R01^ORU_R01", control, processing, "2.5.1"]
    order = _fields(
        "OBR",
        {
            1: "1",
            2: escaped(patient.placer),
            3: f"R2GEN-{document.number()}^R2GEN",
            4: _components(REPORT),
            7: when,
            18: escaped(patient.accession),
            22: now,
            24: "RAD",
            25: "P",
        },
    )
    lines = [line for line in document.text.split("\n") if line.strip()]
    observations = [(NOTICE, "TX", words) for words in (document.notice, *document.remarks)]
    observations += [(REPORT, "TX", line) for line in lines]
    observations += [(DICOM_STUDY, "ST", patient.study_uid)]
    method = _components((report.model_id, document.software, "99R2GEN"))
    equipment = f"{document.source.bundle_sha256[:16]}^R2GEN"
    segments = ["|".join([*header, "", "", "", "", "", "UNICODE UTF-8"]), _patient(patient), order]
    for number, (concept, kind, words) in enumerate(observations, start=1):
        value = {1: str(number), 2: kind, 3: _components(concept), 4: str(number), 5: escaped(words), 11: "P"}
        segments.append(_fields("OBX", {**value, 14: when, 17: method, 18: equipment}))
    return "".join(f"{segment}\r" for segment in segments).encode()


def escaped(text: str) -> str:
    """Text of a field: what separates fields is written as an escape sequence (HL7 2.7)."""
    return text.translate(ESCAPES)


def _patient(patient: Patient) -> str:
    issuer = escaped(patient.issuer) + (f"&{escaped(patient.issuer_oid)}&ISO" if patient.issuer_oid else "")
    number = f"{escaped(patient.number)}^^^{issuer}^MR" if patient.number else ""
    groups = zip((patient.name.alphabetic, patient.name.ideographic, patient.name.phonetic), "AIP", strict=True)
    names = "~".join(_name(group, kind) for group, kind in groups if any(group))
    return _fields("PID", {1: "1", 3: number, 5: names, 7: patient.birth_date, 8: patient.sex})


def _name(group: Sequence[str], representation: str) -> str:
    """An XPN: HL7 has the suffix before the prefix, DICOM behind it."""
    family, given, middle, prefix, suffix = (escaped(part) for part in (*group, *[""] * 5)[:5])
    return "^".join((family, given, middle, suffix, prefix, "", "L", representation))


def _components(concept: Sequence[str]) -> str:
    return "^".join(map(escaped, concept))


def _fields(segment: str, fields: dict[int, str]) -> str:
    return "|".join([segment, *(fields.get(number, "") for number in range(1, max(fields) + 1))])
