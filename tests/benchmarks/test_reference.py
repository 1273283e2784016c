"""PyTorch beside the bundle: same words, said in the same report; and when words differ, where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.latency.sentences import reference_lines
from tests.command import run_here
from tests.conftest import TinySources


@pytest.fixture(scope="module")
def report(tiny_sources: TinySources, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("reference") / "out"
    sources = ("--checkpoint", tiny_sources.checkpoint, "--vision", tiny_sources.vision, "--llm", tiny_sources.llm)
    done = run_here("bench", tiny_bundle, "--devices", "cpu", "--presets", "fast,paper", "--runs", 2, "--processes", 1,
                   "--min-new-tokens", 8, "--max-new-tokens", 8, "--out", out,
                   "--reference", "torch", *sources)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "same words" in done.stdout
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "PyTorch beside it" in page
    return json.loads((out / "report.json").read_text(encoding="utf-8"))


def test_the_same_weights_write_the_same_words(report):
    rows = report["reference"]["rows"]
    assert [row["ours"] for row in rows] == ["cpu, fast", "cpu, paper"]
    assert [row["reference"] for row in rows] == ["torch, cpu, fast", "torch, cpu, paper"]
    for row in rows:
        assert row["same"] == row["studies"] == 4
        assert row["first_divergence"] is None
        assert row["engine"].startswith("PyTorch 2")
        assert all(value > 0 for value in row["times"].values())


def test_pytorch_is_timed_by_stage(report):
    theirs = next(one for one in report["configurations"] if one["name"] == "torch, cpu, fast")
    ours = next(one for one in report["configurations"] if one["name"] == "cpu, fast")
    assert theirs["metrics"]["tokens"]["p50"] == ours["metrics"]["tokens"]["p50"]
    assert theirs["metrics"]["itl"]["n"] == ours["metrics"]["itl"]["n"] == 2 * 7
    for name in ("preprocess", "encode", "prefill", "decode"):
        assert theirs["metrics"][name]["min"] > 0
    total = theirs["samples"]["total"][0][0]
    assert sum(theirs["samples"][name][0][0] for name in ("ttft", "decode", "detokenize")) <= total * 1.001
    assert "reason" in theirs["roofline"]


def test_the_verdict_says_where_words_part(report):
    changed = json.loads(json.dumps(report))
    changed["reference"]["rows"][0] |= {"same": 1, "first_divergence": 5}
    changed["reference"]["precision"]["decoder"] = "int4"
    text = " ".join(text for text, _ in reference_lines(changed))
    assert "same words in only 1 of 4 studies" in text
    assert "the bundle has them in int4" in text
    lines = reference_lines(report)
    assert all("same words in 4 of 4 studies" in text for text, _ in lines)
    assert not any(quotable for _, quotable in lines), "two reports of eight tokens"
    assert all("Not a figure to quote: only 2 reports of each were timed, reports of 8" in text for text, _ in lines)
