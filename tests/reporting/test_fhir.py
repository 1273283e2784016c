"""FHIR DiagnosticReport of R4 and R5, by fhir.resources, which has every field's type and none of R4's value sets."""

from __future__ import annotations

import base64
import dataclasses
import importlib
import json
from collections.abc import Callable
from datetime import datetime
from typing import Any
from xml.etree import ElementTree

import pytest

from r2gen_export.reporting.predecessor import predecessor_of
from r2gen_export.reporting.source import Source
from r2gen_export.reporting.writers import render
from tests.helpers.documents import BUNDLE, SOURCES, STUDY, WORDS, bare, full

MODELS = {"fhir": "fhir.resources.R4B.diagnosticreport", "fhir-r5": "fhir.resources.diagnosticreport"}
"""R4B has R4's DiagnosticReport, Observation and Device unchanged."""


def written(form: str, source: Source, report: Any = WORDS, **options: Any) -> dict[str, Any]:
    resource = json.loads(render(form, report, source, **options))
    pytest.importorskip("fhir.resources", reason="fhir.resources comes with the extra dev")
    model = importlib.import_module(MODELS[form]).DiagnosticReport
    parsed = model.model_validate(resource)
    read = json.loads(parsed.model_dump_json())
    moments = [datetime.fromisoformat(fields.pop("issued")) for fields in (read, dict(resource))]
    assert moments[0] == moments[1]
    assert read == {name: value for name, value in resource.items() if name != "issued"}, "a field the model lacks"
    return resource  # type: ignore[no-any-return]


@pytest.mark.parametrize("form", MODELS)
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_the_resource_is_valid(form: str, source: Callable[[], Source]) -> None:
    resource = written(form, source())
    assert resource["status"] == "preliminary"
    ids = {part["id"] for part in resource["contained"]}
    text = json.dumps(resource)
    assert all(f'"#{name}"' in text for name in ids), "dom-3: what is contained is referred to"
    assert "" not in [value for _, value in leaves(resource)], "FHIR has no empty values"


def leaves(value: Any, path: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [leaf for name, part in value.items() for leaf in leaves(part, f"{path}.{name}")]
    if isinstance(value, list):
        return [leaf for part in value for leaf in leaves(part, path)]
    return [(path, value)]


def test_the_other_release_would_refuse_it() -> None:
    """What tells the two apart is the field of the imaging studies."""
    r4, r5 = (json.loads(render(form, WORDS, full())) for form in MODELS)
    assert {*r4} ^ {*r5} == {"imagingStudy", "study"}
    pytest.importorskip("fhir.resources")
    for form, resource in (("fhir-r5", r4), ("fhir", r5)):
        with pytest.raises(ValueError, match="tudy"):
            importlib.import_module(MODELS[form]).DiagnosticReport.model_validate(resource)


@pytest.mark.parametrize("form", MODELS)
def test_patient_order_and_study(form: str) -> None:
    resource = written(form, full())
    subject = resource["subject"]
    assert subject["identifier"]["value"] == "ID~1"
    assert subject["identifier"]["system"] == "urn:oid:1.2.840.99"
    assert subject["identifier"]["assigner"]["display"] == "Clinic & Co"
    assert subject["display"] == "Mü|ler, Dr. Anna M PhD = 山田, 花子 = やまだ, はなこ"
    (order,) = resource["basedOn"]
    assert order["identifier"]["value"] == "ACC|1^2"
    (study,) = resource.get("imagingStudy") or resource["study"]
    assert study["identifier"] == {"system": "urn:dicom:uid", "value": f"urn:oid:{STUDY}"}
    assert resource["effectiveDateTime"] == "2026-01-31T10:11:12+05:30"
    assert resource["issued"] == "2026-01-31T17:30:00.000+05:30"


@pytest.mark.parametrize("form", MODELS)
def test_what_is_not_known_is_left_out(form: str) -> None:
    resource = written(form, bare())
    assert "basedOn" not in resource
    assert "effectiveDateTime" not in resource
    assert resource["subject"] == {"type": "Patient"}
    day = written(form, bare(StudyDate=("DA", "20260131"), StudyTime=("TM", "1011")))
    assert day["effectiveDateTime"] == "2026-01-31"
    assert "effectiveDateTime" not in written(form, bare(StudyDate=("DA", "20260231")))


@pytest.mark.parametrize("form", MODELS)
def test_words_are_the_same_in_every_place(form: str) -> None:
    report = dataclasses.replace(WORDS, text="Heart < 50 % & normal.\nLungs clear.")
    resource = written(form, full(), report)
    expected = f"{WORDS.notice}\n\nWARNING {WORDS.warnings[0]}\n\n{report.text}"
    assert resource["conclusion"] == expected
    assert base64.b64decode(resource["presentedForm"][0]["data"]).decode() == expected
    narrative = ElementTree.fromstring(resource["text"]["div"])
    paragraphs = ["\n".join(paragraph.itertext()) for paragraph in narrative]
    assert "\n\n".join(paragraphs) == expected
    (observation,) = (part for part in resource["contained"] if part["resourceType"] == "Observation")
    assert observation["valueString"] == report.text
    assert [note["text"] for note in observation["note"]] == expected.split("\n\n")[:2]


@pytest.mark.parametrize("form", MODELS)
def test_model_bundle_and_settings_are_named(form: str) -> None:
    (device,) = (part for part in written(form, full())["contained"] if part["resourceType"] == "Device")
    assert device["modelNumber"] == "tiny"
    assert device["serialNumber"] == f"sha256:{BUNDLE}"
    assert device["version"] == [{"value": "r2gen 0.1.0"}]
    assert "num_beams=1" in device["note"][0]["text"]


@pytest.mark.parametrize("form", MODELS)
def test_a_revision_names_its_predecessor(form: str) -> None:
    earlier = predecessor_of(render("sr", WORDS, full()))
    (extension,) = written(form, full(), replaces=earlier)["extension"]
    assert extension["url"].endswith("/diagnosticReport-replaces")
    assert extension["valueReference"]["identifier"]["value"] == f"urn:oid:{earlier.sop_instance_uid}"
