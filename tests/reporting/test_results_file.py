"""Results of many studies in one file, and a run that goes on where an earlier one ended."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from r2gen_export.decoding import FAST
from r2gen_export.errors import R2GenError
from r2gen_export.reporting.report import FAILURE_SCHEMA, REPORT_SCHEMA
from r2gen_export.reporting.results_file import read_results, result_key, results_file
from r2gen_export.system.files import partial_path

A, B = "a" * 16, "b" * 16


def entry(form: str, key: str, study: int = 1) -> str:
    if form == "json":
        return json.dumps({"schema": REPORT_SCHEMA, "study": study, "key": key, "text": "Clear."}) + "\n"
    return f"== study {study} of 9 [{key}] ==\nClear.\n\n| Research use only.\n| Not for diagnosis.\n\n"


def failure(form: str) -> str:
    if form == "json":
        return json.dumps({"schema": FAILURE_SCHEMA, "study": 2, "error": {}}) + "\n"
    return "== study 2 of 9 ==\nno report: R2G-IMAGE-BLANK: study 2, view 1: the image is black\n\n"


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_stopped_run_goes_on_behind_its_last_whole_report(tmp_path: Path, form: str) -> None:
    target = tmp_path / "reports"
    with pytest.raises(KeyboardInterrupt), results_file(target, form) as (write, earlier):
        assert not earlier.keys
        for text in (entry(form, A), failure(form), entry(form, A, 3)):
            write(text)
        raise KeyboardInterrupt
    whole = partial_path(target).read_text()
    assert whole == entry(form, A) + failure(form) + entry(form, A, 3)
    assert not target.exists()
    for cut in range(1, len(entry(form, B))):  # half an entry, as a machine without power leaves it
        partial_path(target).write_text(whole + entry(form, B)[:cut])
        with pytest.raises(KeyboardInterrupt), results_file(target, form, resume=True) as (write, earlier):
            assert earlier.keys == {(1, A): 1, (3, A): 1}
            raise KeyboardInterrupt
        assert partial_path(target).read_text() == entry(form, A) + entry(form, A, 3)
    with results_file(target, form, resume=True) as (write, earlier):
        write(entry(form, B, 2))
    assert target.read_text() == entry(form, A) + entry(form, A, 3) + entry(form, B, 2)
    assert not partial_path(target).exists()


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_finished_file_takes_more_studies(tmp_path: Path, form: str) -> None:
    target = tmp_path / "reports"
    target.write_text(entry(form, A))
    with results_file(target, form, resume=True) as (write, earlier):
        assert earlier.keys == {(1, A): 1}
        write(entry(form, B))
    assert target.read_text() == entry(form, A) + entry(form, B)


@pytest.mark.parametrize(
    ("form", "content"),
    [("json", "hello\n" + entry("json", A)), ("json", entry("text", A)), ("text", entry("json", A)), ("text", "x\n")],
)
def test_a_file_of_another_kind_is_left_alone(tmp_path: Path, form: str, content: str) -> None:
    target = tmp_path / "reports"
    target.write_text(content)
    with pytest.raises(R2GenError) as caught, results_file(target, form, resume=True):
        pytest.fail("must not begin")
    assert caught.value.code == "R2G-OUTPUT-EXISTS"
    assert target.read_text() == content
    assert not partial_path(target).exists()


def test_nothing_to_resume_is_a_new_run(tmp_path: Path) -> None:
    with results_file(tmp_path / "reports", "json", resume=True) as (write, earlier):
        assert not earlier.keys
        write(entry("json", A))
    assert read_results(tmp_path / "reports", "json").keys == {(1, A): 1}


def test_a_key_changes_with_everything_a_report_is_made_from() -> None:
    keys = {
        result_key("bundle", "hf-current", FAST, ["x", "y"]),
        result_key("other", "hf-current", FAST, ["x", "y"]),
        result_key("bundle", "hf-4.30", FAST, ["x", "y"]),
        result_key("bundle", "hf-current", replace(FAST, max_new_tokens=7), ["x", "y"]),
        result_key("bundle", "hf-current", FAST, ["y", "x"]),
    }
    assert len(keys) == 5
    assert result_key("bundle", "hf-current", FAST, ["x", "y"]) in keys
