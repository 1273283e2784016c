"""Scores of findings, counted by hand, under both conventions."""

from __future__ import annotations

import numpy as np
import pytest

from r2gen_export.evaluation.label_scores import (
    LabelSet,
    disagreements,
    label_statistics,
    label_texts,
    labels_of_letters,
    per_label,
)

FINDINGS = ("No Finding", "Cardiomegaly", "Edema", "Fracture")
REFERENCES = labels_of_letters(["bpub", "bpnb", "pbbb", "bbbp"], FINDINGS)
REPORTS = labels_of_letters(["bppb", "bnbb", "pbbb", "bbub"], FINDINGS)


def values() -> dict[str, float]:
    return {statistic.name: statistic.point for statistic in label_statistics(REPORTS, REFERENCES)}


def test_micro_and_macro_by_hand() -> None:
    scores = values()
    # u1: No Finding 1 of 1 and 1; Cardiomegaly 1 said, 2 there, 1 right; Edema 2 said, 1 there, 1 right; Fracture 0, 1.
    assert scores["P-micro-4-u1"] == pytest.approx(3 / 4)
    assert scores["R-micro-4-u1"] == pytest.approx(3 / 5)
    assert scores["F1-micro-4-u1"] == pytest.approx(6 / 9)
    assert scores["F1-macro-4-u1"] == pytest.approx((1 + 2 / 3 + 2 / 3 + 0) / 4)
    # u0: the uncertain Edema of the first reference and of the last report do not count.
    assert scores["P-micro-4-u0"] == pytest.approx(2 / 3)
    assert scores["R-micro-4-u0"] == pytest.approx(2 / 4)
    assert scores["F1-micro-2-u1"] == pytest.approx(2 * 2 / (3 + 3)), "Cardiomegaly and Edema are of the five"


def test_example_based_by_hand() -> None:
    scores = values()
    assert scores["F1-example-4-u1"] == pytest.approx((1 + 0 + 1 + 0) / 4)
    both_empty = labels_of_letters(["bbbb"], FINDINGS)
    points = {statistic.name: statistic.point for statistic in label_statistics(both_empty, both_empty)}
    assert points["F1-example-4-u1"] == 1.0
    assert points["F1-micro-4-u1"] == 0.0


def test_resampled_sums_give_the_points() -> None:
    for statistic in label_statistics(REPORTS, REFERENCES):
        sums = statistic.columns.sum(axis=0)
        assert float(statistic.value(sums)) == pytest.approx(statistic.point)
        several = np.stack([sums, statistic.columns[0]])
        assert statistic.value(several).shape == (2,)


def test_each_finding() -> None:
    rows = {row["finding"]: row for row in per_label(REPORTS, REFERENCES)}
    assert rows["Edema"] | {"f1": None} == {
        "finding": "Edema", "convention": "u1", "support": 1, "said": 2, "precision": 0.5, "recall": 1.0, "f1": None,
    }  # fmt: skip
    assert rows["Fracture"]["precision"] is None
    assert rows["Fracture"]["recall"] == 0.0
    assert disagreements(REPORTS, REFERENCES).tolist() == [0, 1, 0, 2]


def test_texts_are_labelled_once_each() -> None:
    labels = label_texts(["No pleural effusion.", "Mild cardiomegaly.", "No pleural effusion."])
    assert labels.letters()[0] == labels.letters()[2]
    assert labels.abnormal().tolist() == [False, True, False]
    again = labels_of_letters(labels.letters(), labels.findings)
    assert np.array_equal(again.values, labels.values)
    assert isinstance(again, LabelSet)
