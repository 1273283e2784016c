"""Two systems on the same studies: differences, p values, flips, and the gate."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from r2gen_export.errors import R2GenError
from r2gen_export.evaluation.compare import Side, compare, holm, side_of_pairs, side_of_results
from r2gen_export.evaluation.evaluate import Evaluation, evaluate
from r2gen_export.evaluation.gates import difference_bound, parse_margins, refuse_worse
from r2gen_export.evaluation.pairs import Pairs
from r2gen_export.evaluation.protocols import Context
from tests.helpers.own_reports import own_pairs

STUDIES = 60


def pairs(texts: list[str], references: list[str]) -> Pairs:
    ids = tuple(map(str, range(len(texts))))
    tokens = tuple(tuple(len(word) for word in text.split()) for text in texts)
    return Pairs(ids, tuple(texts), tuple(references), None, tokens, 0, 0)


TEXTS, REFERENCES = own_pairs(STUDIES)
FIRST = side_of_pairs(pairs(TEXTS, REFERENCES), Context(), "coco")


def other(changed: dict[int, str]) -> Side:
    texts = [changed.get(at, text) for at, text in enumerate(TEXTS)]
    return side_of_pairs(pairs(texts, REFERENCES), Context(), "coco")


def test_a_system_against_itself() -> None:
    comparison = compare(FIRST, FIRST, parse_margins("bleu4=0,cider=0"), replicates=500)
    assert comparison["identical"] == STUDIES
    assert comparison["divergence"] == {"unit": "token", "reports": 0, "first": None, "median": None}
    assert all(row["difference"] == row["low"] == row["high"] == 0 for row in comparison["metrics"])
    assert all(row["p"] == row["p_holm"] == 1 for row in comparison["metrics"])
    refuse_worse(comparison)


def test_a_worse_system_is_seen_and_refused() -> None:
    worse = other(dict.fromkeys(range(1, STUDIES, 3), "The study is limited."))
    comparison = compare(FIRST, worse, parse_margins("bleu4=0.005,f1=50%"), replicates=1000)
    rows = {row["metric"]: row for row in comparison["metrics"]}
    assert rows["BLEU-4"]["high"] < 0
    assert rows["BLEU-4"]["p_holm"] < 0.05
    assert comparison["identical"] == STUDIES - STUDIES // 3
    assert comparison["divergence"]["reports"] == STUDIES // 3
    assert [gate["passed"] for gate in comparison["gates"]] == [False, True]
    with pytest.raises(R2GenError, match="BLEU-4") as raised:
        refuse_worse(comparison)
    assert (raised.value.code, raised.value.exit_status) == ("R2G-EVAL-WORSE", 3)


def test_the_paired_interval_is_narrow() -> None:
    """Two reports changed: the difference is known far better than either score."""
    comparison = compare(FIRST, other({0: TEXTS[1], 1: TEXTS[0]}), {}, replicates=1000)
    (row,) = (row for row in comparison["metrics"] if row["metric"] == "ROUGE-L")
    results = evaluate(Evaluation(pairs(TEXTS, REFERENCES), with_meteor=False, replicates=1000))
    (own,) = (row for row in results["scores"] if row["metric"] == "ROUGE-L" and row["subset"] == "all")
    assert row["low"] <= row["difference"] <= row["high"]
    assert row["high"] - row["low"] < (own["high"] - own["low"]) / 2


def test_flips_by_finding() -> None:
    clear = dict.fromkeys(range(STUDIES), "No acute disease.")
    first, second = other(clear | {0: "Mild cardiomegaly."}), other(clear | {1: "Possible pneumothorax."})
    flips = {row["finding"]: row for row in compare(first, second, {}, replicates=100)["flips"]}
    assert flips["Cardiomegaly"] == {"finding": "Cardiomegaly", "first": 1, "second": 0, "appeared": 0, "vanished": 1}
    assert flips["Pneumothorax"]["appeared"] == 1


def test_no_flip_among_few_studies_is_no_proof() -> None:
    """1 - 0.05 ** (1 / 60) of the studies may still hold a flip, in one finding of 13."""
    (gate,) = compare(FIRST, FIRST, {"labels": 0.01}, replicates=200)["gates"]
    assert gate["bound"] == pytest.approx((1 - 0.05 ** (1 / 60)) / 13)
    assert gate["passed"]
    assert not compare(FIRST, FIRST, {"labels": 0.001}, replicates=200)["gates"][0]["passed"]


def test_the_bound_is_one_sided() -> None:
    differences = np.linspace(-0.4, 1.6, 101)
    assert difference_bound(differences) == pytest.approx(0.3), "worse by more in 5 % of the resamples"
    assert difference_bound(differences + 1) == 0.0


def test_too_few_studies_pass_no_gate() -> None:
    few = side_of_pairs(pairs(TEXTS[:29], REFERENCES[:29]), Context(), "coco")
    comparison = compare(few, few, {"bleu4": 1.0})
    assert comparison["metrics"][0]["low"] is None
    with pytest.raises(R2GenError, match="fewer than 30"):
        refuse_worse(comparison)


def test_results_give_the_same_side() -> None:
    results = evaluate(Evaluation(pairs(TEXTS, REFERENCES), protocol="coco", with_meteor=False, replicates=100))
    side = side_of_results(results)
    ours, theirs = (compare(FIRST, second, {}, replicates=100) for second in (FIRST, side))
    assert ours["metrics"] == theirs["metrics"]
    assert theirs["divergence"] is None
    with pytest.raises(R2GenError) as raised:
        side_of_results({**results, "studies": [{"bleu": []}]})
    assert raised.value.code == "R2G-EVAL-FORMAT"


def test_sides_of_other_studies_or_protocols_are_refused() -> None:
    with pytest.raises(R2GenError, match="not of the same studies"):
        compare(FIRST, dataclasses.replace(FIRST, studies_sha256="00"), {})
    with pytest.raises(R2GenError, match="protocols coco and raw"):
        compare(FIRST, dataclasses.replace(FIRST, protocol="raw"), {})


def test_holm_by_hand() -> None:
    assert holm([0.04, 0.01, 0.03, 0.5]) == pytest.approx([0.09, 0.04, 0.09, 0.5])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize(
    "text", ["", "bleu4", "bleu4=x", "bleu5=1", "bleu4=-1", "bleu4=1,bleu4=2", "cider=nan", "f1=inf"]
)
def test_margins_that_are_none(text: str) -> None:
    with pytest.raises(R2GenError) as raised:
        parse_margins(text)
    assert raised.value.code == "R2G-CONFIG-VALUE"


def test_margins() -> None:
    assert parse_margins("bleu4=0.005, labels=1%") == {"bleu4": 0.005, "labels": 0.01}


def test_randomisation_agrees_with_the_interval() -> None:
    """Noise of both signs: the interval holds 0, and p is large."""
    noisy = other({at: TEXTS[at] + " Stable." if at % 2 else REFERENCES[at][:40] for at in range(0, 8)})
    rows = {row["metric"]: row for row in compare(FIRST, noisy, {}, replicates=2000)["metrics"]}
    for row in rows.values():
        assert (row["low"] <= 0 <= row["high"]) == (row["p"] > 0.03) or row["p"] == pytest.approx(0.05, abs=0.03)
    assert np.isfinite([row["p"] for row in rows.values()]).all()
