"""Lists and annotations as text files: their encodings, their forms, and the image files they name.

A list is a `.txt` with a study a line: its images, separated by tabs, or by blanks with quotes where needed; `#` begins
a comment. An annotation is R2Gen's: `{"train": [{"id", "report", "image_path": [...]}, ...], "val": ..., "test": ...}`.
Files from Windows are read too: byte order marks, UTF-16, `\\` between folders.

Errors name a place ("line 3 of the list", "train[3] of the annotation"), never what stands there.
"""

# ruff: noqa: PTH112, PTH113  os.path says False where Path raises: no permission, a name too long

from __future__ import annotations

import codecs
import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from r2gen_export.errors import R2GenError
from r2gen_export.studies.refusal import reading, reason_of
from r2gen_export.system.json_fields import RepeatedKeyError, unique_fields

SPLITS: Final = {"train": ("train",), "val": ("val", "validation", "valid", "dev"), "test": ("test",)}
"""Splits, and the names under which annotations have them."""

KNOWN: Final = frozenset(name for names in SPLITS.values() for name in names)

FORM: Final = 'expected {"train": [{"id", "image_path": [...]}], "val": [...], "test": [...]}'

MARKS: Final = (
    # UTF-32 before UTF-16, whose mark it begins with.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)


@dataclass(frozen=True)
class Entry:
    """A study of an annotation. `place`: "train[3]". `paths`: as they are written. `report`: None where there is none.

    `id` may identify a patient: not for messages.
    """

    place: str
    id: str
    report: str | None
    paths: tuple[str, ...]


def read_text(path: Path, subject: str, *, errors: str = "strict") -> str:
    """A text file in UTF-8, or in what its byte order mark says; line ends become `\\n`.

    Args:
        path: the file.
        subject: what messages call it.
        errors: `surrogateescape` keeps bytes that are not UTF-8, as file names do.

    Raises:
        R2GenError: `R2G-DATA-ANNOTATION`, `R2G-RESOURCE-MEMORY`. None names the file.
        InternalError: anything else that went wrong.
    """
    with reading(subject):
        try:
            if path.exists() and not path.is_file():  # a pipe would wait for a writer
                raise _unreadable(subject, "is not a regular file", "name a file")
            content = path.read_bytes()
        except (OSError, ValueError) as error:
            fix = "check the path and its permissions"
            raise _unreadable(subject, f"cannot be read ({reason_of(error)})", fix) from error
    encoding = next((name for mark, name in MARKS if content.startswith(mark)), None) or _unmarked(content)
    try:
        text = content.decode(encoding, errors if encoding == "utf-8" else "strict")
    except ValueError as error:
        raise _unreadable(subject, f"is not {encoding.upper()} text", "save it as UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _unmarked(content: bytes) -> str:
    """UTF-16 is told by its zero bytes: text in UTF-8 has none."""
    head = content[:64]
    if len(head) >= 4 and len(content) % 2 == 0:
        if head[1::2].count(0) > len(head) // 4 and not head[::2].count(0):
            return "utf-16-le"
        if head[::2].count(0) > len(head) // 4 and not head[1::2].count(0):
            return "utf-16-be"
    return "utf-8"


def list_studies(path: Path, subject: str) -> Iterator[tuple[str, tuple[Path, ...]]]:
    """The studies of a list, each with its place ("line 3 of the list"). A line is understood so that its files exist.

    Raises:
        R2GenError: `R2G-DATA-ANNOTATION` when a quote is left open.
    """
    # Names that are no UTF-8 are possible on Linux: their bytes are kept.
    for number, raw in enumerate(read_text(path, subject, errors="surrogateescape").split("\n"), start=1):
        line = raw.strip()
        place = f"line {number} of {subject}"
        if not line or (line.startswith("#") and not os.path.lexists(path.parent / line)):
            continue
        if images := _images_of_line(raw, path.parent, place):
            yield place, images


def _images_of_line(line: str, base: Path, place: str) -> tuple[Path, ...]:
    failed: ValueError | None = None
    if "\t" in line.strip():
        readings = [[_unquoted(part) for part in line.split("\t")]]
    else:
        readings = []
        for escape in ("\\", ""):  # `my\ image.png` of a shell, `sub\image.png` of Windows
            try:
                readings.append(_words(line, escape))
            except ValueError as error:
                failed = error
        readings.append([_unquoted(line)])  # one file with blanks in its name
    readings += [[name.replace("\\", "/") for name in names] for names in readings]
    tried = [images for names in readings if (images := tuple(base / name for name in names if name))]
    for images in tried:
        if all(map(os.path.isfile, images)):
            return images
    if failed is not None:
        message = f"{place}: {str(failed).lower()}"
        raise R2GenError("R2G-DATA-ANNOTATION", message, "quote paths with blanks, or separate by tabs") from failed
    return tried[0] if tried else ()


def _words(line: str, escape: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.commenters, lexer.escape = True, "", escape
    return list(lexer)


def _unquoted(part: str) -> str:
    part = part.strip()
    return part[1:-1].strip() if len(part) > 1 and part[0] == part[-1] and part[0] in "\"'" else part


def read_splits(path: Path, subject: str) -> tuple[dict[str, list[Any]], list[str]]:
    """The splits of an annotation by their names there, and the keys of what is no split.

    Raises:
        R2GenError: `R2G-DATA-ANNOTATION`.
    """
    try:
        record = json.loads(read_text(path, subject), object_pairs_hook=unique_fields)
    except (ValueError, RecursionError) as error:
        where = f": line {error.lineno}, {error.msg}" if isinstance(error, json.JSONDecodeError) else ""
        message = f"is not JSON{where}" if not isinstance(error, RepeatedKeyError) else "names a key twice"
        raise _unreadable(subject, message, "write it again from its source") from error
    if not isinstance(record, dict):
        raise _unreadable(subject, f"holds {_kind(record)}", FORM)
    splits: dict[str, list[Any]] = {}
    others = []
    for key, value in record.items():
        if key in KNOWN:
            if not isinstance(value, list):
                raise _unreadable(subject, f"has {_kind(value)} as split {key!r}, expected a list", FORM)
            splits[key] = value
        elif isinstance(value, list) and value and all(isinstance(at, dict) and "image_path" in at for at in value):
            splits[key] = value
        else:
            others.append(key)
    if not splits:
        has = f"has {len(others)} other keys" if others else "is empty"
        raise _unreadable(subject, f"has no split: neither train, val nor test; it {has}", FORM)
    return splits, others


def entries(
    splits: Mapping[str, Sequence[Any]], name: str, subject: str, *, needs_report: bool = False
) -> Iterator[Entry]:
    """The studies of one split, checked; with `needs_report`, each must have its report.

    Raises:
        R2GenError: `R2G-DATA-ANNOTATION` with the place of the entry.
    """
    label = name if name in KNOWN else f"split {list(splits).index(name) + 1}"  # an unknown name may be a patient's
    required = ("id", "report", "image_path") if needs_report else ("id", "image_path")
    for number, fields in enumerate(splits[name]):
        place = f"{label}[{number}]"
        wrong = _entry_problem(fields, required)
        if wrong:
            message = f"{place} of {subject}: {wrong}"
            raise R2GenError("R2G-DATA-ANNOTATION", message, "correct or remove this entry")
        yield Entry(place, str(fields["id"]), fields.get("report"), tuple(fields["image_path"]))


def _entry_problem(fields: Any, required: Sequence[str]) -> str:
    if not isinstance(fields, dict):
        return f"is {_kind(fields)}, expected an object with {', '.join(required)}"
    if lacking := [key for key in required if key not in fields]:
        return f"lacks {', '.join(lacking)}"
    if not isinstance(fields["id"], str | int):
        return f"id is {_kind(fields['id'])}, expected text"
    if not isinstance(fields.get("report"), str if "report" in required else str | None):
        return f"report is {_kind(fields['report'])}, expected text"
    paths = fields["image_path"]
    if not isinstance(paths, list) or not paths or not all(isinstance(path, str) and path for path in paths):
        return "image_path is not a list of one or more paths"
    return ""


def image_bases(annotation: Path) -> list[Path]:
    """Folders that the image paths of an annotation start from: `images/` beside it, if it is there, and its own."""
    images = annotation.parent / "images"
    return [images, annotation.parent] if os.path.isdir(images) else [annotation.parent]


def resolve(name: str, bases: Sequence[Path]) -> Path:
    """The file that a path of an annotation means: below the first of `bases` where there is one, `\\` taken as `/`
    where only that exists."""
    spellings = (name, name.replace("\\", "/")) if "\\" in name else (name,)
    tried = [base / spelling for spelling in spellings for base in bases]
    return next((path for path in tried if os.path.isfile(path)), tried[0])


def split_named(splits: Mapping[str, Any], split: str, subject: str) -> str:
    """The name under which an annotation has `train`, `val` or `test`.

    Raises:
        R2GenError: `R2G-DATA-ANNOTATION` when it has none, or several.
    """
    names = [name for name in SPLITS[split] if name in splits]
    if len(names) > 1:
        raise _unreadable(subject, f"has split {split!r} under several names: {', '.join(names)}", "keep one of them")
    if not names:
        has = ", ".join(name for name in splits if name in KNOWN) or f"{len(splits)} of other names"
        raise _unreadable(subject, f"has no split {split!r}, only {has}", FORM)
    return names[0]


def describe_others(others: Sequence[str], subject: str) -> list[str]:
    """A remark on the keys of an annotation that are no splits."""
    return [f"{subject}: {len(others)} keys hold no studies and are not read"] if others else []


def _kind(value: Any) -> str:
    names: dict[type, str] = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _unreadable(subject: str, what: str, fix: str) -> R2GenError:
    return R2GenError("R2G-DATA-ANNOTATION", f"{subject} {what}", fix)
