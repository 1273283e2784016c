"""Which studies a call is about: images, DICOM files, folders, archives, lists and annotations; and what is passed
over."""

# ruff: noqa: PTH110, PTH112, PTH114  os.path says False where Path raises: no permission, a name too long

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from r2gen_export.errors import R2GenError
from r2gen_export.studies import annotation as study_files
from r2gen_export.studies import file_kinds
from r2gen_export.studies.archives import AGAIN, Archives
from r2gen_export.studies.dicom.types import DicomSettings
from r2gen_export.studies.dicom_directory import directory_files
from r2gen_export.studies.dicom_studies import (
    DicomFile,
    GivenStudy,
    Progress,
    grouped,
    make_study,
    passed_over,
    read_files,
)
from r2gen_export.studies.study import Study, StudyList

__all__ = ["Study", "StudyList", "collect_studies"]

ANNOTATION: Final = "annotation.json"

ABSENT: Final = "files that a DICOMDIR names and that are not there"


def collect_studies(
    arguments: Sequence[Path],
    *,
    together: bool = False,
    dicom: DicomSettings | None = None,
    archives: Archives | None = None,
    progress: Progress | None = None,
    split: str | None = None,
) -> StudyList:
    """Studies named by the arguments of one call: in the order of the arguments, of the lines of a list, of the splits
    and entries of an annotation; what a folder holds, images and subfolders alike, sorted by name (`10` before `2`).

    DICOM files are grouped by StudyInstanceUID over the whole call, wherever they lie; a study stands where its first
    file does. Those of a list, an annotation or `together` are the study that these say, and are checked to be one. The
    header of each file is read once (`dicom_studies.make_study` has the order of views, and what is refused).

    Args:
        arguments: any number of image files, each a study of its own;
            DICOM files, whatever their suffix, and DICOMDIR files, whose records name files;
            folders (every image in one is a study, every folder below it that holds images is a study of those; an
            `annotation.json` in it takes precedence), in which a file without suffix is an image if it begins like one;
            zip archives, taken as folders, without regard to annotations in them;
            `.txt` lists (`study_files`; relative to the list) and `.json` files of the R2Gen annotation form (all
            splits; images relative to `images/` beside it, or to it).
        together: the arguments are image files, the views of one study.
        dicom: how DICOM files are read; `DicomSettings()` when None.
        archives: where archives are unpacked; they are refused when None. It must last as long as images are read.
        progress: called while headers are read.
        split: `train`, `val` or `test`: the only split of annotations that is taken; all of them when None.

    Raises:
        R2GenError: `R2G-IMAGE-MISSING` when an argument, or every image of a list, is not there; `R2G-CONFIG-VALUE`
            for `together` with anything but images, for an archive without `archives`, and for `split` without an
            annotation; `R2G-DATA-EMPTY` when there is no study; `R2G-DATA-ANNOTATION` for an unreadable list or an
            annotation without `split`; `R2G-DICOM-*` for an unreadable DICOMDIR or archive, and for `together` with
            files of several studies or patients; `R2G-DEPENDENCY-MISSING` for DICOM files without the extra `dicom`.
            Messages name arguments by number.
    """
    if not arguments:
        raise R2GenError("R2G-DATA-EMPTY", "no image given", "r2gen infer IMAGE...")
    for number, argument in enumerate(arguments, start=1):
        if not os.path.exists(argument):
            # By number: the name of an image may identify a patient.
            raise R2GenError("R2G-IMAGE-MISSING", f"argument {number} names nothing that is there", "check the path")
    kinds = [_kind_of_argument(argument) for argument in arguments]
    holders = [kind for kind in kinds if kind not in (file_kinds.IMAGE, file_kinds.DICOM)]
    collector = _Collector(len(arguments), dicom or DicomSettings(), archives, split)
    if together:
        if holders:
            message = "--study takes the image files of one study, not folders, lists, archives or a DICOMDIR"
            raise R2GenError("R2G-CONFIG-VALUE", message, "name its images, or leave --study out")
        collector.add_together(arguments, kinds)
    else:
        for number, (argument, kind) in enumerate(zip(arguments, kinds, strict=True), start=1):
            collector.add(argument, kind, number)
    if split is not None and not collector.annotations:
        message = "--split names a part of an annotation, and no argument is one"
        raise R2GenError("R2G-CONFIG-VALUE", message, "name an annotation.json, or leave --split out")
    collector.drop_repeated_links()
    studies = collector.studies(progress)
    if together and studies[0].refusal is not None and studies[0].refusal.code == "R2G-DICOM-STUDY":
        raise studies[0].refusal.about("--study")
    if not studies:
        raise R2GenError("R2G-DATA-EMPTY", collector.why_empty(), "images are PNG, JPEG, TIFF or DICOM files")
    many = not together and (bool(holders) or len(arguments) > 1)
    return StudyList(tuple(studies), many, warnings=tuple(collector.warnings()), remarks=tuple(collector.remarks()))


class _Collector:
    """Studies of the arguments of one call, and counts of what was passed over."""

    def __init__(
        self, arguments: int, dicom: DicomSettings, archives: Archives | None, split: str | None = None
    ) -> None:
        self.annotations = 0
        # In the order of the call: studies that are known, and DICOM files whose headers have yet to be read.
        self._entries: list[Study | GivenStudy | DicomFile] = []
        self._several = arguments > 1
        self._dicom = dicom
        self._archives = archives
        self._split = split
        self._passed_over: Counter[str] = Counter()
        self._notes: list[str] = []
        self._seen: set[str] = set()
        self._links: dict[Path, str] = {}

    def add(self, argument: Path, kind: str, number: int) -> None:
        """The studies of one argument."""
        suffix = f" (argument {number})" if self._several else ""
        if kind == file_kinds.FOLDER:
            annotation = argument / ANNOTATION
            if not os.path.exists(annotation):
                self._folder(argument, argument)
                return
            self._notes.append(f"the folder's {ANNOTATION} names its studies{suffix}; other files are not looked at")
            self._annotation(annotation, f"the annotation{suffix}")
        elif kind == ".json":
            self._annotation(argument, f"the annotation{suffix}")
        elif kind == ".txt":
            subject = f"the list{suffix}"
            studies = [(str(images[0]), images) for _, images in study_files.list_studies(argument, subject)]
            self._extend(studies, subject, "names start from the list's folder; tabs between the images of a study")
        elif kind == file_kinds.DICOMDIR:
            self._directory(argument, f"the DICOMDIR{suffix}")
        elif kind == file_kinds.ARCHIVE:
            if self._archives is None:
                message = f"a zip archive is not read by this command{suffix}"
                raise R2GenError("R2G-CONFIG-VALUE", message, AGAIN)
            self._folder(self._archives.unpack(argument, f"the archive{suffix}"), argument)
        elif kind == file_kinds.DICOM:
            self._entries.append(DicomFile(argument, str(argument), named=True))
        else:
            self._entries.append(Study(str(argument), (argument,)))

    def add_together(self, arguments: Sequence[Path], kinds: Sequence[str]) -> None:
        """Files as the views of one study."""
        self._entries.append(_given(str(arguments[0]), list(zip(arguments, kinds, strict=True))))

    def studies(self, progress: Progress | None) -> list[Study]:
        """All studies, once the headers of DICOM files are read, in the order in which the call has them.

        Raises:
            R2GenError: `R2G-DEPENDENCY-MISSING`.
        """
        files = [file for entry in self._entries for file in _files_of(entry)]
        read = {id(file.file): file for file in read_files(files, self._dicom, progress)}
        loose = []
        for file in (read[id(entry)] for entry in self._entries if isinstance(entry, DicomFile)):
            if kind := passed_over(file, self._dicom):
                self._passed_over[kind] += 1
            else:
                loose.append(file)
        first = {id(file): study for file, study in grouped(loose, self._dicom, self._passed_over)}
        studies = []
        for entry in self._entries:
            if isinstance(entry, GivenStudy):
                given = [read[id(file)] for file in entry.files]
                studies.append(make_study(entry.name, given, entry.others, self._dicom, self._passed_over))
            elif study := entry if isinstance(entry, Study) else first.get(id(entry)):
                studies.append(study)
        return studies

    def why_empty(self) -> str:
        """The message for a call without a study."""
        counts = _counts(self._passed_over)
        return "no study: no image is there" + (f"; passed over: {counts}" if counts else "")

    def warnings(self) -> list[str]:
        """What may hold images, in one line."""
        counts = _counts({kind: count for kind, count in self._passed_over.items() if kind != file_kinds.OTHER})
        return [f"passed over: {counts}"] if counts else []

    def remarks(self) -> list[str]:
        """The rest."""
        others = self._passed_over[file_kinds.OTHER]
        return [*self._notes, *([f"passed over: {_counts({file_kinds.OTHER: others})}"] if others else [])]

    def _annotation(self, path: Path, subject: str) -> None:
        bases = study_files.image_bases(path)
        splits, others = study_files.read_splits(path, subject)
        self._notes += study_files.describe_others(others, subject)
        self.annotations += 1
        taken = splits if self._split is None else [study_files.split_named(splits, self._split, subject)]
        studies = [
            (entry.id, tuple(study_files.resolve(name, bases) for name in entry.paths))
            for split in taken
            for entry in study_files.entries(splits, split, subject)
        ]
        self._extend(studies, subject, "image paths start from the folder images/ beside it, or from its own")

    def _extend(self, studies: Sequence[tuple[str, tuple[Path, ...]]], subject: str, fix: str) -> None:
        images = [image for _, paths in studies for image in paths]
        if images and not any(map(os.path.isfile, images)):
            message = f"none of the {len(images)} images that {subject} names is there"
            raise R2GenError("R2G-IMAGE-MISSING", message, fix)
        self._entries += [_given(name, [(path, _kind_in_list(path)) for path in paths]) for name, paths in studies]

    def _directory(self, path: Path, subject: str) -> None:
        """The files that the records of a DICOMDIR name."""
        for file in directory_files(path, subject):
            if os.path.isfile(file):  # noqa: PTH113
                self._entries.append(DicomFile(file, str(file)))
            else:
                self._passed_over[ABSENT] += 1

    def _folder(self, top: Path, shown: Path) -> None:
        """The images of a folder: at the top each is a study, below they are views of one; then its folders.

        `shown` stands for `top` in names: the archive in the place of the folder it was unpacked into.
        """
        waiting = [(top, file_kinds.FOLDER)]
        while waiting:
            path, kind = waiting.pop()
            name = str(shown / path.relative_to(top))
            if kind == file_kinds.DICOM:
                self._entries.append(DicomFile(path, name))
            elif kind == file_kinds.IMAGE:
                self._entries.append(Study(name, (path,)))
            else:
                images, below = self._listed(path)
                if path is top:
                    below += [(image, file_kinds.IMAGE) for image in images]
                elif images:
                    self._entries.append(Study(name, tuple(images)))
                waiting += sorted(below, reverse=True)

    def _listed(self, folder: Path) -> tuple[list[Path], list[tuple[Path, str]]]:
        """Images in a folder, and its folders and DICOM files, sorted by name; the rest is counted."""
        real = os.path.realpath(folder)
        if real in self._seen:
            self._passed_over[file_kinds.TWICE] += 1
            return [], []
        self._seen.add(real)
        try:
            with os.scandir(folder) as listing:
                listed = sorted(listing, key=lambda entry: entry.name)
        except OSError:
            self._passed_over[file_kinds.UNREADABLE] += 1
            return [], []
        images: list[Path] = []
        below: list[tuple[Path, str]] = []
        for entry in listed:
            kind, path = file_kinds.kind_of(entry), folder / entry.name
            if kind == file_kinds.FOLDER:
                below.append((path, kind))
            elif kind not in (file_kinds.IMAGE, file_kinds.DICOM):
                self._passed_over[kind] += 1
            else:
                if kind == file_kinds.DICOM:
                    below.append((path, kind))
                else:
                    images.append(path)
                if os.path.islink(path):
                    self._links[path] = os.path.realpath(path)
                else:
                    self._seen.add(os.path.join(real, entry.name))  # noqa: PTH118
        return images, below

    def drop_repeated_links(self) -> None:
        """Take out links to files that are listed themselves, once all are known: a link takes no view of a study."""
        repeated = set()
        for path, real in self._links.items():
            if real in self._seen:
                repeated.add(path)
            self._seen.add(real)
        self._passed_over[file_kinds.TWICE] += len(repeated)
        if repeated:
            entries, self._entries = self._entries, []
            for entry in entries:
                if isinstance(entry, Study):
                    images = tuple(path for path in entry.images if path not in repeated)
                    self._entries += [Study(entry.name, images)] if images else []
                elif isinstance(entry, GivenStudy) or entry.path not in repeated:
                    self._entries.append(entry)


def _files_of(entry: Study | GivenStudy | DicomFile) -> tuple[DicomFile, ...]:
    if isinstance(entry, Study):
        return ()
    return (entry,) if isinstance(entry, DicomFile) else entry.files


def _given(name: str, images: Sequence[tuple[Path, str]]) -> Study | GivenStudy:
    """The study of images, with their kinds, that are said to be one."""
    files = tuple(DicomFile(path, str(path), named=True) for path, kind in images if kind == file_kinds.DICOM)
    others = tuple(path for path, kind in images if kind != file_kinds.DICOM)
    return GivenStudy(name, files, others) if files else Study(name, others)


def _counts(kinds: Mapping[str, int]) -> str:
    return "; ".join(f"{kind}: {count}" for kind, count in sorted(kinds.items()) if count)


def _kind_of_argument(argument: Path) -> str:
    """A kind of `file_kinds`, or `.txt` or `.json`."""
    suffix = argument.suffix.lower()
    if os.path.isdir(argument):
        return file_kinds.FOLDER
    return suffix if suffix in file_kinds.LIST_SUFFIXES | {".json"} else file_kinds.argument_kind(argument)


def _kind_in_list(path: Path) -> str:
    """Files with an image's suffix are not opened: a list may name hundreds of thousands."""
    if path.suffix.lower() in file_kinds.IMAGE_SUFFIXES:
        return file_kinds.IMAGE
    return file_kinds.argument_kind(path)
