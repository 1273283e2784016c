"""Which studies a call of `infer` is about: images typed as views of one study, or folders and lists of many."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from r2gen_export.errors import CodedError, R2GenError

IMAGE_SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"})
LIST_SUFFIXES: Final = frozenset({".txt"})
ANNOTATION: Final = "annotation.json"


@dataclass(frozen=True)
class Study:
    """The images of one study, in the order of its views. `name` may identify a patient: not for logs."""

    name: str
    images: tuple[Path, ...]


@dataclass(frozen=True)
class StudyList:
    """`many` is false for images typed as views of one study, even when a folder holds a single study."""

    studies: tuple[Study, ...]
    many: bool


def collect_studies(arguments: Sequence[Path]) -> StudyList:
    """Studies named by the arguments of one call.

    Args:
        arguments: either image files, the views of one study; or any number of
            folders (every image in it is a study, every subfolder is a study of its images; an `annotation.json`
            in it takes precedence),
            `.txt` lists (one study a line: its images, separated by tabs or, quoted where needed, by blanks; relative
            to the list; `#` begins a comment line) and
            `.json` files of the R2Gen annotation form (all splits; images relative to `images/` beside it, or to it).

    Raises:
        R2GenError: `R2G-IMAGE-MISSING` when an argument is not there; `R2G-CONFIG-VALUE` when images and folders are
            mixed; `R2G-DATA-EMPTY` when there is no study; `R2G-DATA-ANNOTATION` for an unreadable list.
    """
    if not arguments:
        raise R2GenError("R2G-DATA-EMPTY", "no image given", "r2gen infer IMAGE...")
    for number, argument in enumerate(arguments, start=1):
        if not argument.exists():
            # By number: the name of an image may identify a patient.
            raise R2GenError("R2G-IMAGE-MISSING", f"argument {number} names nothing that is there", "check the path")
    holders = [argument for argument in arguments if _holds_many(argument)]
    if not holders:
        return StudyList((Study(str(arguments[0]), tuple(arguments)),), many=False)
    if len(holders) < len(arguments):
        raise R2GenError(
            "R2G-CONFIG-VALUE",
            "images, which are views of one study, mixed with folders or lists, which hold many studies",
            "name either images or folders and lists",
        )
    studies = tuple(study for holder in holders for study in _expand(holder))
    if not studies:
        raise R2GenError(
            "R2G-DATA-EMPTY",
            f"no study in {', '.join(map(str, holders))}",
            f"images end in {', '.join(sorted(IMAGE_SUFFIXES))}",
        )
    return StudyList(studies, many=True)


def without_names(error: CodedError, study: Study, number: int) -> str:
    """The error's message with the study's paths replaced by its number, for output that may be kept as a log."""
    aliases: dict[str, str] = {}
    for view, path in enumerate(study.images, start=1):
        alias = f"image {view} of study {number}" if len(study.images) > 1 else f"the image of study {number}"
        for spelling in (str(path.absolute()), str(path), path.name):
            aliases.setdefault(spelling, alias)
    # Longest first, so that no folder of a path is left standing; in one pass, so that no alias is replaced again.
    spellings = sorted(filter(None, aliases), key=len, reverse=True)
    if not spellings:
        return error.message
    return re.sub("|".join(map(re.escape, spellings)), lambda match: aliases[match[0]], error.message)


def _holds_many(argument: Path) -> bool:
    return argument.is_dir() or argument.suffix.lower() in LIST_SUFFIXES | {".json"}


def _expand(holder: Path) -> Iterator[Study]:
    if holder.is_dir():
        annotation = holder / ANNOTATION
        return _annotation(annotation) if annotation.exists() else _folder(holder)
    return _annotation(holder) if holder.suffix.lower() == ".json" else _list(holder)


def _folder(folder: Path) -> Iterator[Study]:
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if images := tuple(sorted(image for image in entry.iterdir() if _is_image(image))):
                yield Study(str(entry), images)
        elif _is_image(entry):
            yield Study(str(entry), (entry,))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise R2GenError("R2G-DATA-ANNOTATION", f"{path} is not readable as UTF-8 text: {error}") from error


def _list(path: Path) -> Iterator[Study]:
    for number, line in enumerate(_read(path).splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            names = [part.strip() for part in line.split("\t")] if "\t" in line else shlex.split(line)
        except ValueError as error:
            raise R2GenError(
                "R2G-DATA-ANNOTATION", f"{path} line {number}: {error}", "quote paths with blanks, or separate by tabs"
            ) from error
        if images := tuple(path.parent / name for name in names if name):
            yield Study(str(images[0]), images)


def _annotation(path: Path) -> Iterator[Study]:
    base = path.parent / "images"
    base = base if base.is_dir() else path.parent
    try:
        splits = json.loads(_read(path))
        for split in ("train", "val", "test"):
            for entry in splits.get(split, ()):
                images = entry["image_path"]
                if not isinstance(images, list):
                    raise TypeError(f"image_path of a study in {split} is no list")
                yield Study(str(entry["id"]), tuple(base / image for image in images))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise R2GenError(
            "R2G-DATA-ANNOTATION",
            f"{path} is not of the R2Gen form ({type(error).__name__}: {error})",
            'expected {"train": [{"id", "image_path": [...]}], "val": [...], "test": [...]}',
        ) from error
