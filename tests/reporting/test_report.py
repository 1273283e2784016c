"""A report's JSON and text forms."""

from __future__ import annotations

import dataclasses
import json

import pytest

from r2gen_export.reporting.report import Report, notice_block
from tests.helpers.reports import REPORT


def test_json_carries_every_attribute():
    fields = json.loads(json.dumps(REPORT.to_dict()))
    names = {field.name for field in dataclasses.fields(Report)} - {"name"}
    assert set(fields) == names | {"schema"}
    assert fields["schema"] == "r2gen-report/1"
    assert fields["decoding"]["num_beams"] == 1
    assert fields["timings_ms"]["encode"] == 1.235
    assert fields["decode_steps_ms"] == [0.123, 0.2]
    assert fields["notice"] == REPORT.notice


def test_a_name_is_kept_only_when_asked_for():
    assert "name" not in REPORT.to_dict()
    assert dataclasses.replace(REPORT, name="a.png").to_dict()["name"] == "a.png"


def test_text_ends_with_the_whole_notice():
    text, _, notice = REPORT.to_text().partition("\n\n")
    assert text == REPORT.text
    assert " ".join(line.removeprefix("| ") for line in notice.splitlines()) == REPORT.notice
    assert max(map(len, notice.splitlines())) <= 100
    assert notice == notice_block(REPORT.notice)


def test_a_report_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        REPORT.text = "other"
