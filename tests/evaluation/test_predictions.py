"""Files of finished reports: every form that is read, and what is refused by its place and never by an id."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from r2gen_export.errors import R2GenError
from r2gen_export.evaluation.predictions import read_predictions, read_text_map
from r2gen_export.reporting.report import FAILURE_SCHEMA, REPORT_SCHEMA

SECRET = "DOE-JANE"


def ours(study: int, **fields: object) -> str:
    return json.dumps({"schema": REPORT_SCHEMA, "study": study, "text": "Clear.", "token_ids": [5, 2], **fields})


def read(
    folder: Path, content: str | bytes, name: str = "predictions.json"
) -> list[tuple[str | None, str, str | None]]:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return [(entry.id, entry.text, entry.reference) for entry in read_predictions(path).entries]


TWO = [("a", "No effusion.", None), ("b", "", None)]

FORMS = {
    "published": '{"a": ["No effusion."], "b": [""]}',
    "nested": '{"a": [["No effusion."]], "b": ""}',
    "byte order mark and CRLF": '\ufeff{"a": ["No effusion."],\r\n "b": [""]}\r\n',
    "list": '[{"id": "a", "report": "No effusion."}, {"id": "b", "report": ""}]',
    "one study over several lines": '{\n "id": "a",\n "report": "No effusion."\n}',
    "lines": '{"id": "a", "hypothesis": "No effusion."}\n\n{"study_id": "b", "generated": ""}\n',
    "failures": f'{{"id": "a", "text": "No effusion."}}\n{{"schema": "{FAILURE_SCHEMA}", "study": 2, "name": "b", '
    '"error": {}}',
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str, tmp_path: Path) -> None:
    assert read(tmp_path, FORMS[form]) == TWO[: 1 if form.startswith("one study") else 2]


def test_reports_of_infer_keep_tokens_and_settings(tmp_path: Path) -> None:
    path = tmp_path / "reports.jsonl"
    path.write_text("\n".join([ours(1, name="a", inputs=["00"], preset="fast", bundle_id="x"), ours(2)]) + "\n")
    read_back = read_predictions(path)
    first, second = read_back.entries
    assert (first.id, first.number, first.inputs, first.token_ids) == ("a", 1, ("00",), (5, 2))
    assert (second.id, second.number) == (None, 2)
    assert read_back.system == {"preset": "fast", "bundle_id": "x"}
    assert read_back.form == "r2gen"


def test_rexrank_brings_its_references(tmp_path: Path) -> None:
    entry = {"section_findings": "Small effusion.", "report": "FINDINGS: ...", "model_prediction": "No effusion."}
    assert read(tmp_path, json.dumps({"a": entry})) == [("a", "No effusion.", "Small effusion.")]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_tables(delimiter: str, tmp_path: Path) -> None:
    rows = [["study_id", "Ground Truth", "Generated"], ["a", '"Small, left\neffusion."', "No effusion."], ["b", "", ""]]
    content = "\r\n".join(delimiter.join(row) for row in rows)
    if delimiter == ",":
        assert read(tmp_path, content, "x.csv")[0] == ("a", "No effusion.", "Small, left\neffusion.")
    assert read(tmp_path, content, "x.csv")[1] == ("b", "", "")


REFUSED = {
    "NaN": (f'{{"{SECRET}": NaN}}', "NaN"),
    "two texts": (f'{{"{SECRET}": ["a", "b"]}}', "2 texts"),
    "a number": (f'{{"{SECRET}": [3]}}', "int"),
    "no text": (f'[{{"id": "{SECRET}"}}]', "no generated text"),
    "no id": ('[{"report": "x"}]', "no id"),
    "truncated": (f'{{"{SECRET}": ["a"]', "not JSON"),
    "another schema": (f'{{"schema": "r2gen-report/99", "study": 1, "name": "{SECRET}"}}', "schema"),
    "half a surrogate": (f'{{"{SECRET}": ["\\ud800"]}}', "Unicode"),
    "no head": (b"a,b\n1,2\n", "head"),
    "a cell too many": (f"id,report\n{SECRET},x,y\n".encode(), "3 cells"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_place(case: str, tmp_path: Path) -> None:
    content, expected = REFUSED[case]
    name = "x.csv" if isinstance(content, bytes) else "x.json"
    with pytest.raises(R2GenError, match=expected) as raised:
        read(tmp_path, content, name)
    assert raised.value.code == "R2G-EVAL-FORMAT"
    assert SECRET not in str(raised.value)


def test_an_id_that_is_there_twice(tmp_path: Path) -> None:
    with pytest.raises(R2GenError) as raised:
        read(tmp_path, f'{{"{SECRET}": ["a"], "{SECRET}": ["b"]}}')
    assert raised.value.code == "R2G-EVAL-STUDIES"
    (tmp_path / "refs.jsonl").write_text('{"id": "a", "report": "x"}\n{"id": "a", "report": "y"}\n')
    with pytest.raises(R2GenError, match="line 2 of the references"):
        read_text_map(tmp_path / "refs.jsonl", "the references")


@pytest.mark.parametrize("content", ["", "[]", "{}", "\n\n"])
def test_an_empty_file(content: str, tmp_path: Path) -> None:
    with pytest.raises(R2GenError) as raised:
        read(tmp_path, content)
    assert raised.value.code == "R2G-DATA-EMPTY"
