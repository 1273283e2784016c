"""BLEU, ROUGE-L and CIDEr against pycocoevalcap 1.2 to the last digit; METEOR against its wrapper of the same jar."""

from __future__ import annotations

import contextlib
import io
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2gen_export.evaluation.metrics.bleu import bleu, bleu_counts, bleu_of_sums
from r2gen_export.evaluation.metrics.cider import ReferenceFrequencies, cider_scores
from r2gen_export.evaluation.metrics.meteor import meteor
from r2gen_export.evaluation.metrics.rouge import common_subsequence, rouge_l, rouge_l_scores
from tests.helpers.own_reports import own_pairs

pytest.importorskip("pycocoevalcap")

ODD = (
    ("", "the heart is normal ."),
    ("the heart is normal .", "heart"),
    ("one", "the lungs are clear ."),
    ("no  effusion  ", " no effusion"),
    ("a\tb\nc d", "a b c d"),
    ("the the the the the", "the the"),
    ("a b c d e f", "a b c d e f"),
    ("(xxxx) 1.5 cm — naïve", "(xxxx) 1.5 cm - naive"),
)
"""Pairs at the edges: empty, shorter than an n-gram, double blanks, line breaks, repeated words, no ASCII."""


def scored_by_pycocoevalcap(texts: list[str], references: list[str]) -> dict[str, tuple[object, list[float]]]:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    expected = {number: [text] for number, text in enumerate(references)}
    given = {number: [text] for number, text in enumerate(texts)}
    with contextlib.redirect_stdout(io.StringIO()):
        scorers = {"bleu": Bleu(4), "rouge": Rouge(), "cider": Cider()}
        return {name: scorer.compute_score(expected, given) for name, scorer in scorers.items()}


@pytest.mark.parametrize("odd", [False, True], ids=["reports", "with pairs at the edges"])
def test_equal_to_pycocoevalcap_to_the_last_digit(odd: bool) -> None:
    texts, references = own_pairs(90)
    if odd:
        texts, references = texts + [text for text, _ in ODD], references + [reference for _, reference in ODD]
    theirs = scored_by_pycocoevalcap(texts, references)
    counts = bleu_counts(texts, references)
    assert list(bleu(counts.sum(axis=0).tolist())) == theirs["bleu"][0]
    studies = np.array([bleu(row) for row in counts.tolist()])
    assert studies.T.tolist() == theirs["bleu"][1]
    rouge = rouge_l_scores(texts, references)
    assert float(np.mean(rouge)) == theirs["rouge"][0]
    assert rouge.tolist() == list(theirs["rouge"][1])
    cider = cider_scores(texts, references)
    assert float(np.mean(cider)) == theirs["cider"][0]
    assert cider.tolist() == list(theirs["cider"][1])
    assert 0.05 < theirs["bleu"][0][3] < 0.6, "the pairs are neither equal nor without a common word"


def test_a_single_study() -> None:
    texts, references = ["the heart is normal ."], ["the heart is large ."]
    theirs = scored_by_pycocoevalcap(texts, references)
    assert cider_scores(texts, references).tolist() == list(theirs["cider"][1]) == [0.0]
    assert list(bleu(bleu_counts(texts, references).sum(axis=0).tolist())) == theirs["bleu"][0]


def test_two_systems_share_the_frequencies_of_the_references() -> None:
    texts, references = own_pairs(12)
    frequencies = ReferenceFrequencies(references)
    frequencies.scores(references)
    assert frequencies.scores(texts).tolist() == cider_scores(texts, references).tolist()


def test_bleu_of_many_sums_is_bleu() -> None:
    texts, references = own_pairs(40)
    counts = bleu_counts([*texts, "a b"], [*references, "a b c d"]).astype(np.float64)
    sums = np.stack([counts.sum(axis=0), counts[-1], counts[:5].sum(axis=0)])
    expected = [bleu(row) for row in sums.tolist()]
    np.testing.assert_allclose(bleu_of_sums(sums), expected, rtol=1e-12)


WORDS = st.lists(st.sampled_from("abc"), max_size=80)


@given(WORDS, WORDS)
def test_the_longest_common_subsequence(first: list[str], second: list[str]) -> None:
    row = [0] * (len(second) + 1)
    for word in first:
        above = row
        row = [0]
        for column, other in enumerate(second, start=1):
            row.append(above[column - 1] + 1 if word == other else max(above[column], row[-1]))
    assert common_subsequence(first, second) == row[-1]


def test_rouge_for_choosing_a_checkpoint_ignores_double_blanks() -> None:
    assert rouge_l(["the  heart is\nnormal"], ["the heart is normal"]) == pytest.approx(1.0)
    assert rouge_l(["the heart", ""], ["the heart", "clear"]) == 0.5


@pytest.mark.slow  # the jar loads its tables for 5 s
@pytest.mark.skipif(shutil.which("java") is None, reason="METEOR 1.5 is a jar")
def test_meteor_is_the_jars() -> None:
    from pycocoevalcap.meteor.meteor import Meteor

    texts, references = own_pairs(6)
    ours = meteor([*texts, "no\neffusion ||| is seen"], [*references, "no effusion is  seen"])
    references.append("no effusion is seen")
    theirs = Meteor()
    expected, scores = theirs.compute_score(
        {number: [text] for number, text in enumerate(references)},
        {number: [text] for number, text in enumerate([*texts, "no effusion  is seen"])},
    )
    assert ours.corpus == expected
    assert ours.studies.tolist() == scores
