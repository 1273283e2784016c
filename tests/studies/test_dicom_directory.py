"""The files that a DICOMDIR names: those of pydicom's test set, read in place, and damaged ones."""

from __future__ import annotations

import random
import shutil
import struct
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file

from r2gen_export.errors import R2GenError
from r2gen_export.studies.collect import collect_studies
from r2gen_export.studies.dicom_directory import directory_files

SET = Path(str(get_testdata_file("DICOMDIR")))
SUBJECT = "the DICOMDIR"


def by_pydicom(path: Path) -> list[Path]:
    """What pydicom reads there."""
    records = pydicom.dcmread(path).DirectoryRecordSequence
    names = [record.ReferencedFileID for record in records if "ReferencedFileID" in record]
    return [path.parent.joinpath(*([name] if isinstance(name, str) else name)) for name in names]


@pytest.mark.parametrize("name", ["DICOMDIR", "DICOMDIR-reordered", "DICOMDIR-nooffset", "DICOMDIR-nopatient"])
def test_records_name_the_files(name: str) -> None:
    path = SET.with_name(name)
    files = directory_files(path, SUBJECT)
    assert list(files) == by_pydicom(path)
    assert len(files) == 31


def test_a_directory_is_taken_for_what_it_names() -> None:
    """Of 31 files three are radiographs of one study, of the neck."""
    listed = collect_studies([SET])
    (study,) = listed.studies
    assert [image.parent.name for image in study.images] == ["CR1", "CR2", "CR3"]
    assert study.refusal is not None
    assert study.refusal.message == "each of its 3 images has body part CSPINE, not the chest"
    assert listed.many
    assert listed.warnings == ("passed over: DICOM objects (modality CT): 11; DICOM objects (modality MR): 17",)


@pytest.mark.parametrize("name", ["DICOMDIR-bigEnd", "DICOMDIR-implicit"])
def test_another_transfer_syntax_is_refused(name: str) -> None:
    with pytest.raises(R2GenError, match="explicit VR little endian"):
        directory_files(SET.with_name(name), SUBJECT)


def test_absent_files_are_counted_and_small_letters_found(tmp_path: Path) -> None:
    """As a disc without extensions of ISO 9660 is mounted: all names in small letters."""
    shutil.copy(SET, tmp_path / "dicomdir")
    target = tmp_path / "77654033/cr1/6154"
    target.parent.mkdir(parents=True)
    shutil.copy(SET.parent / "77654033/CR1/6154", target)
    listed = collect_studies([tmp_path / "dicomdir"])
    assert [study.images for study in listed.studies] == [(target,)]
    assert listed.warnings == ("passed over: files that a DICOMDIR names and that are not there: 30",)


def element(tag: int, form: bytes, value: bytes) -> bytes:
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + form
    long = form in (b"SQ", b"OB", b"UN")
    return head + (struct.pack("<HI", 0, len(value)) if long else struct.pack("<H", len(value))) + value


def directory(*records: bytes, syntax: bytes = b"1.2.840.10008.1.2.1\0") -> bytes:
    """A DICOMDIR with these records."""
    items = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(record)) + record for record in records)
    meta = element(0x00020002, b"UI", b"1.2.840.10008.1.3.10") + element(0x00020010, b"UI", syntax)
    return bytes(128) + b"DICM" + meta + element(0x00041220, b"SQ", items)


def record(name: bytes, in_use: int = 0xFFFF, before: bytes = b"") -> bytes:
    padded = name + b" " * (len(name) % 2)
    return element(0x00041410, b"US", struct.pack("<H", in_use)) + before + element(0x00041500, b"CS", padded)


def test_nested_sequences_and_icons_are_passed(tmp_path: Path) -> None:
    frame = struct.pack("<HHI", 0xFFFE, 0xE000, 6) + b"\4\0\0\x15XX"  # bytes, though they look like an element
    end = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    icon = struct.pack("<HH", 0x7FE0, 0x0010) + b"OB\0\0" + b"\xff" * 4 + frame + end
    item = struct.pack("<HHI", 0xFFFE, 0xE000, len(icon)) + icon
    nested = element(0x00880200, b"SQ", item)
    path = tmp_path / "DICOMDIR"
    path.write_bytes(directory(record(b"A\\B", before=nested), record(b"GONE", in_use=0), record(b"C"), record(b"C")))
    assert directory_files(path, SUBJECT) == (tmp_path / "A/B", tmp_path / "C")


@pytest.mark.parametrize("name", [b"..\\X", b"A\\..\\..\\X", b"/etc/passwd", b"A\\\\X", b"C:\\X", b"A/../../X"])
def test_no_path_leads_out(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / "DICOMDIR"
    path.write_bytes(directory(record(name)))
    with pytest.raises(R2GenError) as caught:
        directory_files(path, SUBJECT)
    assert (caught.value.code, caught.value.message) == (
        "R2G-DICOM-FORMAT",
        f"{SUBJECT} names a file outside its folder",
    )


def test_damaged_directories_give_files_or_a_coded_error(tmp_path: Path) -> None:
    """Random bytes changed, and the file cut off, 400 times."""
    rng = random.Random(0)
    path = tmp_path / "DICOMDIR"
    whole = directory(*(record(f"DIR\\FILE{number}".encode()) for number in range(20)))
    refused = 0
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(132, len(data))] = rng.randrange(256)
        path.write_bytes(data[: rng.randint(140, len(data))] if rng.random() < 0.3 else data)
        try:
            assert all(tmp_path in file.parents for file in directory_files(path, SUBJECT))
        except R2GenError as error:
            refused += 1
            assert error.code == "R2G-DICOM-FORMAT"
    assert 50 < refused < 400
