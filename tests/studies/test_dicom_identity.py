"""Whom an image belongs to: the attributes a result repeats, text of every character set, and none of it in errors."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.data import get_charset_files
from pydicom.dataset import Dataset

from r2gen_export.errors import R2GenError
from r2gen_export.studies.dicom.identity_attributes import KEYWORDS
from r2gen_export.studies.dicom.reader import DicomReader
from r2gen_export.studies.dicom.types import DicomSettings
from tests.helpers.dicom_files import encode, item, radiograph, stored, write

VALUES = stored(12, False)
SETTINGS, FORCE = DicomSettings(), DicomSettings(force=True)
SENTINEL = "ZZYZX"

TERMS = [
    "Modality", "BodyPartExamined", "PhotometricInterpretation", "PresentationIntentType", "PresentationLUTShape",
    "VOILUTFunction", "PatientOrientation", "ViewPosition", "BurnedInAnnotation", "SOPClassUID",
    "PatientSpeciesDescription", "SpecificCharacterSet", "ResponsiblePersonRole", "WindowCenter", "WindowWidth",
    "RescaleSlope", "NumberOfFrames",
]  # fmt: skip
"""Attributes that decide something, or that a message may mention."""

NAMES = {
    "chrArab.dcm": "قباني^لنزار",
    "chrFren.dcm": "Buc^Jérôme",
    "chrFrenMulti.dcm": "Buc^Jérôme",
    "chrGerm.dcm": "Äneas^Rüdiger",
    "chrGreek.dcm": "Διονυσιος",
    "chrH31.dcm": "Yamada^Tarou=山田^太郎=やまだ^たろう",
    "chrH32.dcm": "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
    "chrHbrw.dcm": "שרון^דבורה",
    "chrI2.dcm": "Hong^Gildong=洪^吉洞=홍^길동",
    "chrKoreanMulti.dcm": "김희중",
    "chrRuss.dcm": "Люкceмбypг",
    "chrX1.dcm": "Wang^XiaoDong=王^小東",
    "chrX2.dcm": "Wang^XiaoDong=王^小东",
}
"""The patient's name in pydicom's files, from the examples of PS3.5 annexes H to K."""


@pytest.fixture(scope="module")
def reader() -> Iterator[DicomReader]:
    """One child process for this module."""
    reader = DicomReader()
    yield reader
    reader.close()


@pytest.mark.parametrize("name", NAMES)
def test_character_sets(name: str, reader: DicomReader) -> None:
    """The name as it is written; the JSON model's groups are alphabetic, ideographic and phonetic."""
    (file,) = [Path(path) for path in get_charset_files("*") if Path(path).name == name]
    header = reader.read_header(file, "image", SETTINGS)
    (value,) = header.attributes["00100010"]["Value"]
    groups = [value.get(group, "") for group in ("Alphabetic", "Ideographic", "Phonetic")]
    assert "=".join(groups).rstrip("=") == NAMES[name]
    assert NAMES[name] in header.patient
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = pydicom.dcmread(file).get("SpecificCharacterSet", [])
    many = [expected] if isinstance(expected, str) else list(expected)
    assert list(header.character_set) == [str(part) for part in many]
    assert not any("character set" in warning for warning in header.warnings)


def test_text_that_does_not_fit_its_character_set(reader: DicomReader, tmp_path: Path) -> None:
    """Decoded as well as it can be, and flagged."""
    data = write(tmp_path / "a.dcm", radiograph(VALUES, 12), VALUES).read_bytes()
    for term, name, fits in (
        (b"ISO_IR 100", b"D\xf6\xe9^Jane", True),
        (b"ISO_IR 192", b"D\xf6\xe9^Jane", False),
        (b"ISO_IR 999", b"Doe^Jane", False),
        (b"ISO_IR 6  ", b"D\xf6\xe9^Jane", False),
        (b"ISO_IR 6  ", b"Doe^Jane", True),
        (b"ISO_IR 100", b"Doe^\x1b$Q1", False),
    ):
        assert len(term) == 10
        assert len(name) == 8
        (tmp_path / "a.dcm").write_bytes(data.replace(b"ISO_IR 100", term).replace(b"Doe^Jane", name))
        header = reader.read_header(tmp_path / "a.dcm", "image", SETTINGS)
        assert ("its text does not fit its character set: names may be wrong" in header.warnings) != fits, (term, name)


def test_all_attributes(reader: DicomReader, tmp_path: Path) -> None:
    """Everything of `KEYWORDS`, sequences with their items, comes back as pydicom reads it."""
    dataset = full()
    header = reader.read_header(write(tmp_path / "a.dcm", dataset, VALUES), "image", SETTINGS)
    again = Dataset.from_json(dict(header.attributes))
    for keyword in KEYWORDS:
        assert keyword in dataset, f"the test lacks {keyword}"
        assert again[keyword] == dataset[keyword], keyword
    assert len(again) == len(KEYWORDS)
    assert header.patient.split("\n") == [f"{SENTINEL}-ID", f"{SENTINEL} hospital", f"{SENTINEL}^JANE", "19700101"]
    assert (header.series_number, header.instance_number) == (4, 7)
    assert header.source.series_instance_uid == "1.2.3.4.5"
    assert "ZZYZX" not in repr(header)


def test_an_attribute_that_cannot_be_read(reader: DicomReader, tmp_path: Path) -> None:
    """It is left out with a warning; the others are there."""
    dataset = radiograph(VALUES, 12, PatientWeight="70")
    data = write(tmp_path / "a.dcm", dataset, VALUES).read_bytes()
    assert data.count(b"DS\x02\x0070") == 1
    (tmp_path / "a.dcm").write_bytes(data.replace(b"DS\x02\x0070", b"DS\x02\x00kg"))
    header = reader.read_header(tmp_path / "a.dcm", "image", SETTINGS)
    assert "some attributes of its patient, study or order cannot be read and were left out" in header.warnings
    assert "00101030" not in header.attributes
    assert header.attributes["00100020"]["Value"] == ["P1"]


def test_attributes_of_any_size(reader: DicomReader, tmp_path: Path) -> None:
    """2 MB of a name are refused, not passed on."""
    path = write(tmp_path / "a.dcm", radiograph(VALUES, 12, OtherPatientNames="A" * 60_000), VALUES)
    assert len(reader.read_header(path, "image", SETTINGS).attributes["00101001"]["Value"][0]["Alphabetic"]) == 60_000
    requests = [radiograph(VALUES, 12, RequestedProcedureDescription="B" * 60_000) for _ in range(30)]
    path = write(tmp_path / "a.dcm", radiograph(VALUES, 12, RequestAttributesSequence=requests), VALUES)
    with pytest.raises(R2GenError, match="more than 1 MB") as error:
        reader.read_header(path, "image", SETTINGS)
    assert error.value.code == "R2G-DICOM-LIMIT"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_value_of_a_file_in_any_message(reader: DicomReader, tmp_path: Path) -> None:
    """The sentinel in all attributes that have text, also where a defined term belongs, and in the file's name."""
    path = tmp_path / f"{SENTINEL}.dcm"
    messages = []
    spoiled: list[tuple[Dataset, str]] = [(full(), "explicit")]
    for keyword in TERMS:
        dataset = full()
        dataset.WindowCenter, dataset.WindowWidth, dataset.RescaleSlope, dataset.NumberOfFrames = "11", "12", "13", "1"
        setattr(dataset, keyword, "1234567")
        spoiled.append((dataset, "explicit"))
    spoiled.append((full(), "lossless"))
    for dataset, syntax in spoiled:
        data = encode(dataset, VALUES, syntax).data.replace(b"1234567", b"ZZYZX^J")
        for content in (data, data[:-100], data[: len(data) // 2], data[132:], data.replace(b"DICM", b"ABCD")):
            path.write_bytes(content)
            for settings in (SETTINGS, FORCE):
                for read in (reader.read_header, reader.read_dicom):
                    messages.append(said(read, path, settings))
    assert len({message for message in messages if message}) > 20
    for message in messages:
        assert "zyzx" not in message.lower()
        assert "hospital" not in message
        assert "1234567" not in message


def said(read: Any, path: Path, settings: DicomSettings) -> str:
    """All text that may be shown."""
    try:
        result = read(path, "study 1", settings)
        return f"{getattr(result, 'problem', '')} {result.warnings} {result!r}"
    except R2GenError as error:
        return f"{error.render()} {error!r} {error.__cause__!r}"


def full() -> Dataset:
    """An image with every attribute of `KEYWORDS`, the sentinel in all that have text."""
    code = {"CodeValue": SENTINEL, "CodingSchemeDesignator": f"99{SENTINEL}", "CodeMeaning": SENTINEL}
    reference = {"ReferencedSOPClassUID": "1.2.3", "ReferencedSOPInstanceUID": "1.2.3.4.9"}
    issuer = {"LocalNamespaceEntityID": SENTINEL}
    texts = (
        "TypeOfPatientID OtherPatientNames EthnicGroup DeidentificationMethod StudyID StudyDescription AccessionNumber "
        "ReferringPhysicianName PhysiciansOfRecord AdmissionID RequestingPhysician RequestedProcedureID "
        "RequestedProcedureDescription PlacerOrderNumberImagingServiceRequest FillerOrderNumberImagingServiceRequest "
        "InstitutionName"
    )
    attributes: dict[str, Any] = dict.fromkeys(texts.split(), f"{SENTINEL} 1")
    attributes |= {
        "PatientName": f"{SENTINEL}^JANE",
        "PatientID": f"{SENTINEL}-ID",
        "IssuerOfPatientID": f"{SENTINEL} hospital",
        "PatientBirthTime": "101010",
        "PatientAge": "050Y",
        "PatientSize": "1.7",
        "PatientWeight": "70",
        "QualityControlSubject": "NO",
        "PatientIdentityRemoved": "NO",
        "TimezoneOffsetFromUTC": "+0100",
        "SeriesNumber": 4,
        "InstanceNumber": 7,
        "IssuerOfPatientIDQualifiersSequence": item(UniversalEntityID=SENTINEL, UniversalEntityIDType="DNS"),
        "OtherPatientIDsSequence": item(PatientID=f"{SENTINEL}-2", TypeOfPatientID="TEXT"),
        "DeidentificationMethodCodeSequence": item(**code),
        "IssuerOfAccessionNumberSequence": item(**issuer),
        "ReferringPhysicianIdentificationSequence": item(InstitutionName=SENTINEL),
        "ProcedureCodeSequence": item(**code),
        "ReferencedStudySequence": item(**reference),
        "IssuerOfAdmissionIDSequence": item(**issuer),
        "RequestAttributesSequence": item(RequestedProcedureID=SENTINEL, ScheduledProcedureStepID=SENTINEL),
        "ReferencedRequestSequence": item(AccessionNumber=SENTINEL, StudyInstanceUID="1.2.3.4"),
        "ReferencedPerformedProcedureStepSequence": item(**reference),
        "RequestedProcedureCodeSequence": item(**code),
    }
    return radiograph(VALUES, 12, **attributes)
