"""Parts of the studies, references that come twice, and several runs of one system."""

from __future__ import annotations

import copy
import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from r2gen_export.errors import R2GenError
from r2gen_export.evaluation.breakdown import image_counts, length_deciles
from r2gen_export.evaluation.evaluate import Evaluation, evaluate
from r2gen_export.evaluation.page import to_html
from r2gen_export.evaluation.pairs import Pairs, pair
from r2gen_export.evaluation.predictions import Prediction, Predictions
from r2gen_export.evaluation.protocols import Context
from r2gen_export.evaluation.references import Reference, ReferenceSet
from r2gen_export.evaluation.seeds import seeds_markdown, summarise
from r2gen_export.evaluation.tables import to_markdown
from tests.helpers.own_reports import own_pairs, own_reports

STUDIES = 70


def scored(texts: list[str], references: list[str]) -> dict[str, Any]:
    count = len(texts)
    ids = tuple(map(str, range(count)))
    images = tuple(1 if at < 30 else 2 for at in range(count))
    pairs = Pairs(ids, tuple(texts), tuple(references), None, (None,) * count, 0, 0, images)
    context = Context(training=[*own_reports(10, 5), references[0]])
    return evaluate(Evaluation(pairs, context, with_meteor=False, replicates=100))


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return scored(*own_pairs(STUDIES))


def test_deciles_hold_every_study_once() -> None:
    references = [" ".join(["word"] * length) for length in (*range(1, 21), 5, 5, 5, 5)]
    parts = length_deciles(references)
    assert np.sum(list(parts.values()), axis=0).tolist() == [1] * 24
    assert len(parts) <= 10
    ends = [[len(references[at].split()) for at in np.flatnonzero(chosen)] for chosen in parts.values()]
    assert all(max(before) < min(after) for before, after in pairwise(ends))
    assert list(length_deciles(["a b"] * 9)) == ["2 words"]
    assert {name: chosen.tolist() for name, chosen in image_counts([1, 3]).items()} == {
        "1 image": [True, False],
        "2 images or more": [False, True],
    }


def test_the_breakdown_has_intervals_from_30_studies_on(results: dict[str, Any]) -> None:
    rows = {(row["part"], row["metric"]): row for row in results["breakdown"]}
    assert rows["1 image", "ROUGE-L"]["studies"] == 30
    assert rows["1 image", "ROUGE-L"]["low"] is not None
    deciles = [row for row in results["breakdown"] if row["by"].startswith("length") and row["metric"] == "ROUGE-L"]
    assert sum(row["studies"] for row in deciles) == STUDIES
    assert all((row["low"] is None) == (row["studies"] < 30) for row in results["breakdown"])
    mean = sum(row["value"] * row["studies"] for row in deciles) / STUDIES
    assert mean == pytest.approx(statistics.fmean(study["rouge_l"] for study in results["studies"]))
    for text in (to_markdown(results), to_html(results)):
        assert "2 images or more" in text
        assert "fewer than 30 units" in text


def test_lengths_and_novelty_are_shares_on_the_page(results: dict[str, Any]) -> None:
    for facts in results["reports"].values():
        assert sum(facts["lengths"].values()) == pytest.approx(1)
    assert results["reports"]["references"]["novel"] < 1, "one reference stands in the training split"
    assert results["reports"]["constant"]["novel"] == results["reports"]["random"]["novel"] == 0
    page = to_html(results)
    assert page.count("share of the studies</b>") == 2
    assert "Share that does not stand verbatim" in page


def test_references_that_come_twice_are_said() -> None:
    references = ReferenceSet(tuple(Reference(f"test[{at}]", str(at), f"the heart {at}") for at in range(3)))
    entries = tuple(
        Prediction(f"line {at}", str(at), "the heart", reference)
        for at, reference in enumerate(("the  heart 0", "another", None))
    )
    pairs = pair(Predictions(entries, "records", {}), references)
    assert pairs.other_references == (2, 1)
    (warning,) = evaluate(Evaluation(pairs, with_meteor=False))["warnings"]
    assert "for 2 studies, 1 of them in other words" in warning
    assert pair(Predictions(entries[:2], "records", {}), None).other_references == (0, 0)


def test_mean_and_deviation_over_seeds(results: dict[str, Any]) -> None:
    texts, references = own_pairs(STUDIES)
    runs = [results, scored([texts[1], *texts[1:]], references), scored([*texts[:-1], texts[0]], references)]
    summary = summarise(runs)
    values = [
        next(row["value"] for row in run["scores"] if (row["system"], row["metric"]) == ("model", "BLEU-4"))
        for run in runs
    ]
    (row,) = (row for row in summary["metrics"] if row["metric"] == "BLEU-4")
    assert row["values"] == values
    assert (row["mean"], row["deviation"]) == (statistics.fmean(values), statistics.stdev(values))
    assert {row["metric"] for row in summary["metrics"]} >= {"CIDEr", "F1-macro-14-u1"}
    assert f"{row['mean']:.4f} ± {row['deviation']:.4f}" in seeds_markdown(summary)
    json.dumps(summary, allow_nan=False)


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "the same run": (lambda run: run, "R2G-CONFIG-VALUE"),
    "another protocol": (lambda run: run | {"protocol": "raw"}, "R2G-CONFIG-VALUE"),
    "other studies": (lambda run: run | {"data": run["data"] | {"studies_sha256": "0"}}, "R2G-EVAL-STUDIES"),
    "no studies": (lambda run: {key: value for key, value in run.items() if key != "studies"}, "R2G-EVAL-FORMAT"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_runs_that_do_not_belong_together(case: str, results: dict[str, Any]) -> None:
    change, code = BROKEN[case]
    with pytest.raises(R2GenError) as raised:
        summarise([results, change(copy.deepcopy(results))])
    assert raised.value.code == code
    with pytest.raises(R2GenError, match="two runs"):
        summarise([results])


def test_pairs_without_images_have_no_such_part() -> None:
    texts, references = own_pairs(5)
    pairs = Pairs(tuple("abcde"), tuple(texts), tuple(references), None, (None,) * 5, 0, 0)
    assert {row["by"] for row in evaluate(Evaluation(pairs, with_meteor=False))["breakdown"]} == {
        "length of the reference"
    }
    assert replace(pairs, images=(1,) * 5).sha256() == pairs.sha256()
