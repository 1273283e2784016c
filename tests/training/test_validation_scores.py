"""Validation by generated text: the published score, per-epoch metrics in the logs, and the curves as a picture."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from r2gen_export.training.checkpoint import train_facts
from r2gen_export.training.curves import draw_curves, read_curves
from r2gen_export.training.fit import TrainSettings, train
from r2gen_export.training.hub import load_tokenizer
from r2gen_export.training.validation_scores import NAMES, bleu4_cider, report_scores
from tests.helpers.own_reports import own_pairs
from tests.training.conftest import make_models, settings_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_models(tmp_path_factory.mktemp("models"), train=6, val=4)


@pytest.fixture
def settings(models: Path, tmp_path: Path) -> TrainSettings:
    return replace(settings_of(models, tmp_path / "run"), learning_rate=3e-2)


def logged(out: Path) -> dict[str, list[float]]:
    with (out / "logs/csv/version_0/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}


def test_the_published_score_is_that_of_coco_caption() -> None:
    texts, references = own_pairs(40)
    hypotheses = {at: [text] for at, text in enumerate(texts)}
    expected = {at: [text] for at, text in enumerate(references)}
    bleu, _ = Bleu(4).compute_score(expected, hypotheses, verbose=0)
    cider, _ = Cider().compute_score(expected, hypotheses)
    assert bleu4_cider(texts, references) == pytest.approx(0.5 * bleu[3] + 0.5 * cider, abs=1e-12)
    scores = report_scores(texts, references)
    assert (scores["val_bleu4"], scores["val_cider"]) == (pytest.approx(bleu[3]), pytest.approx(cider))
    assert report_scores(references, references)["val_label_f1"] == 1.0 > scores["val_label_f1"]


def test_an_epochs_scores_are_logged_said_and_drawn(
    settings: TrainSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    train(replace(settings, select="bleu4+cider"))
    values = logged(settings.out)
    assert all(len(values[name]) == 2 for name in (*NAMES, "val_score"))
    expected = [0.5 * b + 0.5 * c for b, c in zip(values["val_bleu4"], values["val_cider"], strict=True)]
    assert values["val_score"] == pytest.approx(expected, abs=1e-6)
    facts = train_facts(settings.out / "best")
    assert facts["score"] == pytest.approx(max(values["val_score"]), abs=1e-6)
    said = capsys.readouterr().err
    line = r"^epoch 2 of 2 done: validation loss [\d.]+ nats per token, BLEU-1 .*CIDEr ([\d.]+), F1-micro-14-u1 [\d.]+"
    match = re.search(line, said, re.MULTILINE)
    assert match is not None
    assert float(match[1]) == pytest.approx(values["val_cider"][1], abs=1e-4)
    assert "chosen by 0.5 BLEU-4 + 0.5 CIDEr" in said
    events = EventAccumulator(str(settings.out / "logs/tensorboard")).Reload()
    assert [event.value for event in events.Scalars("val_label_f1")] == pytest.approx(values["val_label_f1"])
    picture = ElementTree.fromstring((settings.out / "curves.svg").read_text(encoding="utf-8"))
    shown = " ".join(element.text or "" for element in picture.iter("{http://www.w3.org/2000/svg}text"))
    assert all(f"{name} {values[name][-1]:.3g}" in shown for name in ("val_loss", *NAMES, "val_score"))


def test_metrics_leave_the_choice_to_the_loss(settings: TrainSettings, capsys: pytest.CaptureFixture[str]) -> None:
    train(replace(settings, metrics=True, generate_every=2))
    values = logged(settings.out)
    assert len(values["val_cider"]) == 1, "of the second epoch"
    assert "val_score" not in values
    best = min(values["val_loss"])
    assert train_facts(settings.out / "best")["score"] == pytest.approx(-best, abs=1e-6)
    assert "chosen by" not in capsys.readouterr().err


def test_references_are_what_the_cut_leaves(settings: TrainSettings) -> None:
    seen: list[str] = []

    def score(texts: Sequence[str], references: Sequence[str]) -> float:
        seen.extend(references)
        return 0.0

    train(replace(settings, max_epochs=1, max_length=5, score_fn=score, progress=False))
    tokenizer = load_tokenizer(settings.llm)
    lengths = [len(tokenizer(text, add_special_tokens=False).input_ids) for text in seen]
    assert len(seen) == 4
    assert max(lengths) == 5
    assert not any("<unk>" in text or "</s>" in text for text in seen)


def test_curves_of_a_run_that_was_taken_up_again(tmp_path: Path) -> None:
    """The second start began behind step 1: what the first had logged of steps 2 and 3 did not count."""
    starts = ("step,loss,val_loss\n0,3.0,\n1,2.5,\n2,9.0,\n3,9.0,8.0\n", "step,loss,val_loss\n2,2.0,\n3,nan,1.5\n")
    for number, text in enumerate(starts):
        (tmp_path / f"version_{number}").mkdir()
        (tmp_path / f"version_{number}/metrics.csv").write_text(text)
    curves = read_curves(tmp_path)
    assert curves == {"loss": [(0, 3.0), (1, 2.5), (2, 2.0)], "val_loss": [(3, 1.5)]}
    ElementTree.fromstring(draw_curves(curves))
    ElementTree.fromstring(draw_curves({}))
    many = draw_curves({"loss": [(at, float(at % 7)) for at in range(5000)]})
    assert len(re.findall(r"\d+\.\d,\d+\.\d", many)) <= 601
