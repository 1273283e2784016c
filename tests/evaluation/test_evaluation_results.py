"""The results of an evaluation: recorded pairs under every protocol, baselines, subsets, and the page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from r2gen_export.bundle import NOTICE, demo_bundle
from r2gen_export.evaluation.baselines import constant_report, random_reports
from r2gen_export.evaluation.evaluate import Evaluation, evaluate
from r2gen_export.evaluation.page import Texts, to_html
from r2gen_export.evaluation.pairs import Pairs
from r2gen_export.evaluation.protocols import Context, TokenizerCutter
from r2gen_export.evaluation.published import published_rows
from r2gen_export.evaluation.tables import to_latex, to_markdown

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens/evaluation.json").read_text(encoding="utf-8"))
SECRET = "DOE-JANE"


def pairs(texts: list[str], references: list[str], **fields: Any) -> Pairs:
    ids = tuple(f"{SECRET}-{at}" for at in range(len(texts)))
    settings = {"patients": None, "token_ids": (None,) * len(texts), "failed": 0, "left_out": 0, **fields}
    return Pairs(ids, tuple(texts), tuple(references), **settings)


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    cutter = TokenizerCutter(Path(demo_bundle()) / "tokenizer.json")
    context = Context("iu_xray", cutter, [*GOLDEN["training"], GOLDEN["references"][3]])
    recorded = pairs(GOLDEN["texts"], GOLDEN["references"])
    return evaluate(Evaluation(recorded, context, all_protocols=True, with_meteor=False, replicates=300))


def value(results: dict[str, Any], metric: str, **where: str) -> float:
    about = {"system": "model", "subset": "all", **where}
    (row,) = (
        row
        for row in results["scores"]
        if row["metric"] == metric and all(row[key] == part for key, part in about.items())
    )
    return row["value"]


@pytest.mark.parametrize("protocol", ["raw", "coco", "r2gengpt"])
def test_recorded_scores(protocol: str, results: dict[str, Any]) -> None:
    expected = GOLDEN["expected"][protocol]
    assert {metric: value(results, metric, protocol=protocol) for metric in expected} == expected


def test_recorded_scores_of_r2gen() -> None:
    context = Context("iu_xray", training=GOLDEN["training"])
    recorded = pairs(GOLDEN["texts"], GOLDEN["references"])
    results = evaluate(Evaluation(recorded, context, protocol="r2gen", with_meteor=False, replicates=100))
    expected = GOLDEN["expected"]["r2gen"]
    assert {metric: value(results, metric, protocol="r2gen") for metric in expected} == expected
    assert results["protocols"]["r2gen"]["references_cut"] == 1


def test_what_stands_beside(results: dict[str, Any]) -> None:
    assert results["protocol"] == "r2gengpt"
    assert results["protocols"]["r2gengpt"]["references_cut"] >= 1
    assert {row["system"] for row in results["scores"]} == {"model", "constant", "random"}
    assert results["reports"]["constant"]["distinct"] == 1
    assert "novel" not in results["studies"][3]["subsets"], "this reference stands in the training split"
    assert 40 < results["data"]["subsets"]["novel"] < 50
    assert 0 < results["data"]["subsets"]["positive"] < 50
    assert value(results, "F1-micro-14-u1", protocol="r2gen-rules") > value(
        results, "F1-micro-14-u1", protocol="r2gen-rules", system="constant"
    )
    assert any("capitals" in warning for warning in results["warnings"])
    assert {"what": "METEOR-1.5", "why": "switched off"} in results["not_computed"]
    assert all(row["low"] <= row["value"] <= row["high"] for row in results["scores"] if row["metric"] == "ROUGE-L")


def test_results_hold_neither_ids_nor_texts(results: dict[str, Any]) -> None:
    for text in (json.dumps(results), to_markdown(results), to_latex(results), to_html(results)):
        assert SECRET not in text
        assert not any(report in text for report in GOLDEN["texts"] + GOLDEN["references"])


def test_the_page_is_whole_and_asks_for_nothing_outside(results: dict[str, Any]) -> None:
    page = to_html(results)
    assert NOTICE in page
    assert not re.search(r"https?://|src=|<script|@import|url\(", page)
    for protocol in results["protocols"]:
        assert protocol in page
    texts = ["<b>effusion & more</b>", *GOLDEN["texts"][1:]]
    shown = to_html(results, Texts(texts, GOLDEN["references"]))
    worst = max(results["studies"], key=lambda study: study["label_disagreements"])
    assert GOLDEN["references"][worst["study"] - 1] in shown
    assert "<b>effusion" not in shown


def test_a_row_as_papers_print_it(results: dict[str, Any]) -> None:
    rows = [line for line in to_latex(results).splitlines() if line.startswith("this system")]
    assert len(rows) == 1
    assert rows[0].count("&") == 10
    assert f"{value(results, 'BLEU-4', protocol='r2gengpt'):.3f}" in rows[0]


def test_published_numbers_say_where_they_were_read() -> None:
    recorded = pairs(GOLDEN["texts"], GOLDEN["references"])
    results = evaluate(Evaluation(recorded, Context("mimic_cxr"), protocol="raw", with_meteor=False, replicates=100))
    rows = results["published"]
    assert {row["model"] for row in rows} >= {"R2GenGPT deep", "R2GenGPT shallow"}
    assert all("not checked against the paper" in row["remark"] for row in rows)
    assert not any("CE-P" in row["metrics"] for row in rows if row["data"] == "MIMIC-CXR"), "from memory: not shown"
    assert "Dual-Anchor" in to_markdown(results)
    assert "Dual-Anchor" in to_html(results)
    assert published_rows("iu_xray") == [], "none was read anywhere"


def test_few_studies_without_training_split() -> None:
    results = evaluate(Evaluation(pairs(["Clear.", ""], ["Clear.", "Clear."], failed=1), with_meteor=False))
    assert results["protocol"] == "coco"
    assert {item["what"] for item in results["not_computed"]} >= {"intervals", "baselines", "novel references"}
    assert results["data"]["empty_reports"] == results["data"]["without_report"] == 1
    assert results["scores"][0]["low"] is None
    assert "no report" in to_markdown(results)


def test_the_constant_report_is_the_best_of_the_training_split() -> None:
    common, rare = (
        "the heart is normal in size . the lungs are clear .",
        "old rib fractures on the left side are seen .",
    )
    training = [common, f"{common} no effusion .", rare, common]
    assert constant_report(training, seed=0) == common
    assert random_reports(training, 5, seed=1) == random_reports(training, 5, seed=1)
    assert len(set(random_reports(training, 60, seed=1))) == 3
