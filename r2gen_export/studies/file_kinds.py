"""What a file is, by its name and its first bytes: an image, a DICOM file, an archive, or something else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from r2gen_export.studies.dicom.detect import begins_as_dataset, is_dicom
from r2gen_export.system import git_lfs

IMAGE_SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"})
DICOM_SUFFIXES: Final = frozenset({".dcm", ".dicom", ".ima"})
LIST_SUFFIXES: Final = frozenset({".txt"})
ARCHIVE_SUFFIX: Final = ".zip"

IMAGE_HEADS: Final = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of PNG, JPEG, TIFF and BigTIFF."""

ARCHIVE_HEADS: Final = (b"PK\3\4", b"PK\5\6")
"""First bytes of a zip archive; the second of an empty one."""

HEAD_BYTES: Final = 512
"""Bytes by which a file is told: DICOM's preamble of 128 and the first elements behind it."""

DIRECTORY_CLASS: Final = b"1.2.840.10008.1.3.10"
"""Media Storage Directory Storage, the SOP class of a DICOMDIR (PS3.4 B.5)."""

FOLDER: Final = "folder"
IMAGE: Final = "image"
DICOM: Final = "DICOM"

DICOMDIR: Final = "DICOMDIR files"
ARCHIVE: Final = "zip archives (not opened inside a folder or another archive)"
OTHER_SUFFIX: Final = "images with another suffix than .png, .jpg, .tif"
HIDDEN: Final = "hidden images and folders"
TWICE: Final = "links to what is listed already"
UNREADABLE: Final = "files and folders that cannot be read"
OTHER: Final = "other files"
"""Kinds of what a folder holds beside images. All but `OTHER` may hold some."""


def kind_of(entry: os.DirEntry[str]) -> str:
    """`FOLDER`, `IMAGE`, `DICOM`, or a kind that is counted. Files with an image's suffix are not opened."""
    suffix = Path(entry.name).suffix.lower()
    try:
        if entry.name.startswith("."):
            return HIDDEN if entry.is_dir() or suffix in IMAGE_SUFFIXES | DICOM_SUFFIXES else OTHER
        if entry.is_dir():
            return FOLDER
        if not entry.is_file():
            return UNREADABLE if suffix in IMAGE_SUFFIXES | DICOM_SUFFIXES else OTHER
        if suffix in IMAGE_SUFFIXES:
            return IMAGE
        head = head_of(Path(entry.path))
    except OSError:
        return UNREADABLE
    if is_directory(entry.name, head):
        return DICOMDIR
    # Names by UID end in a number.
    plain = not suffix or suffix[1:].isdecimal()
    if suffix in DICOM_SUFFIXES or is_dicom(head) or (plain and begins_as_dataset(head)):
        return DICOM
    if suffix == ARCHIVE_SUFFIX and head.startswith(ARCHIVE_HEADS):
        return ARCHIVE
    if not head.startswith(IMAGE_HEADS):
        return OTHER
    return IMAGE if plain else OTHER_SUFFIX


def argument_kind(path: Path) -> str:
    """What a file that a call names itself is: `DICOM`, `DICOMDIR`, `ARCHIVE`, or `IMAGE` for anything else."""
    suffix = path.suffix.lower()
    head = b""
    if os.path.isfile(path):  # noqa: PTH113  says False where Path raises; a pipe would wait for a writer
        try:
            head = head_of(path)
        except OSError:
            return IMAGE  # whose reader says why
    if is_directory(path.name, head):
        return DICOMDIR
    if head.startswith(ARCHIVE_HEADS) or suffix == ARCHIVE_SUFFIX:
        return ARCHIVE
    return DICOM if looks_like_dicom(head, suffix) else IMAGE


def looks_like_dicom(head: bytes, suffix: str) -> bool:
    """Whether a file is to be read as DICOM; the suffix, in small letters, counts only where its first bytes say
    nothing."""
    named = suffix in DICOM_SUFFIXES and not head.startswith((*IMAGE_HEADS, git_lfs.HEAD))
    return named or is_dicom(head) or begins_as_dataset(head)


def is_directory(name: str, head: bytes) -> bool:
    """Whether a file is a DICOMDIR, by its SOP class or, in files that lack it, by its name."""
    if not is_dicom(head):
        return False
    _, uid, rest = head[132:].partition(DIRECTORY_CLASS)
    return bool(uid and not (rest[:1].isdigit() or rest[:1] == b".")) or name.upper() == "DICOMDIR"


def head_of(path: Path) -> bytes:
    """The first `HEAD_BYTES` of a file.

    Raises:
        OSError: as opening it does.
    """
    with open(path, "rb") as file:  # noqa: PTH123  a folder has thousands: no Path is made for each
        return file.read(HEAD_BYTES)
