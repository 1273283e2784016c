"""SR, encapsulated PDF and key object selection: by others' validators, and by rules that those do not check."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pydicom
import pytest

from r2gen_export.reporting.predecessor import predecessor_of
from r2gen_export.reporting.source import Source
from r2gen_export.reporting.writers import render
from tests.helpers.documents import (
    BUNDLE,
    DICOM_FORMS,
    JAVA_OPTIONS,
    SOURCES,
    STUDY,
    WORDS,
    bare,
    dciodvfy_errors,
    full,
    radiograph,
    run,
    tool,
)

LONG = dataclasses.replace(WORDS, text="The lungs are clear. " * 400, warnings=("view 1: odd",) * 20)


def read(data: bytes) -> pydicom.Dataset:
    return pydicom.dcmread(io.BytesIO(data))


def items(container: pydicom.Dataset, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], pydicom.Dataset]]:
    """Every content item below a container, with the value types on the way to it."""
    for item in container.get("ContentSequence", []):
        yield (*path, item.ValueType), item
        yield from items(item, (*path, item.ValueType))


def concept(item: pydicom.Dataset) -> str:
    (code,) = item.ConceptNameCodeSequence
    return str(code.CodeValue)


@pytest.mark.parametrize("form", DICOM_FORMS)
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_dciodvfy_has_no_error(form: str, source: Callable[[], Source], tmp_path: Path) -> None:
    first = render(form, WORDS, source())
    for number, data in enumerate((first, render(form, LONG, source(), replaces=predecessor_of(first)))):
        file = tmp_path / f"{number}.dcm"
        file.write_bytes(data)
        assert dciodvfy_errors(file) == []


def test_dciodvfy_would_find_an_error(tmp_path: Path) -> None:
    """The test above is worth something: each of these attributes is one that others forgot."""
    for keyword in ("CompletionFlag", "ReferencedPerformedProcedureStepSequence", "PerformedProcedureCodeSequence"):
        dataset = read(render("sr", WORDS, full()))
        del dataset[keyword]
        dataset.save_as(tmp_path / "broken.dcm")
        assert any(keyword in error for error in dciodvfy_errors(tmp_path / "broken.dcm"))


@pytest.mark.slow
def test_the_template_is_followed_by_pixelmed(tmp_path: Path) -> None:
    """5 s a file: it reads its templates anew each time. The broken file shows that it looks at relationships."""
    validator = tool("DicomSRValidator", "pixelmed-apps")
    broken = read(render("sr", WORDS, bare()))
    broken.ContentSequence[2].RelationshipType = "CONTAINS"
    broken.save_as(tmp_path / "broken.dcm")
    first = render("sr", WORDS, full())
    (tmp_path / "revised.dcm").write_bytes(render("sr", LONG, full(), replaces=predecessor_of(first)))
    (tmp_path / "key-object.dcm").write_bytes(render("kos", WORDS, radiograph()))
    (tmp_path / "bare.dcm").write_bytes(render("sr", WORDS, bare()))
    names = ("revised", "bare", "key-object", "broken")
    with ThreadPoolExecutor(2) as pool:
        answers = pool.map(lambda name: run(validator, tmp_path / f"{name}.dcm", JAVA_TOOL_OPTIONS=JAVA_OPTIONS), names)
    shown = dict(zip(names, (done.stdout + done.stderr for done in answers), strict=True))
    for name in ("revised", "bare"):
        assert "Found Root Template TID_2000" in shown[name]
    assert "Found Root Template TID_2010" in shown["key-object"]
    for name in names[:3]:
        assert not re.search(r"^(Error|Warning)", shown[name], re.MULTILINE), shown[name]
        assert "IOD validation complete" in shown[name]
    assert re.search(r"^Error", shown["broken"], re.MULTILINE), shown["broken"]


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_dsrdump_reads_the_report(source: Callable[[], Source], tmp_path: Path) -> None:
    file = tmp_path / "sr.dcm"
    file.write_bytes(render("sr", WORDS, source()))
    done = run(tool("dsrdump", "dcmtk"), "+Pl", file)
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr
    assert "Basic Text SR Document" in done.stdout
    assert "Preliminary Flag    : PRELIMINARY" in done.stdout
    assert "Verification Flag   : UNVERIFIED" in done.stdout
    assert "There is no pleural effusion, no pneumothorax." in done.stdout


ALLOWED = {
    ("", "CODE", "HAS CONCEPT MOD"), ("", "CODE", "HAS OBS CONTEXT"), ("", "UIDREF", "HAS OBS CONTEXT"),
    ("", "TEXT", "HAS OBS CONTEXT"), ("", "CONTAINER", "CONTAINS"), ("CONTAINER", "TEXT", "CONTAINS"),
    ("CONTAINER", "IMAGE", "CONTAINS"),
}  # fmt: skip
"""Relationships of Basic Text SR (PS3.3 table A.35.1-2) as TID 2000 uses them: parent below the root, item, type."""

ORDER = ["121058", "121049", "121005", "121012", "121013", "121014", "121015", "121016", "121111", "121070"]
"""Concepts below the root; TID 2000 says that their order is significant."""


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_relationships_and_order_of_the_report(source: Callable[[], Source]) -> None:
    dataset = read(render("sr", WORDS, source()))
    assert dataset.ContentTemplateSequence[0].TemplateIdentifier == "2000"
    assert concept(dataset) == "18748-4"
    assert [concept(item) for item in dataset.ContentSequence] == ORDER
    relations = {("".join(path[:-1]), path[-1], item.RelationshipType) for path, item in items(dataset)}
    assert relations <= ALLOWED
    summary, findings = dataset.ContentSequence[-2:]
    assert [(item.ValueType, concept(item)) for item in summary.ContentSequence] == [("TEXT", "121111")] * 2
    assert summary.ContentSequence[0].TextValue == WORDS.notice
    assert summary.ContentSequence[1].TextValue == f"WARNING {WORDS.warnings[0]}"
    text, *images = findings.ContentSequence
    assert (text.ValueType, concept(text)) == ("TEXT", "121071")
    assert text.TextValue == WORDS.text.replace("\n", "\r\n")
    assert images
    assert {(image.ValueType, concept(image)) for image in images} == {("IMAGE", "121080")}


def test_every_image_that_is_named_is_evidence() -> None:
    """By its series, and nothing else is."""
    source = full()
    assert source.identity is not None
    expected = {(image.series_instance_uid, image.sop_instance_uid) for image in source.identity.images}
    for form in ("sr", "kos"):
        dataset = read(render(form, WORDS, source))
        (study,) = dataset.CurrentRequestedProcedureEvidenceSequence
        assert study.StudyInstanceUID == STUDY
        listed = {
            (series.SeriesInstanceUID, instance.ReferencedSOPInstanceUID)
            for series in study.ReferencedSeriesSequence
            for instance in series.ReferencedSOPSequence
        }
        shown = [item.ReferencedSOPSequence[0] for path, item in items(dataset) if path[-1] == "IMAGE"]
        assert listed == expected
        assert {item.ReferencedSOPInstanceUID for item in shown} == {uid for _, uid in expected}
        classes = {image.sop_instance_uid: image.sop_class_uid for image in source.identity.images}
        assert {item.ReferencedSOPInstanceUID: item.ReferencedSOPClassUID for item in shown} == classes


@pytest.mark.parametrize("form", DICOM_FORMS)
def test_model_bundle_and_settings_are_named(form: str) -> None:
    dataset = read(render(form, WORDS, full()))
    (equipment,) = dataset.ContributingEquipmentSequence
    for holder in (dataset, equipment):
        assert holder.Manufacturer == "r2gen"
        assert holder.ManufacturerModelName == "tiny"
        assert holder.DeviceSerialNumber == BUNDLE
        assert list(holder.SoftwareVersions) == ["r2gen 0.1.0", "semantics hf-current"]
    for setting in ("preset=fast", "semantics=hf-current", "num_beams=1", "seed=None", "backend=CPUExecutionProvider"):
        assert setting in equipment.ContributionDescription
    assert equipment.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
    if form != "dicom-pdf":
        named = {concept(item): item for item in dataset.ContentSequence if item.RelationshipType == "HAS OBS CONTEXT"}
        assert named["121005"].ConceptCodeSequence[0].CodeMeaning == "Device"
        assert named["121015"].TextValue == "tiny"
        assert named["121016"].TextValue == f"sha256:{BUNDLE}"
        assert "num_beams=1" in named["121013"].TextValue
        other = read(render(form, WORDS, radiograph()))
        assert named["121012"].UID == other.ContentSequence[ORDER.index("121012") - (form == "kos")].UID


@pytest.mark.parametrize("form", DICOM_FORMS)
def test_patient_and_study_are_the_sources(form: str) -> None:
    """An archive files an instance whose patient differs as a second patient."""
    source = full()
    assert source.identity is not None
    dataset = read(render(form, WORDS, source))
    for tag, expected in source.identity.attributes.items():
        if tag == "00400275":  # the order, which has a sequence of its own in the report
            continue
        assert dataset[tag].to_json_dict(None, 1024) == expected, tag
    # Names of other series and instances would be a lie.
    assert dataset.SeriesInstanceUID not in {image.series_instance_uid for image in source.identity.images}


def test_the_order_is_referred_to() -> None:
    (order,) = read(render("sr", WORDS, full())).ReferencedRequestSequence
    assert order.StudyInstanceUID == STUDY
    assert order.AccessionNumber == "ACC|1^2"
    assert order.PlacerOrderNumberImagingServiceRequest == "PLACER&1"
    assert order.FillerOrderNumberImagingServiceRequest == ""
    assert order.RequestedProcedureID == "RP-7"
    (code,) = order.RequestedProcedureCodeSequence
    assert {element.keyword for element in code} == {"CodeValue", "CodingSchemeDesignator", "CodeMeaning"}
    assert "ReferencedRequestSequence" not in read(render("sr", WORDS, bare()))


def test_the_flags_of_a_draft() -> None:
    sr, pdf = read(render("sr", WORDS, full())), read(render("dicom-pdf", WORDS, full()))
    assert (sr.PreliminaryFlag, sr.CompletionFlag) == ("PRELIMINARY", "PARTIAL")
    assert (sr.VerificationFlag, pdf.VerificationFlag) == ("UNVERIFIED", "UNVERIFIED")
    assert sr.ContentQualification == "RESEARCH"
    assert "VerifyingObserverSequence" not in sr
    assert pdf.BurnedInAnnotation == "YES"


def test_a_key_object_without_an_image_is_refused() -> None:
    source = bare()
    assert source.identity is not None
    alone = dataclasses.replace(source, identity=dataclasses.replace(source.identity, images=()))
    with pytest.raises(Exception, match="R2G-DICOM-SOURCE"):
        render("kos", WORDS, alone)
    assert "CurrentRequestedProcedureEvidenceSequence" not in read(render("sr", WORDS, alone))


LEFT_OUT = {"SourceInstanceSequence", "InstitutionName"}


def test_the_pdf_module_is_that_of_pdf2dcm(tmp_path: Path) -> None:
    """Everything dcmtk writes into an Encapsulated PDF is in ours, and the document is the page, padded to even."""
    pdf, theirs = tmp_path / "page.pdf", tmp_path / "theirs.dcm"
    pdf.write_bytes(render("pdf", WORDS, full()))
    done = run(tool("pdf2dcm", "dcmtk"), "+t", "Title", "+an", pdf, theirs)
    assert done.returncode == 0, done.stderr
    ours, others = read(render("dicom-pdf", WORDS, full())), pydicom.dcmread(theirs)
    missing = {element.keyword for element in others} - {element.keyword for element in ours}
    assert missing <= {"InstanceCreationDate", "InstanceCreationTime", "InstanceCreatorUID"} | LEFT_OUT
    for keyword in ("SOPClassUID", "MIMETypeOfEncapsulatedDocument", "Modality", "ConversionType"):
        assert ours[keyword] == others[keyword]
    for dataset in (ours, others):
        document, length = dataset.EncapsulatedDocument, dataset.EncapsulatedDocumentLength
        assert len(document) % 2 == 0
        assert document[:length].rstrip().endswith(b"%%EOF")
        assert 0 <= len(document) - length <= 1
