"""The reports that generated ones are compared with: an annotation, a file of texts, or MIMIC-CXR's own report files.

An annotation is R2Gen's, read more leniently than for images: `image_path` may be missing, and the text may be in
`report`, `findings` or `impression`, as text or as a list of one text. Errors give a place ("test[3] of the
annotation").
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from r2gen_export.errors import R2GenError
from r2gen_export.evaluation.predictions import ID_FIELDS, read_text_map, wrong_form
from r2gen_export.studies.annotation import read_splits, read_text, split_named

Section = Literal["findings", "impression"]

HEADING: Final = re.compile(r"^[ \t]*([A-Z][A-Z /(),&-]{2,60}?)[ \t]*:", re.MULTILINE)
"""A section's name in a report: capitals at the beginning of a line, and a colon."""

IU_PATIENT: Final = re.compile(r"(CXR\d+)_")
FORM: Final = 'expected {"train": [{"id", "report", "image_path"}], "val": [...], "test": [...]}'


@dataclass(frozen=True)
class Reference:
    """A study's report by a radiologist. `place`: "test[3] of the annotation". `id`, `patient`: not for messages.

    `paths`: its images as the annotation has them. `patient`: None where the ids do not tell.
    """

    place: str
    id: str
    text: str
    paths: tuple[str, ...] = ()
    patient: str | None = None


@dataclass(frozen=True)
class ReferenceSet:
    """The references of one split.

    Attributes:
        studies: those that have a text.
        training: the texts of the training split; None where there is none.
        elsewhere: the ids of the other splits, with the split's name.
        left_out_ids: of studies without a text, or without the section that was asked for.
        split: its name.
    """

    studies: tuple[Reference, ...]
    training: tuple[str, ...] | None = None
    elsewhere: Mapping[str, str] | None = None
    left_out_ids: frozenset[str] = frozenset()
    split: str = ""

    @property
    def left_out(self) -> int:
        """Number of studies without a text."""
        return len(self.left_out_ids)


def read_annotation(path: Path, split: str, section: Section | None = None) -> ReferenceSet:
    """The references of a split of an annotation.

    Args:
        path: the annotation.
        split: `train`, `val` or `test`.
        section: take `findings` or `impression` only, from a field of that name or from the report's headings. Without
            it `report` is taken, or what there is of `findings` and `impression` where there is no `report`.

    Raises:
        R2GenError: `R2G-DATA-ANNOTATION` when it is no annotation; `R2G-EVAL-FORMAT` with the place of an entry;
            `R2G-EVAL-STUDIES` when an id is twice in the split; `R2G-DATA-EMPTY` when it holds no reference.
    """
    subject = "the annotation"
    splits, _ = read_splits(path, subject)
    name = split_named(splits, split, subject)
    read = {key: list(_entries(splits[key], key, section)) for key in splits}
    seen: dict[str, str] = {}
    for reference in read[name]:
        if reference.id in seen:
            message = f"{reference.place} has the id of {seen[reference.id]}: one would overwrite the other"
            raise R2GenError("R2G-EVAL-STUDIES", message, "give every study an id of its own")
        seen[reference.id] = reference.place
    studies = tuple(reference for reference in read[name] if reference.text.strip())
    if not studies:
        what = f"{section} in any of its" if section else "report in its"
        message = f"split {split!r} has no {what} {len(read[name])} studies"
        raise R2GenError("R2G-DATA-EMPTY", message, "name another --split, --section or annotation")
    training = next(
        (tuple(entry.text for entry in read[key] if entry.text.strip()) for key in read if key == "train"), None
    )
    return ReferenceSet(
        studies,
        training=None if name == "train" else training or None,
        elsewhere={entry.id: key for key in read if key != name for entry in read[key] if entry.id not in seen},
        left_out_ids=frozenset(seen) - {reference.id for reference in studies},
        split=split,
    )


def _entries(values: list[Any], split: str, section: Section | None) -> Iterator[Reference]:
    label = split if split in ("train", "val", "test") else "an entry"
    for number, fields in enumerate(values):
        place = f"{label}[{number}] of the annotation"
        if not isinstance(fields, dict):
            raise wrong_form(f"{place} is no object", FORM)
        identity = next((fields[name] for name in ID_FIELDS if fields.get(name) is not None), None)
        if isinstance(identity, bool) or not isinstance(identity, str | int):
            raise wrong_form(f"{place} has no id that is text or a whole number", FORM)
        paths = fields.get("image_path", [])
        paths = [paths] if isinstance(paths, str) else paths
        if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
            raise wrong_form(f"{place}: image_path is not a list of paths", FORM)
        text = _report(fields, section, place)
        yield Reference(place, str(identity), text, tuple(paths), _patient(fields, str(identity)))


def _patient(fields: Mapping[str, Any], identity: str) -> str | None:
    for name in ("subject_id", "patient_id"):
        if isinstance(value := fields.get(name), str | int) and not isinstance(value, bool):
            return str(value)
    match = IU_PATIENT.match(identity)
    return match[1] if match else None


def _report(fields: Mapping[str, Any], section: Section | None, place: str) -> str:
    if section is not None:
        if section in fields:
            return _text(fields[section], f"{place}, {section}")
        return section_of(_text(fields.get("report", ""), place), section)
    if "report" in fields:
        return _text(fields["report"], place)
    parts = [_text(fields[name], f"{place}, {name}") for name in ("findings", "impression") if name in fields]
    if not parts:
        raise wrong_form(f"{place} has neither report nor findings nor impression", FORM)
    return " ".join(part for part in parts if part.strip())


def _text(value: Any, place: str) -> str:
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None or (isinstance(value, float) and math.isnan(value)):  # pandas writes NaN for an empty cell
        return ""
    if not isinstance(value, str):
        raise wrong_form(f"{place}: the report is {type(value).__name__}, expected text", FORM)
    return value


def section_of(report: str, section: Section) -> str:
    """The text below `FINDINGS:` or `IMPRESSION:`, in one line; empty where the report has no such heading."""
    headings = list(HEADING.finditer(report))
    parts = []
    ends = [heading.start() for heading in headings[1:]] + [len(report)] * bool(headings)
    for heading, end in zip(headings, ends, strict=True):
        if section in heading[1].strip().lower().split():
            parts.append(report[heading.end() : end])
    return " ".join(" ".join(parts).split())


def read_reference_files(path: Path, section: Section | None = None) -> ReferenceSet:
    """References without an annotation: MIMIC-CXR's folder of reports (`files/p10/p10000032/s50414267.txt`), or a file.

    Of a folder, an id is a file's name without `s` and `.txt`; the patient is the folder `p...` that it lies in. Of a
    file, ids and texts are read as those of predictions are (`test_refs.json`).

    Raises:
        R2GenError: `R2G-EVAL-FORMAT`, `R2G-EVAL-STUDIES`, `R2G-DATA-EMPTY`.
    """
    if path.is_dir():
        files = sorted(path.rglob("*.txt"))
        references = [_of_file(file, number, section) for number, file in enumerate(files, start=1)]
    else:
        texts = read_text_map(path, "the references")
        references = [
            Reference(f"entry {number} of the references", identity, section_of(text, section) if section else text)
            for number, (identity, text) in enumerate(texts.items(), start=1)
        ]
    ids = [reference.id for reference in references]
    if len(set(ids)) < len(ids):
        raise R2GenError("R2G-EVAL-STUDIES", "two files of references are of one study", "remove one of them")
    studies = tuple(reference for reference in references if reference.text.strip())
    if not studies:
        raise R2GenError("R2G-DATA-EMPTY", f"no reference in {len(references)} reports", "name another --section")
    left_out = frozenset(ids) - {reference.id for reference in studies}
    return ReferenceSet(studies, left_out_ids=left_out)


def _of_file(file: Path, number: int, section: Section | None) -> Reference:
    report = read_text(file, f"file {number} of the references")
    patient = file.parent.name if re.fullmatch(r"p\d+", file.parent.name) else None
    text = section_of(report, section) if section else " ".join(report.split())
    return Reference(f"file {number} of the references", re.sub(r"^s(?=\d)", "", file.stem), text, (), patient)
