"""Zip archives as folders of studies: what is unpacked, where, for how long, and what is refused."""

from __future__ import annotations

import shutil
import stat
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from r2gen_export.errors import R2GenError
from r2gen_export.studies import archives as limits
from r2gen_export.studies import file_kinds
from r2gen_export.studies.archives import Archives
from r2gen_export.studies.collect import collect_studies
from tests.helpers.dicom_studies import DATA, write


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files, which is empty again after each test."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


def archive(path: Path, entries: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in entries.items():
            file.writestr(name, content)
    return path


def refused(path: Path) -> R2GenError:
    with Archives() as archives, pytest.raises(R2GenError) as caught:
        collect_studies([path], archives=archives)
    return caught.value


def test_an_archive_is_a_folder(tmp_path: Path, scratch: Path) -> None:
    files = [write(tmp_path / str(number), 1, number).read_bytes() for number in (1, 2)]
    png = (DATA / "phantom.png").read_bytes()
    entries = {
        "cd/IM1": files[0],
        "other\\IM2": files[1],
        "views/1.png": png,
        "views/2.png": png,
        "top.png": png,
        "annotation.json": b'{"test": [{"id": 1, "image_path": ["/etc/passwd"]}]}',
        "inner.zip": b"PK\3\4 not opened",
        "__MACOSX/cd/._IM1": b"attributes",
    }
    path = archive(tmp_path / "examination.zip", entries)
    with Archives() as archives:
        listed = collect_studies([path], archives=archives)
        (unpacked,) = scratch.iterdir()
        assert stat.S_IMODE(unpacked.stat().st_mode) == 0o700
        inside = [[image.relative_to(unpacked / "1").as_posix() for image in study.images] for study in listed.studies]
        assert inside == [["cd/IM1", "other/IM2"], ["top.png"], ["views/1.png", "views/2.png"]]
        assert [study.name for study in listed.studies] == [str(path / end) for end in ("cd/IM1", "top.png", "views")]
        assert listed.studies[0].images[1].read_bytes() == files[1]
        assert listed.many
        assert listed.warnings == (f"passed over: {file_kinds.ARCHIVE}: 1",)
        assert listed.remarks == ("passed over: other files: 1",)


def test_archives_need_a_place_and_are_not_opened_in_folders(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = archive(tmp_path / "in/x.zip", {"a.png": (DATA / "phantom.png").read_bytes()})
    with pytest.raises(R2GenError, match="R2G-CONFIG-VALUE: a zip archive is not read by this command"):
        collect_studies([path])
    with Archives() as archives:
        with pytest.raises(R2GenError, match="--study takes the image files"):
            collect_studies([path], together=True, archives=archives)
        with pytest.raises(R2GenError, match=r"R2G-DATA-EMPTY.*zip archives"):
            collect_studies([tmp_path / "in"], archives=archives)


def test_folders_are_removed_when_the_block_fails(tmp_path: Path, scratch: Path) -> None:
    path = archive(tmp_path / "x.zip", {"a/b/c.png": b"x"})
    with pytest.raises(KeyboardInterrupt), Archives() as archives:
        assert (archives.unpack(path, "the archive") / "a/b/c.png").exists()
        assert len(list(scratch.iterdir())) == 1
        raise KeyboardInterrupt


def with_mode(path: Path, mode: int) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        entry = zipfile.ZipInfo("link")
        entry.create_system, entry.external_attr = 3, mode << 16
        file.writestr(entry, "/etc/passwd")
    return path


def twice(path: Path) -> Path:
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "w") as file:
        file.writestr("a", b"1")
        file.writestr("a", b"2")
    return path


def encrypted(path: Path) -> Path:
    """The flag of encryption in the list of entries."""
    data = bytearray(archive(path, {"a": b"1"}).read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    return path


def claims(path: Path, entries: int) -> Path:
    """An end record that states a number of entries."""
    path.write_bytes(b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, entries, entries, 0, 0, 0))
    return path


def wrong_sum(path: Path) -> Path:
    archive(path, {"a": b"12345678"}, zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b"12345678", b"12345679"))
    return path


def cut(path: Path) -> Path:
    archive(path, {"a": b"1" * 1000})
    path.write_bytes(path.read_bytes()[:-30])
    return path


HOSTILE: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "out": (lambda path: archive(path, {"a/../../x": b""}), "R2G-DICOM-FORMAT", "leads out of it"),
    "absolute": (lambda path: archive(path, {"/tmp/x": b""}), "R2G-DICOM-FORMAT", "leads out of it"),
    "backslashes": (lambda path: archive(path, {"..\\x": b""}), "R2G-DICOM-FORMAT", "leads out of it"),
    "link": (lambda path: with_mode(path, stat.S_IFLNK | 0o777), "R2G-DICOM-FORMAT", "a link"),
    "pipe": (lambda path: with_mode(path, stat.S_IFIFO | 0o666), "R2G-DICOM-FORMAT", "a link"),
    "twice": (twice, "R2G-DICOM-FORMAT", "a file twice"),
    "file and folder": (lambda path: archive(path, {"a": b"", "a/b": b""}), "R2G-DICOM-FORMAT", "cannot be unpacked"),
    "long name": (lambda path: archive(path, {"a" * 300: b""}), "R2G-DICOM-FORMAT", "cannot be unpacked"),
    "encrypted": (encrypted, "R2G-DICOM-FORMAT", "encrypted"),
    "LZMA": (lambda path: archive(path, {"a": b"1"}, zipfile.ZIP_LZMA), "R2G-DICOM-FORMAT", "method 14"),
    "checksum": (wrong_sum, "R2G-DICOM-FORMAT", "damaged"),
    "cut off": (cut, "R2G-DICOM-FORMAT", "damaged"),
    "no archive": (lambda path: Path(shutil.copy(DATA / "phantom.png", path)), "R2G-DICOM-FORMAT", "no zip archive"),
    "bomb": (lambda path: archive(path, {"a": bytes(70 << 20)}), "R2G-DICOM-LIMIT", "grow more than 100 times"),
    "entries": (lambda path: claims(path, 20_001), "R2G-DICOM-LIMIT", "more than 20000 entries"),
    "empty": (lambda path: claims(path, 0), "R2G-DATA-EMPTY", "no image is there"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_archives(tmp_path: Path, kind: str) -> None:
    make, code, said = HOSTILE[kind]
    error = refused(make(tmp_path / "doe^jane.zip"))
    assert error.code == code
    assert said in error.message
    assert "doe" not in error.render()
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["MAX_ENTRY_BYTES", "MAX_TOTAL_BYTES"])
def test_bytes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = archive(tmp_path / "x.zip", {"a": b"1" * 600, "b": b"2" * 600})
    monkeypatch.setattr(limits, name, 1000 if name == "MAX_TOTAL_BYTES" else 599)
    assert refused(path).code == "R2G-DICOM-LIMIT"


def test_a_full_disk_is_said_before_anything_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(tmp_path / "x.zip", {"a.png": b"1" * 600})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1000, 500, 500))  # type: ignore[attr-defined]
    assert refused(path).code == "R2G-RESOURCE-DISK"
