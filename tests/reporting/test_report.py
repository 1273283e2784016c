"""A report's JSON and text forms."""

from __future__ import annotations

import dataclasses
import json

import pytest

from r2gen_export.bundle import DEMO_NOTICE, NOTICE
from r2gen_export.decoding import Decoding
from r2gen_export.reporting.report import STAGES, Report, notice_block

REPORT = Report(
    text="the lungs are clear .",
    token_ids=(5, 6, 2),
    logprobs=(-0.5, -0.25, -1.0),
    score=None,
    finish_reason="eos",
    timings_ms={**dict.fromkeys(STAGES, 1.23456), "total": 6.1},
    decode_steps_ms=(0.12345, 0.2),
    batch_size=1,
    decoding=Decoding(num_beams=1),
    preset="fast",
    semantics="hf-current",
    bundle_id="0123456789ab",
    model_id="tiny",
    execution_provider="CPUExecutionProvider",
    provider_steps=("CPU: taken",),
    notice=f"{NOTICE} {DEMO_NOTICE}",
    created="2026-01-31T12:00:00.000+00:00",
    r2gen_version="0.1.0",
    inputs=("0" * 64,),
)


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
