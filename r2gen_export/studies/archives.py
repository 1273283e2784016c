"""Zip archives of studies, unpacked within limits into private folders that are removed again."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Final, Self

from r2gen_export.errors import R2GenError
from r2gen_export.studies.refusal import reading, reason_of
from r2gen_export.system.interrupts import signals_held

MAX_ENTRIES: Final = 20_000
MAX_ENTRY_BYTES: Final = 1 << 30
MAX_TOTAL_BYTES: Final = 8 << 30
MAX_RATIO: Final = 100
"""Of the bytes unpacked to the bytes of the archive. Radiographs shrink to between a half and a fifth."""

FREE_BYTES: Final = 64 << 20
"""Unpacked bytes for which the ratio is not looked at: a blank picture of a test shrinks a thousandfold."""

MAX_DIRECTORY_BYTES: Final = 16 << 20
"""Of an archive's list of entries, which is in memory at once; 20,000 names take about 3 MB."""

METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Others may need gigabytes of memory for a dictionary."""

MAC_FOLDER: Final = "__MACOSX"
"""What macOS adds to its archives: attributes of the files, under the same names."""

CHUNK: Final = 1 << 20
AGAIN: Final = "unpack it and name the folder"


class Archives:
    """Folders of unpacked archives, readable by this user only, removed when the block ends, also by a signal.

    A process that is killed (SIGKILL, a power failure) leaves them in the system's folder of temporary files.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder is not None:
            with signals_held():
                shutil.rmtree(self._folder, ignore_errors=True)

    def unpack(self, path: Path, subject: str) -> Path:
        """Unpack an archive into a new folder, with the folders it has. Archives in it stay as they are.

        Args:
            path: the archive; entries are stored or deflated.
            subject: what messages call it ("the archive (argument 2)").

        Returns:
            The new folder.

        Raises:
            R2GenError: `R2G-DICOM-LIMIT` for too many entries, bytes, or bytes in relation to the archive;
                `R2G-DICOM-FORMAT` for an archive that is damaged or encrypted, or has links or names that lead out of
                it; `R2G-RESOURCE-DISK` when it does not fit on the disk. None names a file.
            InternalError: anything else that went wrong.
        """
        with reading(subject):
            try:
                _check_directory(path, subject)
                with zipfile.ZipFile(path) as archive:
                    entries = _checked(archive.infolist(), path.stat().st_size, subject)
                    target = self._new_folder(sum(entry.file_size for entry in entries), subject)
                    for entry in entries:
                        _write(archive, entry, target)
            except (zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError, UnicodeDecodeError) as error:
                raise R2GenError("R2G-DICOM-FORMAT", f"{subject} is damaged, or no zip archive", AGAIN) from error
            except OSError as error:
                message = f"{subject} cannot be unpacked ({reason_of(error)})"
                raise R2GenError("R2G-DICOM-FORMAT", message, AGAIN) from error
        return target

    def _new_folder(self, needed: int, subject: str) -> Path:
        if self._folder is None:
            with signals_held():
                self._folder = Path(tempfile.mkdtemp(prefix="r2gen-"))
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            message = f"{subject} takes {needed >> 20} MB unpacked; {free >> 20} MB are free for temporary files"
            raise R2GenError("R2G-RESOURCE-DISK", message, "free space, or set TMPDIR to a larger disk")
        self._count += 1
        folder = self._folder / str(self._count)
        folder.mkdir()
        return folder


def _check_directory(path: Path, subject: str) -> None:
    """Refuse, before they are read, more entries than are unpacked (the end record: APPNOTE 4.3.16)."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 22 - 0xFFFF - 20))
        tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or at + 22 > len(tail):
        raise zipfile.BadZipFile
    entries, directory = int.from_bytes(tail[at + 10 : at + 12], "little"), tail[at + 12 : at + 16]
    large = b"PK\6\7" in tail  # ZIP64: more than 65,535 entries or 4 GB
    if entries > MAX_ENTRIES or int.from_bytes(directory, "little") > MAX_DIRECTORY_BYTES or large:
        message = f"{subject} has more than {MAX_ENTRIES} entries, or is of the kind for more than 4 GB"
        raise R2GenError("R2G-DICOM-LIMIT", message, AGAIN)


def _checked(listed: Sequence[zipfile.ZipInfo], packed: int, subject: str) -> list[zipfile.ZipInfo]:
    """The files among the entries, when all are acceptable."""
    files = [entry for entry in listed if not _is_folder(entry) and _name(entry).parts[:1] != (MAC_FOLDER,)]
    total = sum(entry.file_size for entry in files)
    if len(listed) > MAX_ENTRIES:
        raise R2GenError("R2G-DICOM-LIMIT", f"{subject} has more than {MAX_ENTRIES} entries", AGAIN)
    if max((entry.file_size for entry in files), default=0) > MAX_ENTRY_BYTES or total > MAX_TOTAL_BYTES:
        message = f"{subject} has more than {MAX_ENTRY_BYTES >> 30} GB in a file or {MAX_TOTAL_BYTES >> 30} GB in all"
        raise R2GenError("R2G-DICOM-LIMIT", message, AGAIN)
    if total > FREE_BYTES and total > MAX_RATIO * packed:
        message = f"{subject} would grow more than {MAX_RATIO} times when unpacked"
        raise R2GenError("R2G-DICOM-LIMIT", message, "check where it comes from; " + AGAIN)
    names = set()
    for entry in files:
        if problem := _entry_problem(entry):
            raise R2GenError("R2G-DICOM-FORMAT", f"{subject} {problem}", AGAIN)
        names.add(_name(entry))
    if len(names) < len(files):
        raise R2GenError("R2G-DICOM-FORMAT", f"{subject} has a file twice", AGAIN)
    return files


def _name(entry: zipfile.ZipInfo) -> PurePosixPath:
    """Old programs of Windows write `\\` between folders."""
    return PurePosixPath(entry.filename.replace("\\", "/"))


def _is_folder(entry: zipfile.ZipInfo) -> bool:
    return entry.filename.endswith(("/", "\\"))


def _entry_problem(entry: zipfile.ZipInfo) -> str:
    path = _name(entry)
    drive = os.name == "nt" and ":" in entry.filename
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in entry.filename or drive:
        return "has a name that leads out of it"
    mode = entry.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        return "has a link, or another entry that is no file"
    if entry.flag_bits & 0x1:
        return "is encrypted"
    if entry.compress_type not in METHODS:
        return f"is compressed by method {entry.compress_type}, which is not read"
    return ""


def _write(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path) -> None:
    """One file; `zipfile` gives no more bytes than the entry claims, and checks their sum."""
    target = folder / _name(entry)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Created anew, so never written through something that is there.
    with archive.open(entry) as packed, target.open("xb") as file:
        shutil.copyfileobj(packed, file, CHUNK)
