"""References of annotations and of MIMIC-CXR's files, and pairing: what is not of the same studies is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from r2gen_export.errors import R2GenError
from r2gen_export.evaluation.pairs import pair
from r2gen_export.evaluation.predictions import Prediction, Predictions
from r2gen_export.evaluation.references import read_annotation, read_reference_files, section_of

SECRET = "DOE-JANE"
REPORT = """                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 FINDINGS:

 The lungs are
 clear.  No effusion.

 IMPRESSION:

 No acute process.
"""


def annotation(folder: Path, **splits: object) -> Path:
    path = folder / "annotation.json"
    path.write_text(json.dumps(splits), encoding="utf-8-sig")
    return path


def study(identity: str, report: object = "Clear.", **fields: object) -> dict[str, object]:
    return {"id": identity, "report": report, "image_path": [f"{identity}.png"], **fields}


def predictions(*ids: str, **fields: object) -> Predictions:
    entries = [Prediction(f"line {n} of the predictions", name, "Clear.", **fields) for n, name in enumerate(ids, 1)]
    return Predictions(tuple(entries), "records", {})


def refused(code: str, match: str = "") -> object:
    return pytest.raises(R2GenError, match=match, check=lambda error: error.code == code and SECRET not in str(error))


def test_an_annotation_with_its_variants(tmp_path: Path) -> None:
    test = [
        study("CXR1_IM-1", ["Clear."]),
        {"study_id": 7, "findings": "Small effusion.", "impression": None},
        study("c", float("nan")),
        study("d", "", subject_id=12),
    ]
    read = read_annotation(annotation(tmp_path, train=[study("t", "Old.")], test=test), "test")
    assert [(part.id, part.text, part.patient) for part in read.studies] == [
        ("CXR1_IM-1", "Clear.", "CXR1"),
        ("7", "Small effusion.", None),
    ]
    assert read.training == ("Old.",)
    assert (read.left_out, read.elsewhere) == (2, {"t": "train"})


def test_sections() -> None:
    assert section_of(REPORT, "findings") == "The lungs are clear. No effusion."
    assert section_of(REPORT, "impression") == "No acute process."
    assert section_of("The lungs are clear.", "findings") == ""
    assert section_of("FINDINGS AND IMPRESSION: Clear.", "impression") == "Clear."


def test_a_section_of_an_annotation(tmp_path: Path) -> None:
    path = annotation(tmp_path, test=[study("a", REPORT), study("b", findings="Own field."), study("c", "No heading.")])
    read = read_annotation(path, "test", "findings")
    assert [part.text for part in read.studies] == ["The lungs are clear. No effusion.", "Own field."]
    assert read.left_out == 1
    with refused("R2G-DATA-EMPTY", "impression"):
        read_annotation(annotation(tmp_path, test=[study("a")]), "test", "impression")


def test_mimics_own_files(tmp_path: Path) -> None:
    for patient, name in (("p10", "s501"), ("p10", "s502"), ("p11", "s503")):
        folder = tmp_path / "files" / patient
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.txt").write_bytes(REPORT.replace("\n", "\r\n").encode())
    read = read_reference_files(tmp_path, "impression")
    assert [(part.id, part.text, part.patient) for part in read.studies] == [
        (name, "No acute process.", patient) for name, patient in (("501", "p10"), ("502", "p10"), ("503", "p11"))
    ]
    pairs = pair(predictions("s503", "s502", "s501"), read)
    assert pairs.ids == ("501", "502", "503")
    assert pairs.patients == ("p10", "p10", "p11")


@pytest.mark.parametrize(
    ("entry", "match"),
    [(study(SECRET, 3), "int"), ({"id": SECRET}, "neither report"), ("x", "no object"), ({"report": "x"}, "no id")],
)
def test_an_entry_of_another_form(entry: object, match: str, tmp_path: Path) -> None:
    with refused("R2G-EVAL-FORMAT", match) as raised:
        read_annotation(annotation(tmp_path, test=[study("a"), entry]), "test")
    assert "test[1]" in str(raised.value)


def test_an_id_that_would_overwrite_another(tmp_path: Path) -> None:
    with refused("R2G-EVAL-STUDIES", r"test\[1\].*test\[0\]"):
        read_annotation(annotation(tmp_path, test=[study(SECRET), study(SECRET)]), "test")


def test_missing_extra_and_repeated_predictions(tmp_path: Path) -> None:
    references = read_annotation(annotation(tmp_path, train=[study("t")], test=[study("a"), study(SECRET)]), "test")
    with refused("R2G-EVAL-STUDIES", r"1 of 2 references have no prediction \(first: test\[1\]"):
        pair(predictions("a"), references)
    with refused("R2G-EVAL-STUDIES", "1 of split train") as raised:
        pair(predictions("a", SECRET, "t"), references)
    assert "infer --split" in raised.value.fix
    with refused("R2G-EVAL-STUDIES", "line 1 of the predictions and line 3"):
        pair(predictions(SECRET, "a", SECRET), references)
    assert pair(predictions(SECRET, "a"), references).ids == ("a", SECRET)


def test_a_prediction_of_a_study_without_reference_is_left_out(tmp_path: Path) -> None:
    references = read_annotation(annotation(tmp_path, test=[study("a"), study("b", "")]), "test")
    assert pair(predictions("a", "b"), references).left_out == 1


def test_reports_without_ids_are_told_by_their_images(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(name.encode())
    references = read_annotation(annotation(tmp_path, test=[study(name, name.upper()) for name in "abc"]), "test")
    hashes = {name: hashlib.sha256(name.encode()).hexdigest() for name in "abc"}
    entries = [
        Prediction("line 1", None, "of c", number=12, inputs=(hashes["c"],)),
        Prediction("line 2", None, "", number=11, failed=True),
        Prediction("line 3", None, "of a", number=10, inputs=(hashes["a"],)),
    ]
    pairs = pair(Predictions(tuple(entries), "r2gen", {}), references, tmp_path)
    assert pairs.hypotheses == ("of a", "", "of c")
    assert (pairs.failed, pairs.empty) == (1, 1)
    with refused("R2G-EVAL-STUDIES", "no images"):
        pair(Predictions(tuple(entries), "r2gen", {}), references)
    other = [Prediction("line 1", None, "x", number=1, inputs=("00",))]
    with refused("R2G-EVAL-STUDIES", "not those of any study"):
        pair(Predictions(tuple(other), "r2gen", {}), references, tmp_path)


def test_predictions_with_their_own_references() -> None:
    assert pair(predictions("a", reference="Small."), None).references == ("Small.",)
    with refused("R2G-EVAL-STUDIES", "no reference"):
        pair(predictions("a"), None)
