"""Reports of a bundle for a split: a run that was stopped goes on, and ends with the same reports."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from r2gen_export.bundle import demo_bundle
from r2gen_export.errors import R2GenError
from r2gen_export.evaluation.generate import Generation, generate_predictions
from r2gen_export.evaluation.references import read_annotation
from r2gen_export.evaluation.rexrank import read_studies, write_predictions
from r2gen_export.phantoms import write_phantoms
from r2gen_export.runtime.pipeline import Pipeline

SHORT = {"preset": "fast", "min_new_tokens": 1, "max_new_tokens": 8}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation") / "phantoms"
    write_phantoms(folder, 8, 11, val_fraction=0.0, test_fraction=1.0, workers=1, progress=False)
    first = next((folder / "images").glob("*000002/0.png"))
    first.write_bytes(first.read_bytes()[:200])  # a study without a report
    return folder


@pytest.fixture(scope="module")
def generation(phantoms: Path) -> Generation:
    pipeline = Pipeline.from_bundle(demo_bundle(), device="cpu", threads=1)
    studies = read_annotation(phantoms / "annotation.json", "test").studies
    return Generation(pipeline, studies, [phantoms / "images"], batch_size=3, options=SHORT)


@pytest.fixture(scope="module")
def whole(generation: Generation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("whole") / "predictions.jsonl"
    generate_predictions(generation, file)
    return file


def test_a_report_or_a_reason_for_every_study(generation: Generation, whole: Path) -> None:
    lines = [json.loads(line) for line in whole.read_text(encoding="utf-8").splitlines()]
    assert [line["study"] for line in lines] == list(range(1, 9))
    assert [line["study"] for line in lines if "error" in line] == [3]
    assert "phantom-0" not in whole.read_text(encoding="utf-8"), "no id"


def batch_sizes(file: Path) -> dict[int, int]:
    """With how many others each study was decoded, by the last entry of each."""
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return {line["study"]: line.get("batch_size", 0) for line in lines}


@pytest.mark.parametrize("lines", range(9))
def test_a_stopped_run_goes_on(lines: int, generation: Generation, whole: Path, tmp_path: Path) -> None:
    """Batches are of studies 1 to 3, 4 to 6, 7 and 8; half a line is what a killed process may leave."""
    expected = generate_predictions(generation, Path(shutil.copy(whole, tmp_path / "again.jsonl")))
    file = tmp_path / "predictions.jsonl"
    content = whole.read_bytes().splitlines(keepends=True)
    (tmp_path / "predictions.jsonl.partial").write_bytes(b"".join(content[:lines]) + b'{"schema": "r2g')
    steps: list[int] = []
    predictions = generate_predictions(generation, file, advance=steps.append)
    assert [(entry.id, entry.text, entry.token_ids, entry.failed) for entry in predictions.entries] == [
        (entry.id, entry.text, entry.token_ids, entry.failed) for entry in expected.entries
    ]
    assert batch_sizes(file) == batch_sizes(whole), "every study is decoded together with the same others"
    assert sum(steps) == 8
    assert not (tmp_path / "predictions.jsonl.partial").exists()


def test_reports_of_other_settings_are_not_mixed(generation: Generation, whole: Path, tmp_path: Path) -> None:
    file = Path(shutil.copy(whole, tmp_path / "predictions.jsonl"))
    other = Generation(generation.pipeline, generation.studies, generation.bases, 3, {**SHORT, "max_new_tokens": 9})
    with pytest.raises(R2GenError, match="other settings") as raised:
        generate_predictions(other, file)
    assert raised.value.code == "R2G-OUTPUT-EXISTS"


def test_rexrank(generation: Generation, phantoms: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in.json", tmp_path / "out.json"
    studies = {
        reference.id: {"image_path": list(reference.paths), "context": "Age: 60."} for reference in generation.studies
    }
    source.write_text(json.dumps(studies))
    failed = write_predictions(generation.pipeline, source, target, phantoms / "images", options=SHORT)
    written = json.loads(target.read_text(encoding="utf-8"))
    assert failed == 1
    assert {key: {**fields, "model_prediction": ""} for key, fields in written.items()} == {
        key: {**fields, "model_prediction": ""} for key, fields in studies.items()
    }
    assert sum(bool(fields["model_prediction"]) for fields in written.values()) == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.json", "out.json"]


@pytest.mark.parametrize("content", ["[]", '{"a": {}}', '{"a": {"image_path": []}}', "{", '{"a": {"image_path": [3]}}'])
def test_rexranks_input_of_another_form(content: str, tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text(content)
    with pytest.raises(R2GenError) as raised:
        read_studies(tmp_path / "in.json")
    assert raised.value.code == "R2G-EVAL-FORMAT"
