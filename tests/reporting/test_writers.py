"""`render`: what every form has in common, and the identifiers that follow from the content."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pydicom
import pytest
from pydicom.data import get_charset_files

from r2gen_export.bundle import DEMO_NOTICE, NOTICE, bundle_id, bundle_sha256, demo_bundle, open_bundle
from r2gen_export.decoding import Decoding
from r2gen_export.errors import R2GenError
from r2gen_export.reporting.predecessor import predecessor_of, read_predecessor
from r2gen_export.reporting.report import Report
from r2gen_export.reporting.source import Source
from r2gen_export.reporting.writers import FORMS, render
from r2gen_export.studies.identity import SourceImage
from tests.helpers.documents import (
    BUNDLE,
    DICOM_FORMS,
    ROOT,
    SOURCES,
    WORDS,
    bare,
    full,
    identity_of,
    page_text,
    pictures,
    radiograph,
)

TIMES = {"ContentDate", "ContentTime", "ContributionDateTime"}
LATER = dataclasses.replace(WORDS, created="2026-02-03T04:05:06.789+00:00", timings_ms={}, study=7)


def read(data: bytes) -> pydicom.Dataset:
    return pydicom.dcmread(io.BytesIO(data))


def words_of(form: str, data: bytes, tmp_path: object) -> str:
    """Everything a form says in words."""
    if form in ("pdf", "dicom-pdf"):
        pdf = data if form == "pdf" else read(data).EncapsulatedDocument
        return " ".join(page_text(pdf, tmp_path).split())  # type: ignore[arg-type]
    if form in ("sr", "kos"):
        values = [element.value for element in read(data).iterall() if element.VR == "UT"]
        return " ".join(" ".join(values).split())
    return " ".join(data.decode().split())


@pytest.mark.parametrize("form", FORMS)
def test_every_form_carries_notice_warnings_and_text(form: str, tmp_path: object) -> None:
    report = dataclasses.replace(WORDS, finish_reason="length")
    shown = words_of(form, render(form, report, full()), tmp_path)
    assert NOTICE in shown
    assert "trained on synthetic phantoms only" in shown
    assert "The lungs are clear." in shown
    if form not in ("pdf", "dicom-pdf"):  # there the words stand in columns
        assert "no pleural effusion, no pneumothorax." in shown
        assert "WARNING view 1: it holds only 3 grey levels" in shown
        assert "WARNING the text was cut off after 3 tokens" in shown
    assert shown.index("Research use only") < shown.index("The lungs are clear.")


def differing(first: pydicom.Dataset, second: pydicom.Dataset) -> set[str]:
    """Keywords of the elements that differ, at any depth."""
    keywords = set()
    for element in (*first, *second):
        here, there = first.get(element.tag), second.get(element.tag)
        if here == there:
            continue
        if element.VR == "SQ" and here and there and len(here.value) == len(there.value):
            for one_item, other in zip(here.value, there.value, strict=True):
                keywords |= differing(one_item, other)
        else:
            keywords.add(element.keyword)
    return keywords


@pytest.mark.parametrize("form", DICOM_FORMS)
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_two_identical_calls_differ_in_dates_and_times_alone(form: str, source: Callable[[], Source]) -> None:
    first, second = read(render(form, WORDS, source())), read(render(form, LATER, source()))
    assert differing(first, second) == TIMES
    assert first.file_meta == second.file_meta


def test_the_other_forms_are_equal_but_for_their_time() -> None:
    assert render("pdf", WORDS, full()) == render("pdf", LATER, full())
    for form in ("fhir", "fhir-r5"):
        first, second = (json.loads(render(form, report, full())) for report in (WORDS, LATER))
        assert {name for name in first if first[name] != second[name]} == {"issued"}
    early, late = (render("hl7", report, full()).decode() for report in (WORDS, LATER))
    assert early.replace("20260131173000+0530", "20260203093506+0530") == late


def test_another_process_writes_the_same_bytes() -> None:
    """Hash seeds, and the order in which fonts and modules were loaded, do not matter."""
    code = (
        "import sys, hashlib; from tests.helpers.documents import *; from r2gen_export.reporting.writers import *;"
        "print([hashlib.sha256(render(form, WORDS, full())).hexdigest() for form in sys.argv[1:]])"
    )
    answers = set()
    for seed, forms in (("1", list(FORMS)), ("2", list(FORMS))):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", code, *forms], capture_output=True, text=True, check=True, env=environment, cwd=ROOT
        )
        answers.add(done.stdout)
    assert len(answers) == 1


CHANGES: dict[str, Report] = {
    "text": dataclasses.replace(WORDS, text="The heart is enlarged."),
    "warnings": dataclasses.replace(WORDS, warnings=()),
    "notice": dataclasses.replace(WORDS, notice=NOTICE),
    "settings": dataclasses.replace(WORDS, decoding=Decoding(num_beams=2)),
    "semantics": dataclasses.replace(WORDS, semantics="hf-4.30"),
    "backend": dataclasses.replace(WORDS, execution_provider="OpenVINO"),
    "image": dataclasses.replace(WORDS, inputs=("1" * 64,)),
    "release": dataclasses.replace(WORDS, r2gen_version="0.2.0"),
}


def test_whatever_changes_the_document_changes_its_uid() -> None:
    uids = {name: str(read(render("sr", report, full())).SOPInstanceUID) for name, report in CHANGES.items()}
    uids["same"] = str(read(render("sr", WORDS, full())).SOPInstanceUID)
    uids["bundle"] = str(read(render("sr", WORDS, dataclasses.replace(full(), bundle_sha256="9" * 64))).SOPInstanceUID)
    uids["study"] = str(read(render("sr", WORDS, radiograph())).SOPInstanceUID)
    for form in ("dicom-pdf", "kos"):
        uids[form] = str(read(render(form, WORDS, full())).SOPInstanceUID)
    assert len(set(uids.values())) == len(uids), uids
    assert all(len(uid) <= 64 and uid.startswith("2.25.") for uid in uids.values())


def test_no_part_of_the_content_is_lost_between_two_parts() -> None:
    """A UID of joined texts would be equal where a sentence moves from one part to the next."""
    first = dataclasses.replace(WORDS, text="a", warnings=("b", "c"))
    second = dataclasses.replace(WORDS, text="a", warnings=("b c",))
    assert read(render("sr", first, full())).SOPInstanceUID != read(render("sr", second, full())).SOPInstanceUID


@pytest.mark.parametrize("form", DICOM_FORMS)
def test_a_revision_names_its_predecessor(form: str) -> None:
    first = render(form, WORDS, full())
    second = render(form, CHANGES["text"], full(), replaces=predecessor_of(first))
    before, after = read(first), read(second)
    assert "PredecessorDocumentsSequence" not in before
    (study,) = after.PredecessorDocumentsSequence
    (series,) = study.ReferencedSeriesSequence
    (instance,) = series.ReferencedSOPSequence
    assert study.StudyInstanceUID == before.StudyInstanceUID
    assert series.SeriesInstanceUID == before.SeriesInstanceUID == after.SeriesInstanceUID
    assert instance.ReferencedSOPInstanceUID == before.SOPInstanceUID != after.SOPInstanceUID
    assert instance.ReferencedSOPClassUID == before.SOPClassUID
    assert (before.InstanceNumber, after.InstanceNumber) == (1, 2)
    third = read(render(form, CHANGES["text"], full(), replaces=predecessor_of(second)))
    assert third.SOPInstanceUID != after.SOPInstanceUID, "the same words in a further revision are a new instance"
    assert third.InstanceNumber == 3


def by_another_maker(document: bytes) -> bytes:
    """The same document, as a radiologist's system would have written it."""
    dataset = read(document)
    dataset.Manufacturer = "Reporting System"
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def test_what_cannot_be_replaced(tmp_path: object) -> None:
    with pytest.raises(R2GenError) as refusal:
        render("sr", WORDS, full(), replaces=predecessor_of(render("sr", WORDS, radiograph())))
    assert refusal.value.code == "R2G-DICOM-STUDY"
    with pytest.raises(R2GenError, match="is no kos") as refusal:
        render("kos", WORDS, full(), replaces=predecessor_of(render("sr", WORDS, full())))
    assert refusal.value.code == "R2G-CONFIG-VALUE"
    with pytest.raises(R2GenError, match="not written by r2gen"):
        predecessor_of(by_another_maker(render("sr", WORDS, full())))
    for data in (b"", b"%PDF-1.3", render("sr", WORDS, full())[:200]):
        with pytest.raises(R2GenError) as refusal:
            predecessor_of(data)
        assert refusal.value.code == "R2G-DICOM-FORMAT"
    with pytest.raises(R2GenError) as refusal:
        read_predecessor(tmp_path)  # type: ignore[arg-type]
    assert refusal.value.code == "R2G-DICOM-FORMAT"


@pytest.mark.parametrize("form", FORMS)
def test_a_study_that_is_not_dicom(form: str) -> None:
    source = Source(None, pictures(), BUNDLE)
    if form == "pdf":
        assert render(form, WORDS, source).startswith(b"%PDF-")
        return
    with pytest.raises(R2GenError) as refusal:
        render(form, WORDS, source)
    assert refusal.value.code == "R2G-DICOM-SOURCE"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [(), (None,), ("",)], ids=["no value", "null", "empty"])
def test_attributes_without_a_value_are_no_failure(form: str, value: tuple[object, ...]) -> None:
    source = bare(
        PatientName=("PN", *value), PatientID=("LO", *value), PatientBirthDate=("DA", *value), StudyDate=("DA", *value),
        PatientSex=("CS", *value), AccessionNumber=("SH", *value), TimezoneOffsetFromUTC=("SH", *value),
        ReferringPhysicianName=("PN", *value), RequestAttributesSequence=("SQ", *([{}] if value else [])),
    )  # fmt: skip
    assert render(form, WORDS, source)


INVALID = {
    "StudyInstanceUID": ("UI", "ZZYZX"), "PatientID": ("LO", "ZZYZX" * 20), "AccessionNumber": ("SH", "ZZYZX" * 10),
    "PatientBirthDate": ("DA", "ZZYZX"), "PatientSex": ("CS", "zzyzx?"), "StudyTime": ("TM", "ZZYZX"),
    "PatientAge": ("AS", "ZZYZX"), "TimezoneOffsetFromUTC": ("SH", "+ZZYZX"),
    "PatientName": ("PN", {"Alphabetic": "Z" * 99}),
    "RequestAttributesSequence": ("SQ", {"00080050": {"vr": "SH", "Value": ["ZZYZX" * 10]}}),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_invalid_values_are_copied_in_silence(
    form: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """pydicom warns of a value by showing it."""
    identity = bare(**INVALID).identity
    assert identity is not None
    images = (SourceImage("ZZYZX.1", "ZZYZX.2", "ZZYZX.3"),)
    source = Source(dataclasses.replace(identity, images=images), (), BUNDLE)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        data = render(form, WORDS, source)
        if form in DICOM_FORMS:
            render(form, WORDS, source, replaces=predecessor_of(data))
    assert [str(warning.message) for warning in shown if "ZZYZX" in str(warning.message)] == []
    assert "ZZ" not in caplog.text + "".join(capfd.readouterr())
    if form in DICOM_FORMS:
        written = read(data)
        assert written.PatientID == "ZZYZX" * 20
        assert written.StudyInstanceUID == "ZZYZX"


def test_the_checks_of_pydicom_are_on_again() -> None:
    """Also after many threads have written at once."""
    before = (pydicom.config.settings.reading_validation_mode, pydicom.config.settings.writing_validation_mode)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: render("sr", WORDS, full()), range(20)))
    after = (pydicom.config.settings.reading_validation_mode, pydicom.config.settings.writing_validation_mode)
    assert after == before


def test_a_form_that_does_not_exist() -> None:
    with pytest.raises(R2GenError) as refusal:
        render("docx", WORDS, full())
    assert refusal.value.code == "R2G-CONFIG-VALUE"


@pytest.mark.parametrize("form", FORMS)
def test_characters_no_form_may_hold(form: str, tmp_path: object) -> None:
    """NUL, escape, half a surrogate pair: what a broken tokenizer can produce."""
    report = dataclasses.replace(WORDS, text="clear\x00\x1b[0m \ud83d lungs < & > ∞", warnings=("view 1: \x07odd",))
    data = render(form, report, full())
    for character in ("\x00", "\x1b", "\x07"):
        assert form in ("pdf", *DICOM_FORMS) or character not in data.decode()
    if form == "sr":
        assert "clear\ufffd\ufffd[0m \ufffd lungs < & > ∞" in words_of(form, data, tmp_path)


def test_the_time_is_in_the_zone_of_the_study() -> None:
    there = read(render("sr", WORDS, full()))
    assert (there.ContentDate, there.ContentTime, there.TimezoneOffsetFromUTC) == ("20260131", "173000", "+0530")
    assert there.ContributingEquipmentSequence[0].ContributionDateTime == "20260131173000+0530"
    assert "TimezoneOffsetFromUTC" not in read(render("sr", WORDS, bare()))


@pytest.mark.parametrize("path", get_charset_files("*.dcm"), ids=os.path.basename)
def test_names_come_back_in_every_character_set(path: str) -> None:
    identity = identity_of(path)
    holder = pydicom.dcmread(path)
    if "PatientName" not in holder:  # two of the files have it in an item of a sequence
        holder = holder.RequestedProcedureCodeSequence[0]
        nested = identity.attributes["00321064"]["Value"][0]
        identity = dataclasses.replace(identity, attributes={**identity.attributes, "00100010": nested["00100010"]})
    expected = holder.PatientName
    assert str(expected)
    for form in DICOM_FORMS:
        written = read(render(form, WORDS, Source(identity, (), BUNDLE)))
        assert written.SpecificCharacterSet == "ISO_IR 192"
        for group in ("alphabetic", "ideographic", "phonetic"):
            assert getattr(written.PatientName, group) == getattr(expected, group)
    parts = [part for group in str(expected).split("=") for part in group.split("^") if part]
    assert parts
    for form in ("hl7", "fhir", "fhir-r5"):
        data = render(form, WORDS, Source(identity, (), BUNDLE)).decode()
        assert all(part in data for part in parts)


def test_the_hash_of_a_bundle_begins_with_its_id() -> None:
    manifest = open_bundle(demo_bundle())
    assert len(bundle_sha256(manifest)) == 64
    assert bundle_sha256(manifest).startswith(bundle_id(manifest))


def test_a_model_of_phantoms_says_so_everywhere() -> None:
    assert DEMO_NOTICE in WORDS.notice
    real = dataclasses.replace(WORDS, notice=NOTICE)
    assert "synthetic" not in str(read(render("sr", real, full())))
    # What was measured is a patient, whatever the model is: the module of the patient is the source's.
    assert read(render("sr", WORDS, full())).QualityControlSubject == "YES"
    assert "QualityControlSubject" not in read(render("sr", WORDS, radiograph()))
