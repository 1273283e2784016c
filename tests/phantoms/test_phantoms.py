"""Phantoms: every finding is drawn, written and read back; a study depends on its seed and number only."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from r2gen_export.errors import R2GenError
from r2gen_export.phantoms import (
    KINDS,
    LABELS,
    Finding,
    draw_study,
    grammar,
    keywords,
    labels,
    micro_f1,
    read_findings,
    reader,
    sample_findings,
    write_phantoms,
    write_report,
)
from r2gen_export.phantoms.frontal_findings import PAINTS, SHAPES


def one(name: str, side: str | None = None) -> Finding:
    kind = KINDS[name]
    severity = kind.severities[2] if kind.severities else None
    return Finding(name, side, severity, kind.zones[1] if kind.zones else None)  # type: ignore[arg-type]


def test_every_kind_has_its_drawing_sentences_and_terms() -> None:
    assert len(KINDS) >= 8
    assert set(KINDS) == set(grammar.SENTENCES) == set(reader.TERMS) == SHAPES.keys() | PAINTS.keys()
    assert set(grammar.ORDER) == set(KINDS)
    assert set(grammar.DENIALS) <= set(KINDS)
    assert {name for name, kind in KINDS.items() if kind.bilateral} == set(grammar.BOTH_SIDES)


@pytest.mark.parametrize("name", KINDS)
def test_every_sentence_of_a_finding_reads_back_as_that_finding(name: str) -> None:
    rng = np.random.default_rng(0)
    for side in ("left", "right") if KINDS[name].sided else (None,):
        texts = {write_report([one(name, side)], rng) for _ in range(200)}
        assert {read_findings(text) for text in texts} == {frozenset({(name, side)})}
        assert {read_findings(text.lower()) for text in texts} == {frozenset({(name, side)})}


def test_sampled_reports_read_back_and_are_no_lookup() -> None:
    rng = np.random.default_rng(5)
    drawn = [sample_findings(rng) for _ in range(5_000)]
    texts = [write_report(findings, rng) for findings in drawn]
    assert all(read_findings(text) == labels(findings) for findings, text in zip(drawn, texts, strict=True))
    assert len(set(texts)) > 4_500
    seen = set().union(*map(labels, drawn))
    assert seen == set(LABELS)
    assert any(not findings for findings in drawn)
    assert any(len(findings) > 2 for findings in drawn)
    assert not re.search(r"[{}]|  |None", "".join(texts))


def test_denials_affirm_nothing() -> None:
    sentences = [*grammar.JOINT_DENIALS, *grammar.CLEAR_LUNGS, *grammar.BONES, *grammar.OPENINGS]
    for sentence in [*sentences, *(text for texts in grammar.DENIALS.values() for text in texts)]:
        assert read_findings(sentence) == frozenset()


def test_reader_keeps_sentences_and_sides_apart() -> None:
    text = "No pneumothorax. There is a small left nodule. The right base shows atelectasis; no edema. An effusion."
    assert read_findings(text) == {("nodule", "left"), ("atelectasis", "right")}
    assert read_findings("Left pectoral pacemaker with leads in the right heart.") == {("pacemaker", "left")}


def test_keywords_name_severity_side_and_zone() -> None:
    assert keywords([one("nodule", "left"), one("pacemaker", "right"), one("cardiomegaly")]) == [
        "large left nodule mid zone",
        "right pacemaker",
        "severe cardiomegaly",
    ]


def test_micro_f1_counts_labels_over_studies() -> None:
    a, b, c = LABELS[0], LABELS[1], LABELS[2]
    score = micro_f1(
        [(frozenset({a, b}), frozenset({a, c})), (frozenset(), frozenset()), (frozenset({b}), frozenset())]
    )
    assert (score.hits, score.missed, score.extra) == (1, 2, 1)
    assert score.f1 == pytest.approx(2 / 5)
    assert micro_f1([]).f1 == 0


@pytest.mark.parametrize("name", KINDS)
def test_a_finding_changes_the_picture_on_its_side(name: str) -> None:
    """Averaged over patients, so that pose and noise cancel and the finding is left."""

    def mean_picture(findings: list[Finding]) -> np.ndarray:
        return np.mean([draw_study(findings, np.random.default_rng([9, seed]), 96)[0] for seed in range(24)], axis=0)

    plain = mean_picture([])
    for side in ("left", "right") if KINDS[name].sided else (None,):
        change = np.abs(mean_picture([one(name, side)]) - plain)
        assert change.max() > 15
        if side:
            column = np.argmax(change.mean(0))
            assert (column > 48) == (side == "left")


def test_pictures_are_grey_and_vary_with_the_seed() -> None:
    first, second = (draw_study([], np.random.default_rng(seed), 96, views=2) for seed in (1, 2))
    assert [picture.shape for picture in first] == [(96, 96), (96, 96)]
    assert {picture.dtype for picture in first} == {np.dtype(np.uint8)}
    assert np.ptp(first[0]) > 120
    assert not np.array_equal(first[0], second[0])


def test_folder_is_in_the_r2gen_form_and_reproducible(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "a", 40, 3, size=64, workers=2, progress=False)
    write_phantoms(tmp_path / "b", 20, 3, size=64, workers=1, val_fraction=0, test_fraction=0, progress=False)
    annotation = json.loads((tmp_path / "a/annotation.json").read_text())
    found = json.loads((tmp_path / "a/labels.json").read_text())
    assert {split: len(entries) for split, entries in annotation.items()} == {"train": 32, "val": 4, "test": 4}
    entries = [entry for split in annotation.values() for entry in split]
    assert {len(entry["image_path"]) for entry in entries} == {1, 2}
    for entry in entries:
        assert read_findings(entry["report"]) == labels(Finding(**finding) for finding in found[entry["id"]])
        for path in entry["image_path"]:
            with Image.open(tmp_path / "a/images" / path) as picture:
                assert (picture.size, picture.mode) == ((64, 64), "L")
    # A study depends on its number, not on how many there are or who draws it.
    for entry in json.loads((tmp_path / "b/annotation.json").read_text())["train"]:
        assert entry in entries
        for path in entry["image_path"]:
            assert (tmp_path / "a/images" / path).read_bytes() == (tmp_path / "b/images" / path).read_bytes()


def test_bad_requests_are_coded_and_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(R2GenError, match="R2G-CONFIG-VALUE"):
        write_phantoms(tmp_path / "a", 10, val_fraction=0.7, test_fraction=0.7, progress=False)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("keep")
    with pytest.raises(R2GenError, match="R2G-OUTPUT-EXISTS"):
        write_phantoms(tmp_path / "full", 2, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]
