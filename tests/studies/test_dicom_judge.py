"""What is refused, what is flagged, and what `--force` does about it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.encaps import encapsulate

from r2gen_export.errors import R2GenError
from r2gen_export.studies.dicom.detect import begins_as_dataset, is_dicom
from r2gen_export.studies.dicom.reader import DicomReader
from r2gen_export.studies.dicom.types import DicomSettings
from tests.helpers.dicom_files import encode, frame, item, radiograph, stored, write

VALUES = stored(12, False)
SETTINGS, FORCE = DicomSettings(), DicomSettings(force=True)
DX = "1.2.840.10008.5.1.4.1.1.1.1"


@pytest.fixture(scope="module")
def reader() -> Iterator[DicomReader]:
    """One child process for this module."""
    reader = DicomReader()
    yield reader
    reader.close()


def region(value: str, scheme: str) -> Any:
    """An AnatomicRegionSequence, species or view by its code."""
    return item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning="meaning")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "CT": ({"Modality": "CT"}, "has modality CT, not CR or DX"),
    "a mammogram": ({"Modality": "MG"}, "has modality MG"),
    "film": ({"Modality": "RG"}, "has modality RG"),
    "no modality": ({"Modality": None}, "does not state its modality"),
    "a name as modality": ({"Modality": "DOE"}, "has modality of an unknown kind"),
    "CT by its SOP class": ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}, "is not of the SOP class of a CR or DX"),
    "abdomen": ({"BodyPartExamined": "ABDOMEN"}, "has body part ABDOMEN, not the chest"),
    "ribs": ({"BodyPartExamined": "RIB"}, "has body part RIB"),
    "babygram": ({"BodyPartExamined": "CHESTABDOMEN"}, "has body part CHESTABDOMEN"),
    "chest and abdomen": ({"BodyPartExamined": "CHEST ABDOMEN"}, "is not of the chest"),
    "thoracic spine": ({"BodyPartExamined": "TSPINE"}, "has body part TSPINE"),
    "a name as body part": ({"BodyPartExamined": "DOE"}, "is not of the chest"),
    "foot by SNOMED CT": (
        {"BodyPartExamined": None, "AnatomicRegionSequence": region("56459004", "SCT")},
        "anatomic region",
    ),
    "foot by SNOMED RT": ({"AnatomicRegionSequence": region("T-D9700", "SRT")}, "anatomic region"),
    "colour": ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "is in colour"),
    "palette": ({"PhotometricInterpretation": "PALETTE COLOR"}, "is in colour"),
    "no photometric interpretation": ({"PhotometricInterpretation": None}, "photometric interpretation"),
    "two frames": ({"NumberOfFrames": 2}, "has several frames"),
    "burnt-in annotation": ({"BurnedInAnnotation": "YES"}, "has burnt-in annotation"),
    "for processing by intent": (
        {"SOPClassUID": DX, "Modality": "DX", "PresentationIntentType": "FOR PROCESSING"},
        "is for processing",
    ),
    "for processing by class": ({"SOPClassUID": DX + ".1", "Modality": "DX"}, "is for processing"),
    "a dog": ({"PatientSpeciesDescription": "Canine"}, "is of an animal"),
    "a cat": ({"PatientSpeciesCodeSequence": region("L-80A00", "SRT")}, "is of an animal"),
    "a breed": ({"PatientBreedDescription": "Labrador"}, "is of an animal"),
    "an owner": ({"ResponsiblePerson": "Doe^J", "ResponsiblePersonRole": "OWNER"}, "is of an animal"),
    "a structured report": ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.11"}, "is a structured report, not an image"),
    "a key object selection": ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.59"}, "is a key object selection"),
    "a presentation state": ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.11.1"}, "is a presentation state"),
    "a segmentation": ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4"}, "is a segmentation"),
    "a PDF": ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.104.1"}, "is an encapsulated document"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, reader: DicomReader, tmp_path: Path) -> None:
    """`problem` in the header, R2G-DICOM-REFUSED for the image; with `force` an image that says so, if it is grey."""
    attributes, problem = REFUSED[name]
    path = write(tmp_path / "a.dcm", radiograph(VALUES, 12, **attributes), VALUES)
    assert problem in reader.read_header(path, "study 1", SETTINGS).problem
    with pytest.raises(R2GenError) as error:
        reader.read_dicom(path, "study 1", SETTINGS)
    assert error.value.code == "R2G-DICOM-REFUSED"
    assert error.value.message.startswith("study 1 ")
    assert problem in error.value.message
    if "PhotometricInterpretation" in attributes:
        with pytest.raises(R2GenError, match="in colour") as error:
            reader.read_dicom(path, "study 1", FORCE)
        assert error.value.code == "R2G-DICOM-PIXELS"
    elif "NumberOfFrames" not in attributes:
        image = reader.read_dicom(path, "study 1", FORCE)
        assert any(
            warning.startswith("read by --force although it ") and problem in warning for warning in image.warnings
        )


SOUND: dict[str, tuple[dict[str, Any], str, str]] = {
    "as it is": ({}, "frontal", ""),
    "DX": ({"SOPClassUID": DX, "Modality": "DX", "PresentationIntentType": "FOR PRESENTATION"}, "frontal", ""),
    "thorax": ({"BodyPartExamined": "THORAX"}, "frontal", ""),
    "chest with its view": ({"BodyPartExamined": "chest_pa"}, "frontal", ""),
    "lung": ({"BodyPartExamined": "LUNG"}, "frontal", ""),
    "chest by SNOMED CT": (
        {"BodyPartExamined": None, "AnatomicRegionSequence": region("816094009", "SCT")},
        "frontal",
        "",
    ),
    "chest by SNOMED RT": (
        {"BodyPartExamined": "", "AnatomicRegionSequence": region("T-D3000", "SNM3")},
        "frontal",
        "",
    ),
    "a site's own code": ({"AnatomicRegionSequence": region("77", "99SITE")}, "frontal", ""),
    "a human": ({"PatientSpeciesDescription": "Homo sapiens"}, "frontal", ""),
    "a human by code": ({"PatientSpeciesCodeSequence": region("337915000", "SCT")}, "frontal", ""),
    "one frame": ({"NumberOfFrames": 1}, "frontal", ""),
    "no annotation": ({"BurnedInAnnotation": "NO"}, "frontal", ""),
    "lateral": ({"ViewPosition": "LL", "PatientOrientation": ["A", "F"]}, "lateral", ""),
    "frontal, lateral by code": (
        {"ViewPosition": "PA", "ViewCodeSequence": region("399067008", "SCT")},
        "frontal",
        "ViewPosition and its ViewCodeSequence contradict",
    ),
    "frontal by an old code": ({"ViewPosition": None, "ViewCodeSequence": region("R-10202", "SRT")}, "frontal", ""),
    "frontal by code": ({"ViewPosition": None, "ViewCodeSequence": region("399348003", "SCT")}, "frontal", ""),
    "lateral by code": (
        {"ViewPosition": "", "ViewCodeSequence": region("R-10236", "SRT"), "PatientOrientation": ["P", "F"]},
        "lateral",
        "",
    ),
    "no body part": ({"BodyPartExamined": None}, "frontal", "it does not state its body part"),
    "no view": ({"ViewPosition": None}, "frontal", "it does not state its view"),
    "no view, turned": ({"ViewPosition": None, "PatientOrientation": ["A", "F"]}, "lateral", "does not state its view"),
    "no view at all": ({"ViewPosition": None, "PatientOrientation": None}, "unknown", "does not state its view"),
    "decubitus": ({"ViewPosition": "LLD"}, "unknown", "neither frontal nor lateral"),
    "mirrored": ({"PatientOrientation": ["R", "F"]}, "frontal", "mirrored or upside down"),
    "upside down": ({"PatientOrientation": ["L", "H"]}, "frontal", "mirrored or upside down"),
    "rotated": ({"PatientOrientation": ["L", "P"]}, "frontal", "is rotated"),
    "contradiction": ({"PatientOrientation": ["A", "F"]}, "frontal", "contradict each other"),
    "OT": ({"Modality": "OT", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "frontal", "its modality is OT"),
    "secondary capture": ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "frontal", "it is a secondary capture"),
    "no SOP class": ({"SOPClassUID": None}, "frontal", ""),
    "no patient": ({"PatientID": ""}, "frontal", "it has no patient ID"),
    "no study": ({"StudyInstanceUID": None}, "frontal", "it has no study UID"),
    "phantom": ({"QualityControlSubject": "YES"}, "frontal", "quality control"),
    "flat pixels": ({"PixelSpacing": [0.1, 0.2]}, "frontal", "not square"),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_or_flagged(name: str, reader: DicomReader, tmp_path: Path) -> None:
    """Read, with the warning in header and image and no other one."""
    attributes, view, warning = SOUND[name]
    path = write(tmp_path / "a.dcm", radiograph(VALUES, 12, **attributes), VALUES)
    header = reader.read_header(path, "study 1", SETTINGS)
    assert (header.problem, header.view) == ("", view)
    if name in ("OT",):
        assert len(header.warnings) == 2
    else:
        assert len(header.warnings) == bool(warning)
    assert warning in str(header.warnings)
    assert reader.read_dicom(path, "study 1", SETTINGS).warnings == header.warnings


def test_several_problems_are_all_stated(reader: DicomReader, tmp_path: Path) -> None:
    """A user who forces one must know of the others."""
    path = write(tmp_path / "a.dcm", radiograph(VALUES, 12, Modality="CT", BodyPartExamined="HEAD"), VALUES)
    problem = reader.read_header(path, "study 1", SETTINGS).problem
    assert problem == "has modality CT, not CR or DX, and has body part HEAD, not the chest"


def half(syntax: str) -> bytes:
    """The first half of a frame, complete as a fragment."""
    whole = frame(VALUES, 12, syntax)
    return whole[: len(whole) // 4 * 2]


PIXELS: dict[str, tuple[bytes | None, dict[str, Any], str, str]] = {
    "no pixels": (b"", {}, "explicit", "fewer pixels"),
    "half the pixels": (VALUES.tobytes()[: VALUES.nbytes // 2], {}, "explicit", "fewer pixels"),
    "no rows": (None, {"Rows": None}, "explicit", "no pixels"),
    "zero columns": (None, {"Columns": 0}, "explicit", "no pixels"),
    "32 bits": (None, {"BitsAllocated": 32}, "explicit", "has 32 bits for a pixel"),
    "more stored than allocated": (None, {"BitsStored": 17}, "explicit", "contradict each other"),
    "high bit below the stored ones": (None, {"HighBit": 5}, "explicit", "contradict each other"),
    "other rows than the JPEG": (None, {"Rows": 41}, "lossless", "of another size"),
    "other columns than the JPEG-LS": (None, {"Columns": 47}, "jls", "of another size"),
    "other size than the JPEG 2000": (None, {"Rows": 30_000, "Columns": 3_000}, "j2k", "of another size"),
    "fewer bits than the JPEG": (None, {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}, "lossless", "more bits"),
    "no JPEG": (b"\0" * 100, {}, "lossless", "no JPEG"),
    "half a lossless JPEG": (half("lossless"), {}, "lossless", "truncated"),
    "half an extended JPEG": (half("jpeg12"), {}, "jpeg12", "truncated"),
    "half a JPEG-LS": (half("jls"), {}, "jls", "truncated"),
    "half a JPEG 2000": (half("j2k"), {}, "j2k", "truncated"),
    "half an RLE frame": (half("rle"), {}, "rle", "truncated"),
    "an RLE frame of 8 bits": (None, {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}, "rle", "another depth"),
}


@pytest.mark.parametrize("name", PIXELS)
def test_unusable_pixels(name: str, reader: DicomReader, tmp_path: Path) -> None:
    """R2G-DICOM-PIXELS with and without `force`; what the header shows is in `problem`."""
    raw, attributes, syntax, message = PIXELS[name]
    bits = radiograph(VALUES, 12)
    dataset = radiograph(VALUES, 12, **attributes)
    data = encode(bits, VALUES, syntax, raw).data
    sound, changed = encode(bits, VALUES, syntax, b"ab"), encode(dataset, VALUES, syntax, b"ab")
    path = tmp_path / "a.dcm"
    path.write_bytes(data.replace(sound.data[: sound.pixels_start], changed.data[: changed.pixels_start]))
    for settings in (SETTINGS, FORCE):
        with pytest.raises(R2GenError, match=message) as error:
            reader.read_dicom(path, "study 1", settings)
        assert error.value.code == "R2G-DICOM-PIXELS"
    header = reader.read_header(path, "study 1", SETTINGS)
    assert header.problem_code == "R2G-DICOM-PIXELS" or not header.problem


@pytest.mark.parametrize("syntax", ["implicit", "explicit", "big", "rle", "lossless", "jls", "j2k", "ht"])
def test_truncated_files(syntax: str, reader: DicomReader, tmp_path: Path) -> None:
    """Cut anywhere: never a picture. libjpeg fills the rest with grey and says nothing."""
    data = encode(radiograph(VALUES, 12), VALUES, syntax).data
    end = len(data) - (8 if syntax not in ("implicit", "explicit", "big") else 0)
    for size in (end - 1, end - 2, end - 40, end * 3 // 4, end // 2, 400, 200, 140, 132):
        (tmp_path / "a.dcm").write_bytes(data[:size])
        with pytest.raises(R2GenError) as error:
            reader.read_dicom(tmp_path / "a.dcm", "study 1", FORCE)
        assert error.value.code in ("R2G-DICOM-PIXELS", "R2G-DICOM-FORMAT"), size


@pytest.mark.parametrize("syntax", ["explicit", "rle", "lossless", "j2k"])
def test_the_first_of_several_frames(syntax: str, reader: DicomReader, tmp_path: Path) -> None:
    """Refused, and with `force` the first frame alone."""
    dataset = radiograph(VALUES, 12)
    expected = reader.read_dicom(write(tmp_path / "a.dcm", dataset, VALUES, syntax), "study 1", SETTINGS)
    second = VALUES[::-1].copy()
    coded = encode(radiograph(VALUES, 12, NumberOfFrames=2), VALUES, syntax, b"ab")
    if syntax == "explicit":
        pixels = (
            b"\xe0\x7f\x10\0OW\0\0" + (2 * VALUES.nbytes).to_bytes(4, "little") + VALUES.tobytes() + second.tobytes()
        )
    else:
        frames = encapsulate([frame(values, 12, syntax) for values in (VALUES, second)])
        pixels = b"\xe0\x7f\x10\0OB\0\0\xff\xff\xff\xff" + frames + b"\xfe\xff\xdd\xe0\0\0\0\0"
    (tmp_path / "a.dcm").write_bytes(coded.data[: coded.pixels_start] + pixels)
    with pytest.raises(R2GenError, match="has several frames"):
        reader.read_dicom(tmp_path / "a.dcm", "study 1", SETTINGS)
    image = reader.read_dicom(tmp_path / "a.dcm", "study 1", FORCE)
    assert np.array_equal(image.pixels, expected.pixels)
    assert image.warnings == ("read by --force although it has several frames",)


def test_missing_meta_header(reader: DicomReader, tmp_path: Path) -> None:
    """Refused, and read with `force` by the first element's form."""
    for syntax in ("implicit", "explicit"):
        coded = encode(radiograph(VALUES, 12), VALUES, syntax)
        body = coded.data[coded.dataset_start :]
        assert begins_as_dataset(body[:132])
        path = tmp_path / "a.dcm"
        path.write_bytes(body)
        assert "no meta header" in reader.read_header(path, "study 1", SETTINGS).problem
        with pytest.raises(R2GenError, match="no meta header"):
            reader.read_dicom(path, "study 1", SETTINGS)
        path.write_bytes(coded.data)
        expected = reader.read_dicom(path, "study 1", SETTINGS)
        path.write_bytes(body)
        forced = reader.read_dicom(path, "study 1", FORCE)
        assert np.array_equal(forced.pixels, expected.pixels)
        assert forced.sha256 != expected.sha256


def test_unknown_transfer_syntax(reader: DicomReader, tmp_path: Path) -> None:
    """MPEG-4 and private syntaxes are not read."""
    coded = encode(radiograph(VALUES, 12), VALUES, "lossless")
    data = coded.data.replace(b"1.2.840.10008.1.2.4.70", b"1.2.840.10008.1.2.4.99")
    (tmp_path / "a.dcm").write_bytes(data)
    with pytest.raises(R2GenError, match="transfer syntax that is not read") as error:
        reader.read_dicom(tmp_path / "a.dcm", "study 1", FORCE)
    assert error.value.code == "R2G-DICOM-PIXELS"


def test_heads() -> None:
    """The prefix decides; PNG and JPEG are neither."""
    assert is_dicom(b"\0" * 128 + b"DICM")
    assert not is_dicom(b"\0" * 127 + b"DICM")
    assert not is_dicom(b"")
    assert not begins_as_dataset(b"\x89PNG\r\n\x1a\n" + b"\0" * 100)
    assert not begins_as_dataset(b"\xff\xd8\xff\xe0")
    assert not begins_as_dataset(b"")
