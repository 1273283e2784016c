"""As `test_sentinel_names.py`, of DICOM: a name, dates and UIDs in every attribute that may identify somebody."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.fileset import FileSet

from tests.helpers.dicom_studies import radiograph, save
from tests.helpers.loaded_once import loaded_once
from tests.helpers.sentinel import FAULTS, NAME, assert_nameless, failing, run, written

SHORT = ("--preset", "fast", "--min-new-tokens", "3", "--max-new-tokens", "4", "--device", "cpu")

DATE, TIME, UID_ROOT = "19371123", "234519.873461", "2.25.8347561920983"

TEXTS = str.split(
    "PatientName PatientID IssuerOfPatientID OtherPatientIDs OtherPatientNames PatientBirthName PatientMotherBirthName "
    "PatientAddress PatientTelephoneNumbers MilitaryRank EthnicGroup Occupation PatientComments CountryOfResidence "
    "AdditionalPatientHistory ResponsiblePerson ResponsibleOrganization AccessionNumber ReferringPhysicianName "
    "ConsultingPhysicianName PhysiciansOfRecord PerformingPhysicianName NameOfPhysiciansReadingStudy OperatorsName "
    "RequestingPhysician RequestingService InstitutionName InstitutionAddress InstitutionalDepartmentName StationName "
    "DeviceSerialNumber PlateID DetectorID CassetteID GantryID Manufacturer ManufacturerModelName SoftwareVersions "
    "StudyID StudyDescription SeriesDescription ProtocolName ImageComments DerivationDescription AdmissionID "
    "CurrentPatientLocation PatientInstitutionResidence RequestedProcedureID RequestedProcedureDescription "
    "PerformedProcedureStepID PerformedProcedureStepDescription PlacerOrderNumberImagingServiceRequest "
    "FillerOrderNumberImagingServiceRequest ReasonForStudy AcquisitionDeviceProcessingDescription"
)
DATES = str.split("PatientBirthDate StudyDate SeriesDate AcquisitionDate ContentDate InstanceCreationDate")
TIMES = str.split("PatientBirthTime StudyTime SeriesTime AcquisitionTime ContentTime InstanceCreationTime")
UIDS = str.split("StudyInstanceUID SeriesInstanceUID SOPInstanceUID FrameOfReferenceUID DeviceUID InstanceCreatorUID")

JUDGED = str.split(
    "BodyPartExamined Modality ViewPosition PhotometricInterpretation PresentationLUTShape BurnedInAnnotation "
    "PresentationIntentType SpecificCharacterSet ImageType ImageLaterality VOILUTFunction PatientSex "
    "PatientSpeciesDescription PatientBreedDescription LossyImageCompression QualityControlSubject"
)
"""Attributes that reading looks at, of values that are words."""

NUMERIC = str.split("RescaleSlope RescaleIntercept WindowWidth WindowCenter SeriesNumber InstanceNumber NumberOfFrames")
"""The same, of values that are numbers written as text."""

PLACEHOLDER = "1234567890"


@pytest.fixture(autouse=True, scope="module")
def demo_loaded_once() -> Iterator[None]:
    with loaded_once():
        yield


@pytest.fixture(autouse=True)
def written_as_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """pydicom writes what is no legal value, as the tests here want it, without a word."""
    for mode in ("reading_validation_mode", "writing_validation_mode"):
        monkeypatch.setattr(pydicom.config.settings, mode, pydicom.config.IGNORE)


def identified(instance: int = 1, **attributes: Any) -> Dataset:
    """A radiograph with the sentinel wherever the standard has a place for a person, a site or a device."""
    values: dict[str, Any] = {**dict.fromkeys(TEXTS, NAME), **dict.fromkeys(DATES, DATE), **dict.fromkeys(TIMES, TIME)}
    values |= {name: f"{UID_ROOT}.{number}" for number, name in enumerate(UIDS)}
    values["SOPInstanceUID"] = f"{UID_ROOT}.{100 + instance}"
    dataset = radiograph(1, 1, **(values | attributes))
    block = dataset.private_block(0x0011, NAME, create=True)
    block.add_new(1, "LO", NAME)
    request = Dataset()
    request.RequestedProcedureDescription = request.AccessionNumber = NAME
    dataset.RequestAttributesSequence = [request]
    return dataset


def ward(folder: Path) -> Path:
    path = folder / f"ward-{NAME}"
    path.mkdir(exist_ok=True)
    return path


def assert_unidentified(text: str) -> None:
    assert_nameless(text)
    for sentinel in (DATE, TIME, UID_ROOT.rpartition(".")[2], PLACEHOLDER):
        assert sentinel not in text, text


def infer(*arguments: object, out: Path | None = None, forms: tuple[str, ...] = ("text", "json")) -> list[int]:
    """Exit statuses of `infer` in each form, the second with `--verbose`; nothing in its output names anybody."""
    statuses = []
    for form in forms:
        to = ["--out", out / f"reports.{form}"] if out is not None else []
        more = ["--verbose"] if form == "json" else []
        status, text = run("infer", *arguments, *SHORT, "--format", form, *more, *to)
        assert_unidentified(text + (written(out) if out is not None else ""))
        statuses.append(status)
    return statuses


def test_a_report(tmp_path: Path) -> None:
    folder = ward(tmp_path)
    first = save(identified(1), folder / f"{NAME}-1.dcm")
    second = save(identified(2, ViewPosition="LL"), folder / f"{NAME}-2.dcm")
    assert infer(folder, out=tmp_path / "out") == [0, 0]
    assert infer("--study", first, second) == [0, 0]
    assert infer(first, "--force", "--polarity", "shape", forms=("json",)) == [0]
    status, text = run("infer", folder, *SHORT, "--names")
    assert status == 0
    assert f"== study 1 of 1, 2 views: {first} ==" in text
    assert UID_ROOT not in text, "--names shows paths alone"


def test_files_that_are_no_study(tmp_path: Path) -> None:
    folder = ward(tmp_path)
    first = save(identified(1), folder / "1.dcm")
    patient = save(identified(2, PatientID="X"), folder / "2.dcm")
    other = save(identified(3, StudyInstanceUID=f"{UID_ROOT}.9.9"), folder / "3.dcm")
    assert infer("--study", first, other) == [2, 2]
    assert infer("--study", first, patient) == [2, 2]
    assert infer(folder, out=tmp_path / "out") == [4, 4]
    (folder / "list.txt").write_text("1.dcm 2.dcm\n3.dcm\n")
    assert infer(folder / "list.txt") == [4, 4]


@pytest.mark.parametrize("force", [(), ("--force",)], ids=["", "force"])
@pytest.mark.filterwarnings("ignore:Unknown encoding")
def test_attributes_that_are_read(tmp_path: Path, force: tuple[str, ...]) -> None:
    """Each in a file of its own, and all of them in one."""
    folder = ward(tmp_path)
    for number, name in enumerate(JUDGED):
        study = f"{UID_ROOT}.7.{number}"
        save(identified(number, StudyInstanceUID=study, **{name: NAME}), folder / name)
    for number, name in enumerate(NUMERIC):
        study = f"{UID_ROOT}.8.{number}"
        extra = {"WindowWidth": "100", "WindowCenter": "50"} if name.startswith("Window") else {}
        path = save(identified(number, StudyInstanceUID=study, **(extra | {name: PLACEHOLDER})), folder / name)
        data = path.read_bytes()
        assert data.count(PLACEHOLDER.encode()) == 1
        path.write_bytes(data.replace(PLACEHOLDER.encode(), NAME.encode()))
    assert len(NAME) == len(PLACEHOLDER)
    assert infer(folder, *force, out=tmp_path / "out") == [4, 4]
    for name in ("BodyPartExamined", "Modality", "RescaleSlope", "PhotometricInterpretation"):
        assert infer(folder / name, *force, forms=("text",))[0] in (0, 2)
    save(identified(99, **dict.fromkeys(JUDGED, NAME)), folder / "all")
    assert infer(folder / "all", *force, forms=("text",))[0] in (0, 2)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    folder = ward(tmp_path)
    whole = save(identified(), folder / f"{NAME}-2.dcm").read_bytes()
    for size in (100, 132, 200, 700, len(whole) - 5000):
        (folder / f"{NAME}-{size}.dcm").write_bytes(whole[:size])
    (folder / "dangling.dcm").symlink_to(folder / f"{NAME}-gone.dcm")
    os.mkfifo(folder / f"{NAME}-pipe.dcm")
    (folder / f"{NAME}-folder.dcm").mkdir()
    (folder / "no meta.dcm").write_bytes(whole[132:])
    assert infer(folder, out=tmp_path / "out") == [4, 4]
    for path in (folder / f"{NAME}-700.dcm", folder / "no meta.dcm"):
        assert infer(path, forms=("text",)) == [2]
    for kind, fault in FAULTS.items():
        with failing(fault, ".dcm") as hit:
            (status,) = infer(folder / f"{NAME}-2.dcm", forms=("text",))
        assert hit
        assert status in ((130,) if kind == "Ctrl-C" else (1, 2))


def test_directories_and_archives(tmp_path: Path) -> None:
    folder = ward(tmp_path)
    file = save(identified(), folder / "1.dcm")
    files = FileSet()
    files.add(pydicom.dcmread(file))
    files.write(tmp_path / "cd")
    directory = tmp_path / "cd/DICOMDIR"
    assert infer(directory) == [0, 0]
    whole = directory.read_bytes()
    for name, changed in (
        ("absent", whole.replace(b"PT000000", b"ZZYZX^JA")),
        ("out", whole.replace(b"PT000000", b"..\\ZZYZX")),
        ("cut", whole[:-50]),
    ):
        assert changed != whole
        path = folder / f"{name}-{NAME}"
        path.write_bytes(changed)
        assert infer(path, forms=("text",)) == [2]
    for name, status in ((f"cd/{NAME}", 0), (f"../{NAME}", 2), (NAME * 40, 2)):
        path = folder / f"{NAME}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(file, name)
        assert infer(path, forms=("text",), out=tmp_path / "out") == [status]
        for left in (tmp_path / "out").glob("*"):
            left.unlink()


@pytest.mark.slow
def test_doctor_and_a_benchmark(tmp_path: Path) -> None:
    folder = ward(tmp_path)
    save(identified(1), folder / f"{NAME}-1.dcm")
    out = tmp_path / "bench"
    bench = ("bench", "--runs", 1, "--warmup", 1, "--max-new-tokens", 2, "--images", folder, "--out", out)
    status, text = run(*bench)
    assert status == 0, text
    assert_unidentified(text + written(out))
    save(identified(2, BodyPartExamined=NAME), folder / f"{NAME}-1.dcm")
    status, text = run(*bench[:-1], tmp_path / "other")
    assert status == 2, text
    assert_unidentified(text + written(tmp_path / "other"))
    status, text = run("doctor")
    assert_unidentified(text)
