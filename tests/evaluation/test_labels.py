"""Labels by rules: own sentences, explanations, and the command."""

import json
from pathlib import Path

import pytest

from r2gen_export.evaluation.labels import COMMON, FINDINGS, label_report, mentions
from r2gen_export.evaluation.labels.sentences import respelled, sentences
from tests.command import run_here

NAMES = {
    "CM": "Cardiomegaly",
    "EC": "Enlarged Cardiomediastinum",
    "LL": "Lung Lesion",
    "LO": "Lung Opacity",
    "ED": "Edema",
    "CO": "Consolidation",
    "PN": "Pneumonia",
    "AT": "Atelectasis",
    "PT": "Pneumothorax",
    "PE": "Pleural Effusion",
    "PO": "Pleural Other",
    "FR": "Fracture",
    "SD": "Support Devices",
}
VALUES = {"+": "positive", "?": "uncertain", "-": "negative"}


def read_sentences(name):
    for line in Path(__file__).with_name(name).read_text().splitlines():
        if line and not line.startswith("#"):
            sentence, _, listed = line.rpartition(" |")
            pairs = (pair.split("=") for pair in listed.replace(" ", "").split(",") if pair)
            yield sentence, {NAMES[name]: VALUES[value] for name, value in pairs}


def said(report):
    return {name: value for name, value in label_report(report).items() if value != "blank" and name != "No Finding"}


@pytest.mark.parametrize(("name", "least"), [("label_sentences.txt", 300), ("label_sentences_review.txt", 150)])
def test_own_sentences(name, least):
    pairs = list(read_sentences(name))
    wrong = [(sentence, expected, said(sentence)) for sentence, expected in pairs if said(sentence) != expected]
    assert len(pairs) >= least
    assert len(wrong) <= 0.02 * len(pairs), wrong


def test_a_report_is_the_sum_of_its_sentences():
    report = "The heart is enlarged. No pneumothorax.\nSmall effusion. Possible pneumonia. No effusion on the left."
    labels = label_report(report)
    assert tuple(labels) == FINDINGS and set(COMMON) < set(FINDINGS)
    assert labels["Cardiomegaly"] == "positive" and labels["Pneumothorax"] == "negative"
    assert labels["Pleural Effusion"] == "positive" and labels["Pneumonia"] == "uncertain"
    assert labels["Fracture"] == "blank" and labels["No Finding"] == "blank"


@pytest.mark.parametrize("report", ["", "The lungs are clear.", "No effusion. Pacemaker in place.", "Scoliosis."])
def test_no_finding(report):
    assert label_report(report)["No Finding"] == "positive"


def test_side_and_severity():
    places = {
        (place.finding, place.side, place.severity)
        for place in mentions(
            "Small left and large right pleural effusions. Borderline cardiomegaly. Bibasilar atelectasis."
        )
    }
    assert ("Cardiomegaly", "", "borderline") in places and ("Atelectasis", "both", "") in places
    assert ("Pleural Effusion", "right", "severe") in places


def test_explanation_names_what_denies():
    (place,) = mentions("There is no evidence of pneumothorax.")
    assert (place.value, place.trigger, place.words) == ("negative", "no", "pneumothorax")


def test_sentences():
    text = "INDICATION: Fever, rule out pneumonia.\nFINDINGS: Heart size\nis normal. 1.5 cm nodule. 2. No effusion.\n"
    assert sentences(text) == ["heart size is normal", "1.5 cm nodule", "no effusion"]


def test_spelling_is_mended_only_where_it_is_clear():
    assert respelled("atelectesis") == "atelectasis" and respelled("effussions") == "effusions"
    assert respelled("transfusion") == "transfusion" and respelled("profusion") == "profusion"


def test_command(tmp_path):
    lines = [{"id": "a", "report": "Small left effusion."}, {"id": 7, "report": "No effusion."}]
    file = tmp_path / "reports.jsonl"
    file.write_text("\ufeff" + "\r\n".join(map(json.dumps, lines)) + "\r\n", encoding="utf-8")
    done = run_here("label", str(file), "--explain")
    assert done.returncode == 0, done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    assert first["id"] == "a" and first["labels"]["Pleural Effusion"] == "positive"
    assert first["mentions"][0]["side"] == "left" and first["mentions"][0]["sentence"] == "small left effusion"
    assert second["id"] == 7 and second["labels"]["Pleural Effusion"] == "negative"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("{", "R2G-EVAL-FORMAT"),
        ("[" * 100_000, "R2G-EVAL-FORMAT"),
        ('{"id": "DOE", "text": "x"}', "R2G-EVAL-FORMAT"),
        ('{"id": "DOE", "report": null}', "R2G-EVAL-FORMAT"),
        ('{"id": "DOE", "report": "x", "report": "y"}', "R2G-EVAL-FORMAT"),
        ('{"id": "DOE", "report": "x"}\n' * 2, "R2G-EVAL-STUDIES"),
    ],
)
def test_what_cannot_be_read_is_refused_without_ids(tmp_path, content, code):
    file = tmp_path / "DOE.jsonl"
    file.write_text(content)
    done = run_here("label", str(file))
    assert done.returncode == 2 and code in done.stderr and "DOE" not in done.stderr


def test_bytes_that_are_no_text(tmp_path):
    file = tmp_path / "reports.jsonl"
    file.write_bytes(b'{"id": 1, "report": "\xff"}')
    done = run_here("label", str(file))
    assert done.returncode == 2 and "R2G-EVAL-FORMAT" in done.stderr
    assert run_here("label", str(tmp_path / "none")).returncode == 2
