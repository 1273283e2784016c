"""Which studies a call is about: image files, folders, lists and annotations; and what of them is passed over."""

# ruff: noqa: PTH110, PTH112, PTH114  os.path says False where Path raises: no permission, a name too long

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from r2gen_export.errors import R2GenError
from r2gen_export.studies import annotation as study_files
from r2gen_export.studies.identity import Identity

IMAGE_SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"})
DICOM_SUFFIXES: Final = frozenset({".dcm", ".dicom", ".ima"})
LIST_SUFFIXES: Final = frozenset({".txt"})
ANNOTATION: Final = "annotation.json"

IMAGE_HEADS: Final = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of PNG, JPEG, TIFF and BigTIFF."""

DICOM: Final = "DICOM files (not readable in this release)"
OTHER_SUFFIX: Final = "images with another suffix than .png, .jpg, .tif"
HIDDEN: Final = "hidden images and folders"
TWICE: Final = "links to what is listed already"
UNREADABLE: Final = "files and folders that cannot be read"
OTHER: Final = "other files"
"""Kinds of what a folder holds beside images. All but `OTHER` may hold some."""


@dataclass(frozen=True)
class Study:
    """The images of one study, in the order of its views. `name` may identify a patient: not for logs."""

    name: str
    images: tuple[Path, ...]
    identity: Identity | None = None


@dataclass(frozen=True)
class StudyList:
    """The studies of one call.

    Attributes:
        studies: at least one.
        many: false for one image, or the views of one study, given by themselves.
        warnings: what may hold images and is passed over, a line each; names no file.
        remarks: what is passed over and holds none.
    """

    studies: tuple[Study, ...]
    many: bool
    warnings: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def collect_studies(arguments: Sequence[Path], *, together: bool = False) -> StudyList:
    """Studies named by the arguments of one call: in the order of the arguments, of the lines of a list, of the splits
    and entries of an annotation; what a folder holds, images and subfolders alike, sorted by name (`10` before `2`).

    Args:
        arguments: any number of image files, each a study of its own;
            folders (every image in one is a study, every folder below it that holds images is a study of those; an
            `annotation.json` in it takes precedence), in which a file without suffix is an image if it begins like one;
            `.txt` lists (`study_files`; relative to the list) and `.json` files of the R2Gen annotation form (all
            splits; images relative to `images/` beside it, or to it).
        together: the arguments are image files, the views of one study.

    Raises:
        R2GenError: `R2G-IMAGE-MISSING` when an argument, or every image of a list, is not there; `R2G-CONFIG-VALUE`
            for `together` with anything but images; `R2G-DATA-EMPTY` when there is no study; `R2G-DATA-ANNOTATION` for
            an unreadable list. Messages name arguments by number.
    """
    if not arguments:
        raise R2GenError("R2G-DATA-EMPTY", "no image given", "r2gen infer IMAGE...")
    for number, argument in enumerate(arguments, start=1):
        if not os.path.exists(argument):
            # By number: the name of an image may identify a patient.
            raise R2GenError("R2G-IMAGE-MISSING", f"argument {number} names nothing that is there", "check the path")
    holders = [argument for argument in arguments if _holds_many(argument)]
    if together:
        if holders:
            message = "--study takes the image files of one study, not folders or lists"
            raise R2GenError("R2G-CONFIG-VALUE", message, "name its images, or leave --study out")
        return StudyList((Study(str(arguments[0]), tuple(arguments)),), many=False)
    collector = _Collector(len(arguments))
    for number, argument in enumerate(arguments, start=1):
        collector.add(argument, number)
    collector.drop_repeated_links()
    if not collector.studies:
        raise R2GenError("R2G-DATA-EMPTY", collector.why_empty(), "images are PNG, JPEG or TIFF files")
    many = bool(holders) or len(arguments) > 1
    return StudyList(
        tuple(collector.studies), many, warnings=tuple(collector.warnings()), remarks=tuple(collector.remarks())
    )


class _Collector:
    """Studies of the arguments of one call, and counts of what was passed over."""

    def __init__(self, arguments: int) -> None:
        self.studies: list[Study] = []
        self._several = arguments > 1
        self._passed_over: Counter[str] = Counter()
        self._notes: list[str] = []
        self._seen: set[str] = set()
        self._links: dict[Path, str] = {}

    def add(self, argument: Path, number: int) -> None:
        """The studies of one argument."""
        suffix = f" (argument {number})" if self._several else ""
        if os.path.isdir(argument):
            annotation = argument / ANNOTATION
            if not os.path.exists(annotation):
                self._folder(argument)
                return
            self._notes.append(f"the folder's {ANNOTATION} names its studies{suffix}; other files are not looked at")
            argument = annotation
        if argument.suffix.lower() == ".json":
            self._annotation(argument, f"the annotation{suffix}")
        elif argument.suffix.lower() in LIST_SUFFIXES:
            subject = f"the list{suffix}"
            studies = [Study(str(images[0]), images) for _, images in study_files.list_studies(argument, subject)]
            self._extend(studies, subject, "names start from the list's folder; tabs between the images of a study")
        else:
            self.studies.append(Study(str(argument), (argument,)))

    def why_empty(self) -> str:
        """The message for a call without a study."""
        counts = _counts(self._passed_over)
        return "no study: no image is there" + (f"; passed over: {counts}" if counts else "")

    def warnings(self) -> list[str]:
        """What may hold images, in one line."""
        counts = _counts({kind: count for kind, count in self._passed_over.items() if kind != OTHER})
        return [f"passed over: {counts}"] if counts else []

    def remarks(self) -> list[str]:
        """The rest."""
        others = self._passed_over[OTHER]
        return [*self._notes, *([f"passed over: {_counts({OTHER: others})}"] if others else [])]

    def _annotation(self, path: Path, subject: str) -> None:
        base = path.parent / "images"
        bases = [base, path.parent] if os.path.isdir(base) else [path.parent]
        splits, others = study_files.read_splits(path, subject)
        self._notes += study_files.describe_others(others, subject)
        studies = [
            Study(entry.id, tuple(study_files.resolve(name, bases) for name in entry.paths))
            for split in splits
            for entry in study_files.entries(splits, split, subject)
        ]
        self._extend(studies, subject, "image paths start from the folder images/ beside it, or from its own")

    def _extend(self, studies: list[Study], subject: str, fix: str) -> None:
        images = [image for study in studies for image in study.images]
        if images and not any(map(os.path.isfile, images)):
            message = f"none of the {len(images)} images that {subject} names is there"
            raise R2GenError("R2G-IMAGE-MISSING", message, fix)
        self.studies += studies

    def _folder(self, top: Path) -> None:
        """The images of a folder: at the top each is a study, below they are views of one; then its folders."""
        waiting = [(top, True)]
        while waiting:
            path, is_folder = waiting.pop()
            if not is_folder:
                self.studies.append(Study(str(path), (path,)))
                continue
            images, folders = self._listed(path)
            below = [(folder, True) for folder in folders]
            if path is top:
                below += [(image, False) for image in images]
            elif images:
                self.studies.append(Study(str(path), tuple(images)))
            waiting += sorted(below, reverse=True)

    def _listed(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """Images and folders in a folder, sorted by name; the rest is counted."""
        real = os.path.realpath(folder)
        if real in self._seen:
            self._passed_over[TWICE] += 1
            return [], []
        self._seen.add(real)
        try:
            with os.scandir(folder) as listing:
                listed = sorted(listing, key=lambda entry: entry.name)
        except OSError:
            self._passed_over[UNREADABLE] += 1
            return [], []
        images, folders = [], []
        for entry in listed:
            kind = _kind_of(entry)
            if kind == "folder":
                folders.append(folder / entry.name)
            elif kind != "image":
                self._passed_over[kind] += 1
            else:
                path = folder / entry.name
                images.append(path)
                if os.path.islink(path):
                    self._links[path] = os.path.realpath(path)
                else:
                    self._seen.add(os.path.join(real, entry.name))  # noqa: PTH118
        return images, folders

    def drop_repeated_links(self) -> None:
        """Take out links to files that are listed themselves, once all are known: a link takes no view of a study."""
        repeated = set()
        for path, real in self._links.items():
            if real in self._seen:
                repeated.add(path)
            self._seen.add(real)
        self._passed_over[TWICE] += len(repeated)
        if repeated:
            rest = [(study, tuple(path for path in study.images if path not in repeated)) for study in self.studies]
            self.studies = [Study(study.name, images) for study, images in rest if images]


def _kind_of(entry: os.DirEntry[str]) -> str:
    """`folder`, `image`, or a kind that is counted."""
    suffix = Path(entry.name).suffix.lower()
    try:
        if entry.name.startswith("."):
            return HIDDEN if entry.is_dir() or suffix in IMAGE_SUFFIXES | DICOM_SUFFIXES else OTHER
        if entry.is_dir():
            return "folder"
        if not entry.is_file():
            return UNREADABLE if suffix in IMAGE_SUFFIXES else OTHER
        if suffix in IMAGE_SUFFIXES:
            return "image"
        if suffix in DICOM_SUFFIXES:
            return DICOM
        with open(entry.path, "rb") as file:  # noqa: PTH123
            head = file.read(132)
    except OSError:
        return UNREADABLE
    if head[128:] == b"DICM":
        return DICOM
    if not head.startswith(IMAGE_HEADS):
        return OTHER
    # Names by UID end in a number.
    return "image" if not suffix or suffix[1:].isdecimal() else OTHER_SUFFIX


def _counts(kinds: Mapping[str, int]) -> str:
    return "; ".join(f"{kind}: {count}" for kind, count in sorted(kinds.items()) if count)


def _holds_many(argument: Path) -> bool:
    return os.path.isdir(argument) or argument.suffix.lower() in LIST_SUFFIXES | {".json"}
