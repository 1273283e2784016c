"""What the latency page says in sentences: what may be repeated, what not and why, no factor below its floor."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from benchmarks.latency import sentences
from benchmarks.latency.figures import rate_rows, roofline_notes, roofline_rows
from benchmarks.latency.html import to_html
from benchmarks.latency.markdown import to_markdown
from benchmarks.latency.measure import Measured
from benchmarks.latency.reference import verdict
from benchmarks.latency.report import assemble
from benchmarks.latency.roofline import Work, count_work
from benchmarks.latency.settings import BenchSettings, Configuration
from benchmarks.latency.trackers import Nvml, Rapl, Watch
from benchmarks.machine_rates import Machine, Rates
from r2gen_export.bundle import demo_bundle, load_manifest
from r2gen_export.commands.bench import summary
from r2gen_export.runtime.settings import resolve_settings
from tests.benchmarks.synthetic import answer, starts

MANIFEST = load_manifest(demo_bundle())
MACHINE = Machine(2, (Rates(50.0, 100.0, 800.0, 30.0),) * 2)
ALONE = Configuration("auto", resolve_settings(MANIFEST, overrides={}), 1, 1, 2)


@pytest.fixture(scope="module")
def work() -> Work:
    return count_work(demo_bundle(), MANIFEST)


def measured(totals: list[list[float]], engine: str = "r2gen", tokens: int = 60) -> Measured:
    found = starts(totals)
    for start, process in zip(found, totals, strict=True):
        start["loaded"][0] |= {"provider": "CPUExecutionProvider", "backends": []}
        start["rounds"] = [{"answers": [answer(total, steps=tokens - 1)], "cost": {}} for total in process]
    return Measured(replace(ALONE, engine=engine), Watch(Rapl(), Nvml()), found)


def report(work: Work, contenders: list[Measured], machine: Machine = MACHINE, **overrides: int) -> dict[str, Any]:
    settings = BenchSettings(demo_bundle(), Path("out"), overrides=overrides)
    made = assemble(settings, MANIFEST, contenders, machine, work=work, pictures=[(Path("x.png"),)])
    for one in made["configurations"]:  # of the machine the tests run on
        one["steadiness"] |= {"foreign_cores": 0.0, "stolen_cores": 0.0, "warnings": []}
    if len(contenders) > 1:
        made["reference"] = verdict(contenders, made)
    return made


TEN = [[1000.0] * 5, [1000.0] * 5]


def test_what_a_report_takes_is_one_sentence(work):
    made = report(work, [measured(TEN)])
    (one,) = made["configurations"]
    expected = (
        "A report of about 60 tokens takes 1.0 s (nine of ten take at most 1.0 s) once the bundle is loaded. After a "
        "start the first one is there after 0.15 s. That is about 3,600 reports an hour, with 100 MB of memory."
    )
    assert sentences.headline(one) == expected
    assert sentences.caveats(made, one) == []
    for text in (to_html(made), to_markdown(made), summary(made)):
        assert expected in text
        assert "1.1 million parameters" in text
        assert "busy" not in text.partition("Definitions")[0].replace("cores busy", "").replace("on a busy machine", "")


def test_why_not_to_repeat_it(work):
    made = report(work, [measured([[1000.0, 1100.0]])], max_new_tokens=8)
    (one,) = made["configurations"]
    assert "nine of ten" not in sentences.headline(one)
    one["steadiness"]["foreign_cores"] = 1.9
    assert sentences.caveats(made, one) == [
        "Measured while the machine was busy: do not plan with these figures.",
        "From 2 timed reports only.",
        "Reports were cut at 8 tokens (--max-new-tokens): whole ones take longer.",
    ]
    one["steadiness"]["warnings"] = ["other programs kept 1.9 of 2 cores busy"]
    assert "Measured under load: do not use these times." in to_html(made)


@pytest.mark.parametrize(
    ("ours", "tokens", "busy", "reason"),
    [
        (TEN, 60, 0.0, ""),
        ([[1000.0] * 2], 60, 0.0, "only 2 reports of each were timed"),
        (TEN, 8, 0.0, "reports of 8 tokens are too short"),
        (TEN, 60, 1.9, "the machine was busy"),
    ],
)
def test_a_factor_is_set_in_bold_only_where_it_may_be_quoted(work, ours, tokens, busy, reason):
    theirs = [[4.0 * total for total in process] for process in ours]
    contenders = [measured(ours, tokens=tokens), measured(theirs, "torch", tokens)]
    made = report(work, contenders)
    made["configurations"][0]["steadiness"]["foreign_cores"] = busy
    made["reference"] = verdict(contenders, made)
    ((text, quotable),) = sentences.reference_lines(made)
    assert quotable == (not reason)
    assert reason in text
    assert ("4.00 times faster than" in text) == quotable
    assert (f"<b>{text}</b>" in to_html(made)) == quotable
    if quotable:
        assert "95 % interval 4.00 to 4.00, medians of 10 reports of 60 tokens" in text


def test_no_factor_below_the_floor_without_a_reason(work):
    slow = Machine(2, (Rates(0.001, 0.1, 0.1, 30.0),) * 2)
    made = report(work, [measured(TEN)], slow)
    (one,) = made["configurations"]
    assert one["roofline"]["encode"]["times_floor"] < 1
    assert next(row[-1] for row in roofline_rows(one)) == "below, see note"
    (note,) = [note for note in roofline_notes(one) if note.startswith("encode: 100 ms is below the computed floor")]
    for text in (to_html(made), to_markdown(made), summary(made)):
        assert note in unescape(text)
        assert not re.search(r"\b0\.\d+ x", text)
    assert "encode: 100 ms, below the computed floor of" in summary(made)
    assert sentences.FLOOR in to_markdown(made)


def test_rates_say_where_bytes_are_read_from(work):
    made = report(work, [measured(TEN)])
    (one,) = made["configurations"]
    one["roofline"]["encode"]["in_cache"] = False
    assert [row[2] for row in rate_rows(one)] == ["memory (DRAM)", "cache", "cache"]
    assert "memory read rate (DRAM)" in to_html(made)


def test_medians_that_do_not_add_up_are_said(work):
    (one,) = report(work, [measured(TEN)])["configurations"]
    assert "add up to 900 ms, and half of the reports took at most 1,000 ms" in sentences.sums_text(
        one, [("preprocess", 200.0), ("decode", 700.0)]
    )
