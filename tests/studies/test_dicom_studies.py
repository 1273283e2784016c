"""DICOM files become studies by their headers: grouping, order of views, and what is refused, left out, passed over."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from r2gen_export.errors import R2GenError
from r2gen_export.studies.collect import collect_studies
from r2gen_export.studies.dicom.reader import _reader
from r2gen_export.studies.dicom.types import DicomSettings
from r2gen_export.studies.identity import SourceImage
from r2gen_export.studies.study import Study, StudyList
from tests.helpers.dicom_studies import CR, CT, DATA, DX_FOR_PROCESSING, radiograph, save, text_object, uid, write

PHANTOM = DATA / "phantom.png"
FORCE = DicomSettings(force=True)


def names(listed: StudyList, folder: Path) -> list[list[str]]:
    return [[os.fspath(image.relative_to(folder)) for image in study.images] for study in listed.studies]


def refusal(study: Study) -> tuple[str, str]:
    assert study.refusal is not None
    return study.refusal.code, study.refusal.message


def test_files_are_grouped_by_study_wherever_they_lie(tmp_path: Path) -> None:
    """Files by UID, by number and with any suffix; two studies in one folder; one study in three; PNG as ever."""
    write(tmp_path / "a/1.2.3.4", 1, 1)
    write(tmp_path / "a/IM0001", 2, 1)
    write(tmp_path / "b/deep/IM0002.dcm", 1, 2)
    write(tmp_path / "z.export", 1, 3)
    shutil.copy(PHANTOM, tmp_path / "a/picture.png")
    shutil.copy(PHANTOM, tmp_path / "m.png")
    listed = collect_studies([tmp_path])
    expected = [["a/picture.png"], ["a/1.2.3.4", "b/deep/IM0002.dcm", "z.export"], ["a/IM0001"], ["m.png"]]
    assert names(listed, tmp_path) == expected
    assert (listed.many, listed.warnings, listed.remarks) == (True, (), ())
    each = collect_studies([tmp_path / "a/IM0001", tmp_path / "z.export", tmp_path / "a/1.2.3.4"])
    assert names(each, tmp_path) == [["a/IM0001"], ["a/1.2.3.4", "z.export"]]
    assert not collect_studies([tmp_path / "z.export"]).many


def test_frontal_views_come_first_then_series_and_instance(tmp_path: Path) -> None:
    views = {
        "lateral": {"ViewPosition": "LL", "SeriesNumber": "1"},
        "unknown": {"ViewPosition": None, "PatientOrientation": None, "SeriesNumber": "1"},
        "late": {"SeriesNumber": "10", "InstanceNumber": "1"},
        "second": {"SeriesNumber": "2", "InstanceNumber": "20"},
        "first": {"SeriesNumber": "2", "InstanceNumber": "3"},
        "unnumbered": {"SeriesNumber": None, "InstanceNumber": None},
    }
    for number, (name, attributes) in enumerate(views.items(), start=1):
        write(tmp_path / name, 1, number, **attributes)
    expected = ["first", "second", "late", "unnumbered", "unknown", "lateral"]
    assert names(collect_studies([tmp_path]), tmp_path) == [expected]
    together = collect_studies([tmp_path / name for name in views], together=True)
    assert names(together, tmp_path) == [expected]
    (tmp_path / "list.txt").write_text("\t".join(views))
    assert names(collect_studies([tmp_path / "list.txt"]), tmp_path) == [expected]


def test_each_header_is_read_once(tmp_path: Path) -> None:
    for number in range(1, 6):
        write(tmp_path / str(number), 1, number)
    seen: list[tuple[int, int]] = []
    before = _reader.process._requests
    collect_studies([tmp_path], progress=lambda done, total: seen.append((done, total)))
    assert _reader.process._requests - before == 5
    assert seen == [(done, 5) for done in range(6)]


def test_a_study_carries_whom_it_belongs_to_and_does_not_print_it(tmp_path: Path) -> None:
    write(tmp_path / "l", 1, 2, ViewPosition="LL")
    write(tmp_path / "f", 1, 1, PatientName="Müller^Änne", SpecificCharacterSet="ISO_IR 100")
    write(tmp_path / "l", 1, 2, ViewPosition="LL", PatientName="Müller^Änne", SpecificCharacterSet="ISO_IR 100")
    (study,) = collect_studies([tmp_path]).studies
    assert study.identity is not None
    assert study.identity.attributes["00100010"]["Value"] == [{"Alphabetic": "Müller^Änne"}]
    assert study.identity.attributes["00080050"]["Value"] == ["A1"]
    assert study.identity.character_set == ("ISO_IR 100",)
    assert study.identity.images == tuple(SourceImage(CR, uid(1, at), uid(1, at, 1)) for at in (1, 2))
    assert "ller" not in repr(study) and uid(1) not in repr(study)


def test_files_of_several_studies_or_patients_are_no_study(tmp_path: Path) -> None:
    first, other = write(tmp_path / "1", 1, 1), write(tmp_path / "2", 2, 1)
    for settings in (DicomSettings(), FORCE):
        with pytest.raises(R2GenError) as caught:
            collect_studies([first, other], together=True, dicom=settings)
        assert caught.value.code == "R2G-DICOM-STUDY"
        assert "2 studies" in caught.value.message
    write(tmp_path / "3", 1, 2, PatientID="T2")
    with pytest.raises(R2GenError, match="2 patients"):
        collect_studies([first, tmp_path / "3"], together=True)
    one, two = collect_studies([tmp_path]).studies
    assert refusal(one)[0] == "R2G-DICOM-STUDY"
    assert two.refusal is None
    (tmp_path / "annotation.json").write_text(json.dumps({"test": [{"id": 1, "image_path": ["1", "2"]}]}))
    (entry,) = collect_studies([tmp_path / "annotation.json"]).studies
    assert refusal(entry)[0] == "R2G-DICOM-STUDY"
    with pytest.raises(R2GenError, match="study 7: its files are of 2 studies"):
        entry.readable_images("study 7")


def test_patients_are_told_apart_by_each_of_their_attributes(tmp_path: Path) -> None:
    first = write(tmp_path / "1", 1, 1)
    for name, value in {"PatientName": "Other^One", "IssuerOfPatientID": "X", "PatientBirthDate": "19700102"}.items():
        second = write(tmp_path / name, 1, 2, **{name: value})
        with pytest.raises(R2GenError, match="R2G-DICOM-STUDY"):
            collect_studies([first, second], together=True)


def test_an_instance_that_is_there_twice_is_taken_once(tmp_path: Path) -> None:
    shutil.copy(write(tmp_path / "1", 1, 1), tmp_path / "copy.dcm")
    write(tmp_path / "2", 1, 2)
    listed = collect_studies([tmp_path])
    assert names(listed, tmp_path) == [["1", "2"]]
    assert listed.warnings == ("passed over: DICOM instances that are listed already: 1",)
    (tmp_path / "copy.dcm").unlink()
    (tmp_path / "link").symlink_to(tmp_path / "2")
    assert collect_studies([tmp_path]).warnings == ("passed over: links to what is listed already: 1",)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"PatientID": "T2"}, "2 patients"),
        ({"ViewPosition": "LL"}, "same SOPInstanceUID"),
        ({"InstanceNumber": "2"}, "same SOPInstanceUID"),
    ],
)
def test_different_images_with_one_instance_uid_are_no_copies(
    attributes: dict[str, str], reason: str, tmp_path: Path
) -> None:
    """The second would be left out as a copy, whoever and whatever it shows."""
    write(tmp_path / "1", 1, 1)
    write(tmp_path / "2", 1, 1, **attributes)
    (study,) = collect_studies([tmp_path]).studies
    code, message = refusal(study)
    assert code == "R2G-DICOM-STUDY"
    assert reason in message


def test_images_of_several_orders_are_said(tmp_path: Path) -> None:
    write(tmp_path / "1", 1, 1)
    write(tmp_path / "2", 1, 2, AccessionNumber=None)
    assert collect_studies([tmp_path]).studies[0].warnings == ()
    write(tmp_path / "3", 1, 3, AccessionNumber="A7")
    (study,) = collect_studies([tmp_path]).studies
    assert study.warnings == ("its images have 2 accession numbers: results name that of view 1",)


def test_files_without_a_study_are_studies_of_their_own(tmp_path: Path) -> None:
    for number in (1, 2):
        write(tmp_path / str(number), 1, number, StudyInstanceUID=None)
    assert names(collect_studies([tmp_path]), tmp_path) == [["1"], ["2"]]


def test_objects_that_are_no_radiographs_are_passed_over_by_kind(tmp_path: Path) -> None:
    write(tmp_path / "image", 1, 1)
    save(text_object(), tmp_path / "sr")
    write(tmp_path / "ct1", 1, 3, SOPClassUID=CT, Modality="CT")
    write(tmp_path / "ct2", 1, 4, SOPClassUID=CT, Modality="CT")
    listed = collect_studies([tmp_path])
    assert names(listed, tmp_path) == [["image"]]
    assert listed.warnings == ("passed over: DICOM objects (a structured report): 1; DICOM objects (modality CT): 2",)
    (tmp_path / "image").unlink()
    with pytest.raises(R2GenError, match=r"R2G-DATA-EMPTY.*modality CT"):
        collect_studies([tmp_path])
    (named,) = collect_studies([tmp_path / "sr"]).studies
    assert refusal(named) == ("R2G-DICOM-REFUSED", "the image is a structured report, not an image")
    (forced,) = collect_studies([tmp_path], dicom=FORCE).studies
    assert [image.name for image in forced.images] == ["ct1", "ct2"]


def test_refused_images_beside_others_are_left_out_with_a_warning(tmp_path: Path) -> None:
    """For processing beside for presentation of the same exposure."""
    write(tmp_path / "shown", 1, 1)
    write(tmp_path / "raw", 1, 2, SOPClassUID=DX_FOR_PROCESSING, Modality="DX")
    for settings in (DicomSettings(), FORCE):
        (study,) = collect_studies([tmp_path], dicom=settings).studies
        assert [image.name for image in study.images] == ["shown"]
        assert study.warnings == ("1 of 2 images not used: one is for processing, not for presentation",)
        assert study.identity is not None
        assert len(study.identity.images) == 1
    (tmp_path / "shown").unlink()
    (study,) = collect_studies([tmp_path]).studies
    assert refusal(study) == ("R2G-DICOM-REFUSED", "the image is for processing, not for presentation")
    (study,) = collect_studies([tmp_path], dicom=FORCE).studies
    assert study.refusal is None


def test_a_study_of_which_no_image_may_be_read(tmp_path: Path) -> None:
    write(tmp_path / "1", 1, 1, BodyPartExamined="HAND")
    write(tmp_path / "2", 1, 2, BodyPartExamined="HAND")
    (study,) = collect_studies([tmp_path]).studies
    assert refusal(study) == ("R2G-DICOM-REFUSED", "each of its 2 images has body part HAND, not the chest")
    write(tmp_path / "3", 1, 3, PixelData=None)
    (study,) = collect_studies([tmp_path]).studies
    code, message = refusal(study)
    assert code == "R2G-DICOM-REFUSED"
    assert message.startswith("each of its 3 images is refused: one has body part HAND, not the chest; one ")
    (study,) = collect_studies([tmp_path], dicom=FORCE).studies
    assert [image.name for image in study.images] == ["1", "2"]
    (study,) = collect_studies([tmp_path / "3"], dicom=FORCE).studies
    assert refusal(study)[0] == "R2G-DICOM-PIXELS"


def test_lateral_views_alone_are_refused_unless_forced(tmp_path: Path) -> None:
    lateral = write(tmp_path / "l", 1, 1, ViewPosition="LL")
    (study,) = collect_studies([lateral]).studies
    assert refusal(study)[0] == "R2G-DICOM-REFUSED"
    assert "lateral" in refusal(study)[1]
    (study,) = collect_studies([lateral], dicom=FORCE).studies
    assert (study.refusal, study.warnings) == (None, ("lateral views only, read with --force",))
    (study,) = collect_studies([lateral, PHANTOM], together=True).studies
    assert study.refusal is None, "nobody knows what the other image shows"


def test_pictures_beside_dicom_files(tmp_path: Path) -> None:
    picture = Path(shutil.copy(PHANTOM, tmp_path / "a.png"))
    file = write(tmp_path / "b.dcm", 1, 1)
    (study,) = collect_studies([picture, file], together=True).studies
    assert study.images == (file, picture)
    assert study.identity is not None
    refused = write(tmp_path / "c.dcm", 1, 2, BodyPartExamined="HAND")
    (study,) = collect_studies([picture, refused], together=True).studies
    assert (study.images, study.identity) == ((picture,), None)
    assert study.warnings == ("1 of 2 images not used: one has body part HAND, not the chest",)


def test_files_that_cannot_be_parsed_fail_alone(tmp_path: Path) -> None:
    write(tmp_path / "1", 1, 1)
    (tmp_path / "2.dcm").write_bytes(b"no DICOM")
    (tmp_path / "3").write_bytes(bytes(128) + b"DICM" + b"\xff" * 200)
    good, *bad = collect_studies([tmp_path]).studies
    assert good.refusal is None
    assert [refusal(study)[0] for study in bad] == ["R2G-DICOM-FORMAT"] * 2
    (study,) = collect_studies([tmp_path / "1", tmp_path / "3"], together=True).studies
    assert refusal(study)[0] == "R2G-DICOM-FORMAT"


def test_a_dataset_without_meta_header_is_recognised(tmp_path: Path) -> None:
    """It begins with an element of group 8, implicit or explicit; text and other files do not."""
    for name, implicit in (("explicit", False), ("implicit.dcm", True)):
        radiograph(1, 1).save_as(tmp_path / name, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
    (tmp_path / "README").write_text("text")
    listed = collect_studies([tmp_path])
    (study,) = listed.studies
    assert listed.remarks == ("passed over: other files: 1",)
    assert refusal(study) == ("R2G-DICOM-REFUSED", "the image has no meta header that states its transfer syntax")
