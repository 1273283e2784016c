"""A report as a FHIR DiagnosticReport in JSON, of release R4 or R5."""

from __future__ import annotations

import base64
import json
from html import escape
from typing import Any, Final

from r2gen_export.reporting.document import TITLE, Document
from r2gen_export.reporting.patient import Patient, iso_date

LOINC: Final = "http://loinc.org"


def diagnostic_report_r4(document: Document) -> bytes:
    """`_diagnostic_report` for FHIR R4 (4.0.1)."""
    return _diagnostic_report(document, studies="imagingStudy")


def diagnostic_report_r5(document: Document) -> bytes:
    """`_diagnostic_report` for FHIR R5 (5.0.0)."""
    return _diagnostic_report(document, studies="study")


def _diagnostic_report(document: Document, studies: str) -> bytes:
    """A DiagnosticReport of status preliminary, as UTF-8.

    Patient, order and imaging study are named by their identifiers, not by addresses on a server, and whoever loads
    the report resolves them. The draft is a contained Observation, because only that can name the Device behind it.

    Args:
        document: what to write.
        studies: the field for imaging studies, which R5 renamed.
    """
    patient = Patient.of(document.identity)
    code = {"coding": [{"system": LOINC, "code": "18748-4", "display": "Diagnostic imaging study"}]}
    words = "\n\n".join((document.notice, *document.remarks, document.text))
    data = base64.b64encode(words.encode()).decode()
    resource: dict[str, Any] = {
        "resourceType": "DiagnosticReport",
        "meta": {
            "security": [
                {
                    "system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue",
                    "code": "AIAST",
                    "display": "Artificial Intelligence asserted",
                }
            ]
        },
        "language": "en",
        "text": {"status": "generated", "div": _narrative(document)},
        "contained": [_device(document), _observation(document, code)],
        "extension": _replaces(document),
        "identifier": [
            {"system": "urn:ietf:rfc:3986", "value": f"urn:oid:{document.instance_uid()}"},
            {"type": {"text": "All r2gen results of this study"}, "value": f"R2GEN-{document.number()}"},
        ],
        "basedOn": _order(patient),
        "status": "preliminary",
        "category": [{"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0074", "code": "RAD"}]}],
        "code": code,
        "subject": _subject(patient),
        "effectiveDateTime": _effective(patient),
        "issued": document.created().isoformat(timespec="milliseconds"),
        studies: [_dicom_study(patient)],
        "result": [{"reference": "#draft"}],
        "conclusion": words,
        "presentedForm": [
            {"contentType": "text/plain;charset=utf-8", "language": "en", "data": data, "title": TITLE},
        ],
    }
    # FHIR has no empty values: what is not known is left out.
    fields = {name: value for name, value in resource.items() if value}
    return (json.dumps(fields, ensure_ascii=False, indent=1) + "\n").encode()


def _narrative(document: Document) -> str:
    notice, *rest = (escape(words) for words in (document.notice, *document.remarks, document.text))
    body = "".join("<p>" + words.replace("\n", "<br/>") + "</p>" for words in rest)
    return f'<div xmlns="http://www.w3.org/1999/xhtml"><p><b>{notice}</b></p>{body}</div>'


def _device(document: Document) -> dict[str, Any]:
    return {
        "resourceType": "Device",
        "id": "r2gen",
        "identifier": [{"system": "urn:ietf:rfc:3986", "value": f"urn:oid:{document.device_uid()}"}],
        "manufacturer": "r2gen",
        "modelNumber": document.report.model_id,
        "serialNumber": f"sha256:{document.source.bundle_sha256}",
        "version": [{"value": document.software}],
        "note": [{"text": document.settings}],
    }


def _observation(document: Document, code: dict[str, Any]) -> dict[str, Any]:
    return {
        "resourceType": "Observation",
        "id": "draft",
        "status": "preliminary",
        "code": code,
        "valueString": document.text,
        "note": [{"text": words} for words in (document.notice, *document.remarks)],
        "device": {"reference": "#r2gen"},
    }


def _replaces(document: Document) -> list[dict[str, Any]]:
    """The earlier report, by an extension of HL7: DiagnosticReport has no field for it."""
    if document.replaces is None:
        return []
    earlier = {"system": "urn:ietf:rfc:3986", "value": f"urn:oid:{document.replaces.sop_instance_uid}"}
    url = "http://hl7.org/fhir/StructureDefinition/diagnosticReport-replaces"
    return [{"url": url, "valueReference": {"type": "DiagnosticReport", "identifier": earlier}}]


def _identifier(kind: str, value: str) -> dict[str, Any]:
    system = "http://terminology.hl7.org/CodeSystem/v2-0203"
    return {"type": {"coding": [{"system": system, "code": kind}]}, "value": value}


def _order(patient: Patient) -> list[dict[str, Any]]:
    if not patient.accession:
        return []
    return [{"type": "ServiceRequest", "identifier": _identifier("ACSN", patient.accession)}]


def _subject(patient: Patient) -> dict[str, Any]:
    subject: dict[str, Any] = {"type": "Patient"}
    if patient.number:
        identifier = _identifier("MR", patient.number)
        if patient.issuer_oid:
            identifier["system"] = f"urn:oid:{patient.issuer_oid}"
        if patient.issuer:
            identifier["assigner"] = {"display": patient.issuer}
        subject["identifier"] = identifier
    if name := patient.name.shown():
        subject["display"] = name
    return subject


def _effective(patient: Patient) -> str:
    """When the study was made. A time without its zone is not allowed: the date alone then."""
    day = iso_date(patient.study_date)
    if not (day and patient.study_time and patient.utc_offset):
        return day
    time, zone = patient.study_time, patient.utc_offset
    return f"{day}T{time[:2]}:{time[2:4]}:{time[4:]}{zone[:3]}:{zone[3:]}"


def _dicom_study(patient: Patient) -> dict[str, Any]:
    identifier = {"system": "urn:dicom:uid", "value": f"urn:oid:{patient.study_uid}"}
    return {"type": "ImagingStudy", "identifier": identifier}
