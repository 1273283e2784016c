"""Finished reports from a file: of r2gen, of the published code, of ReXrank, or a table.

Forms: JSON lines of `r2gen infer --format json` or with `id` and a text; the published code's `test_result.json`
(`{id: [text]}`); ReXrank's JSON (`{id: {"model_prediction": ..., "report" or "section_findings": ...}}`); a JSON list
of objects; CSV or TSV with a head. Errors give a place ("line 3"), never an id.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from r2gen_export.errors import R2GenError
from r2gen_export.reporting.report import FAILURE_SCHEMA, REPORT_SCHEMA
from r2gen_export.studies.annotation import read_text
from r2gen_export.system.json_fields import RepeatedKeyError, unique_fields

ID_FIELDS: Final = ("id", "study_id", "name", "image_id", "dicom_id", "uid")
TEXT_FIELDS: Final = (
    *("text", "hypothesis", "prediction", "model_prediction", "generated", "generated_report", "predicted"),
    *("predicted_report", "hypo", "hyp", "res", "candidate", "report"),
)
REFERENCE_FIELDS: Final = (
    *("reference", "ground_truth", "gt", "gts", "ref", "target", "reference_report", "section_findings"),
    "report",
)
"""Names under which files have a study's id, its generated text and its reference; the first that is there counts."""


@dataclass(frozen=True)
class Prediction:
    """A finished report. `place`: where it stands. `id` may identify a patient: not for messages.

    Attributes:
        place: "line 3 of the predictions".
        id: of its study; None where the file has none, as `infer` without `--names`.
        text: empty where the study has no report.
        reference: the text it is to be compared with, where the file has it.
        failed: the file says that there is no report.
        number: of the study in `infer`'s call, and `inputs` the SHA-256 of its images.
        token_ids: of the text, where known.
    """

    place: str
    id: str | None
    text: str
    reference: str | None = None
    failed: bool = False
    number: int | None = None
    inputs: tuple[str, ...] = ()
    token_ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Predictions:
    """The reports of one file, and its `form`: "r2gen", "published", "rexrank", "records" or "table"."""

    entries: tuple[Prediction, ...]
    form: str
    system: dict[str, Any]


def read_predictions(path: Path, subject: str = "the predictions") -> Predictions:
    """Read a file of one of the forms above.

    Raises:
        R2GenError: `R2G-EVAL-FORMAT` with the place; `R2G-DATA-EMPTY` when there is no report in it.
    """
    content = _content(path, subject)
    if path.suffix.lower() in (".csv", ".tsv"):
        read = Predictions(tuple(_table(content, subject)), "table", {})
    else:
        read = _json(content, subject)
    if not read.entries:
        raise R2GenError("R2G-DATA-EMPTY", f"there is no report in {subject}", "name a file with reports")
    return read


def read_text_map(path: Path, subject: str) -> dict[str, str]:
    """`{id: text}` of the published code's `test_refs.json`, or of any form that has ids and texts.

    Raises:
        R2GenError: `R2G-EVAL-FORMAT`, `R2G-EVAL-STUDIES` for an id that is there twice.
    """
    texts: dict[str, str] = {}
    for entry in read_predictions(path, subject).entries:
        if entry.id is None:
            raise wrong_form(f"{entry.place} has no id", "give every study its id")
        if entry.id in texts:
            raise R2GenError("R2G-EVAL-STUDIES", f"{entry.place} is of a study that was there already", "remove one")
        texts[entry.id] = entry.text
    return texts


def _content(path: Path, subject: str) -> str:
    try:
        return read_text(path, subject)
    except R2GenError as error:
        if error.code != "R2G-DATA-ANNOTATION":
            raise
        raise R2GenError("R2G-EVAL-FORMAT", error.message, error.fix) from error


def _json(content: str, subject: str) -> Predictions:
    try:
        record = json.loads(content, object_pairs_hook=unique_fields)
    except RepeatedKeyError as error:
        raise R2GenError("R2G-EVAL-STUDIES", f"{subject}: an id or key is there twice", "remove one of them") from error
    except (ValueError, RecursionError):
        return _lines(content, subject)
    if isinstance(record, list):
        places = ((f"entry {number} of {subject}", fields) for number, fields in enumerate(record, start=1))
        return Predictions(tuple(_record(fields, place) for place, fields in places), "records", {})
    if not isinstance(record, dict):
        raise wrong_form(f"{subject} is neither a list nor an object", FORMS)
    if "schema" in record:
        return _lines(content, subject)
    if "id" in record and _first(record, TEXT_FIELDS) is not None:  # a single study
        return Predictions((_record(record, f"entry 1 of {subject}"),), "records", {})
    entries = []
    form = "published"
    for number, (key, value) in enumerate(record.items(), start=1):
        place = f"entry {number} of {subject}"
        if isinstance(value, dict):
            form = "rexrank"
            entries.append(_record({**value, "id": key}, place))
        else:
            entries.append(Prediction(place, key, _text(value, place)))
    return Predictions(tuple(entries), form, {})


FORMS: Final = "expected JSON lines of infer, {id: [text]}, ReXrank's JSON, a list of objects, or a .csv with a head"


def _lines(content: str, subject: str) -> Predictions:
    entries: list[Prediction] = []
    system: dict[str, Any] = {}
    schemas = False
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"line {number} of {subject}"
        try:
            fields = json.loads(line, object_pairs_hook=unique_fields)
        except (ValueError, RecursionError) as error:
            raise wrong_form(f"{place} is not JSON, and the whole is not either", FORMS) from error
        if not isinstance(fields, dict):
            raise wrong_form(f"{place} is no object", FORMS)
        schemas = schemas or "schema" in fields
        entries.append(_ours(fields, place) if "schema" in fields else _record(fields, place))
        if not system and fields.get("schema") == REPORT_SCHEMA:
            system = _system(fields)
    return Predictions(tuple(entries), "r2gen" if schemas else "records", system)


def _system(fields: Mapping[str, Any]) -> dict[str, Any]:
    names = ("bundle_id", "model_id", "semantics", "preset", "decoding", "execution_provider")
    return {name: fields[name] for name in names if name in fields}


def _ours(fields: Mapping[str, Any], place: str) -> Prediction:
    schema = fields["schema"]
    if schema not in (REPORT_SCHEMA, FAILURE_SCHEMA):
        raise wrong_form(f"{place} has a schema that this release does not read", "write it with this release's infer")
    identity = fields.get("id", fields.get("name"))
    number = fields.get("study")
    if not isinstance(number, int) or not isinstance(identity, str | None):
        raise wrong_form(f"{place}: `study` or `name` is not of its type", FORMS)
    if schema == FAILURE_SCHEMA:
        return Prediction(place, identity, "", failed=True, number=number)
    tokens = fields.get("token_ids")
    return Prediction(
        place,
        identity,
        _text(fields.get("text"), place),
        number=number,
        inputs=tuple(map(str, fields.get("inputs", ()))),
        token_ids=tuple(tokens) if isinstance(tokens, list) else None,
    )


def _record(fields: Any, place: str) -> Prediction:
    if not isinstance(fields, dict):
        raise wrong_form(f"{place} is no object", FORMS)
    key = next((name for name in ID_FIELDS if fields.get(name) is not None), None)
    if key is None:
        raise wrong_form(f"{place} has no id", f"give it as one of {', '.join(ID_FIELDS)}")
    identity = fields[key]
    if isinstance(identity, bool) or not isinstance(identity, str | int):
        raise wrong_form(f"{place}: the id is neither text nor a whole number", "write ids as text")
    if "error" in fields and _first(fields, TEXT_FIELDS) is None:
        return Prediction(place, str(identity), "", failed=True)
    text = _first(fields, TEXT_FIELDS)
    if text is None:
        raise wrong_form(f"{place} has no generated text", f"give it as one of {', '.join(TEXT_FIELDS)}")
    reference = _first(fields, tuple(name for name in REFERENCE_FIELDS if name != text))
    return Prediction(
        place,
        str(identity),
        _text(fields[text], place),
        None if reference is None else _text(fields[reference], place),
    )


def _first(fields: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in fields), None)


def _table(content: str, subject: str) -> Iterator[Prediction]:
    sample = content.split("\n", 1)[0]
    delimiter = max(",;\t", key=sample.count)
    rows = csv.reader(io.StringIO(content), delimiter=delimiter, strict=True)
    try:
        head = [name.strip().lower().replace(" ", "_") for name in next(rows, [])]
        if len(set(head)) != len(head) or not _first(dict.fromkeys(head), TEXT_FIELDS):
            fix = f"name the columns in the first row: an id ({', '.join(ID_FIELDS)}) and a text"
            raise wrong_form(f"{subject} has no head that names each column once, with a text among them", fix)
        for row in rows:
            place = f"line {rows.line_num} of {subject}"
            if not row:
                continue
            if len(row) != len(head):
                raise wrong_form(f"{place} has {len(row)} cells, expected {len(head)}", "quote cells with commas")
            yield _record({name: cell for name, cell in zip(head, row, strict=True) if name}, place)
    except csv.Error as error:
        raise wrong_form(f"line {rows.line_num} of {subject} is not CSV", "write it again from its source") from error


def _text(value: Any, place: str) -> str:
    """A text, also as a list of one (of one)."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, list):
        raise wrong_form(f"{place} has {len(value)} texts in a list, expected one", "give one text a study")
    if isinstance(value, float) and math.isnan(value):
        raise wrong_form(f"{place}: the text is NaN", "write an empty text where there is no report")
    if not isinstance(value, str):
        raise wrong_form(f"{place}: the text is {type(value).__name__}, expected text", FORMS)
    try:
        value.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair
        raise wrong_form(f"{place}: the text is not Unicode", "write it again from its source") from error
    return value


def wrong_form(message: str, fix: str) -> R2GenError:
    """`R2G-EVAL-FORMAT`."""
    return R2GenError("R2G-EVAL-FORMAT", message, fix)
