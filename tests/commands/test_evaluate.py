"""`r2gen evaluate`, `evaluate compare` and `rexrank` from the command line: files, exit statuses, nothing of ids."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.command import run_here
from tests.helpers.own_reports import own_pairs, own_reports

SECRET = "DOE-JANE"
QUICK = ("--replicates", "200", "--no-meteor", "-q")
TEXTS, REFERENCES = own_pairs(40)
IDS = [f"{SECRET}-{number}" for number in range(40)]


def run(*arguments: object, status: int = 0) -> str:
    done = run_here("evaluate", *arguments)
    assert done.returncode == status, done.stdout + done.stderr
    assert SECRET not in done.stdout + done.stderr
    return done.stdout + done.stderr


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture
def annotation(tmp_path: Path) -> Path:
    training = [{"id": f"t{n}", "report": text, "image_path": ["x.png"]} for n, text in enumerate(own_reports(20, 3))]
    test = [{"id": name, "report": text, "image_path": ["x.png"]} for name, text in zip(IDS, REFERENCES, strict=True)]
    return write(tmp_path / "annotation.json", {"train": training, "val": [], "test": test})


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    return write(tmp_path / "test_result.json", {name: [text] for name, text in zip(IDS, TEXTS, strict=True)})


def test_finished_reports(annotation: Path, predictions: Path, tmp_path: Path) -> None:
    out = tmp_path / "evaluation"
    shown = run("--predictions", predictions, "--annotation", annotation, "--out", out, *QUICK)
    assert "40 studies of split test" in shown
    assert "protocol coco" in shown
    assert "one report for every study" in shown
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "results.json", "table.md", "table.tex"]
    assert SECRET not in "".join(path.read_text(encoding="utf-8") for path in out.iterdir())
    assert "R2G-OUTPUT-EXISTS" in run("--predictions", predictions, "--annotation", annotation, "--out", out, status=2)
    run("--predictions", predictions, "--annotation", annotation, "--out", out, "--overwrite", "--show-texts", *QUICK)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert any(text in page for text in TEXTS)


def test_the_published_codes_files(predictions: Path, tmp_path: Path) -> None:
    references = write(tmp_path / "test_refs.json", {name: [text] for name, text in zip(IDS, REFERENCES, strict=True)})
    command = ("--predictions", predictions, "--references", references, "--protocol", "raw", "--format", "json")
    results = json.loads(run(*command, *QUICK))
    assert results["protocol"] == "raw"
    assert results["data"]["studies"] == 40
    assert "baselines" in {item["what"] for item in results["not_computed"]}


def test_a_scorer_of_another_environment(annotation: Path, predictions: Path) -> None:
    program = (
        "import json,sys; pairs=[json.loads(line) for line in sys.stdin]; "
        "[print(json.dumps(dict(id=pair['id'], scores=dict(one=1.0)))) for pair in pairs]; "
        "print(json.dumps(dict(corpus=dict(one=1.0), about=dict(package='own'))))"
    )
    scorer = f'own={sys.executable} -c "{program}"'
    command = ("--predictions", predictions, "--annotation", annotation, "--format", "json", "--scorer", scorer)
    results = json.loads(run(*command, *QUICK))
    (row,) = (row for row in results["scores"] if row["metric"] == "own:one")
    assert (row["value"], row["low"], row["high"]) == (1.0, 1.0, 1.0)
    assert results["scorers"] == [{"name": "own", "about": {"package": "own"}}]


REFUSED = {
    "no data": ((), "R2G-CONFIG-VALUE"),
    "texts without a page": (("--predictions", "{p}", "--annotation", "{a}", "--show-texts"), "R2G-CONFIG-VALUE"),
    "another split": (("--predictions", "{p}", "--annotation", "{a}", "--split", "train"), "R2G-EVAL-STUDIES"),
    "an empty split": (("--predictions", "{p}", "--annotation", "{a}", "--split", "val"), "R2G-DATA-EMPTY"),
    "no dataset": (("--predictions", "{p}", "--annotation", "{a}", "--protocol", "r2gen"), "R2G-CONFIG-VALUE"),
    "no such section": (
        ("--predictions", "{p}", "--annotation", "{a}", "--section", "impression"),
        "R2G-DATA-EMPTY",
    ),
    "not there": (("--predictions", "nowhere.json", "--annotation", "{a}"), "R2G-EVAL-FORMAT"),
    "a scorer without command": (("--predictions", "{p}", "--annotation", "{a}", "--scorer", "x"), "R2G-CONFIG-VALUE"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, annotation: Path, predictions: Path) -> None:
    words, code = REFUSED[case]
    arguments = [word.format(p=predictions, a=annotation) for word in words]
    assert code in run(*arguments, status=2)


def test_compare_folders_and_files(annotation: Path, predictions: Path, tmp_path: Path) -> None:
    worse = write(tmp_path / "worse.json", {name: ["No acute disease."] for name in IDS})
    common = ("--annotation", annotation, "--replicates", "500")
    for name, file in (("a", predictions), ("b", worse)):
        run("--predictions", file, "--annotation", annotation, "--out", tmp_path / name, *QUICK)
    shown = run("compare", tmp_path / "a", tmp_path / "a", "--fail-below", "bleu4=0.001", "--replicates", "500")
    assert "40 of 40 reports are identical (100.0%)" in shown
    out = tmp_path / "comparison"
    shown = run(
        "compare", tmp_path / "a", tmp_path / "b", "--fail-below", "bleu4=0.001,labels=1%", "--out", out, status=3
    )
    assert "R2G-EVAL-WORSE" in shown
    assert (out / "comparison.md").read_text(encoding="utf-8") in shown
    files = json.loads(run("compare", predictions, worse, *common, "--format", "json"))
    folders = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    assert [row["difference"] for row in files["metrics"]] == [row["difference"] for row in folders["metrics"]]
    assert files["divergence"]["unit"] == "word"
    assert "R2G-EVAL-STUDIES" in run(
        "compare", predictions, write(tmp_path / "few.json", {IDS[0]: ["x"]}), *common, status=2
    )


def test_a_bundle_on_an_annotation(tmp_path: Path) -> None:
    """Two runs into two folders: the same results, one after a study that has no report, which exit status 4 says."""
    assert (
        run_here("phantom", "--out", tmp_path / "phantoms", "--studies", "6", "--test-fraction", "0.5").returncode == 0
    )
    command = ("--annotation", tmp_path / "phantoms/annotation.json", "--dataset", "iu_xray", "--device", "cpu", *QUICK)
    options = ("--preset", "fast", "--max-new-tokens", "8", "--batch-size", "2", "--all-protocols")
    run(*command, *options, "--out", tmp_path / "first")
    run(*command, *options, "--out", tmp_path / "second")
    first, second = ((tmp_path / name / "results.json").read_bytes() for name in ("first", "second"))
    assert first == second
    assert set(json.loads(first)["protocols"]) == {"r2gengpt", "r2gen", "coco", "raw"}
    shown = run("compare", tmp_path / "first", tmp_path / "second")
    assert "3 of 3 reports are identical" in shown
    broken = json.loads((tmp_path / "phantoms/annotation.json").read_text())["test"][1]["image_path"][0]
    (tmp_path / "phantoms/images" / broken).write_bytes(b"no image")
    shown = run(*command, *options, "--out", tmp_path / "third", status=4)
    assert "1 of 3 studies have no report" in shown
    assert json.loads((tmp_path / "third/results.json").read_text())["data"]["empty_reports"] == 1


def test_rexrank(tmp_path: Path) -> None:
    assert run_here("phantom", "--out", tmp_path / "phantoms", "--studies", "2").returncode == 0
    annotation = json.loads((tmp_path / "phantoms/annotation.json").read_text())
    entries = [entry for split in annotation.values() for entry in split]
    studies = {f"{SECRET}-{n}": {"image_path": entry["image_path"]} for n, entry in enumerate(entries)}
    source, target = write(tmp_path / "in.json", studies), tmp_path / "out.json"
    command = ("rexrank", "--input_json_file", source, "--save_json_file", target)
    command += ("--img_root_dir", tmp_path / "phantoms/images", "--preset", "fast", "--device", "cpu")
    done = run_here(*command)
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stderr
    assert all(study["model_prediction"] for study in json.loads(target.read_text()).values())
    assert "R2G-OUTPUT-EXISTS" in run_here(*command).stderr


def test_seeds(annotation: Path, predictions: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other.json", {name: [text] for name, text in zip(IDS, TEXTS[::-1], strict=True)})
    for name, file in (("a", predictions), ("b", other)):
        run("--predictions", file, "--annotation", annotation, "--out", tmp_path / name, *QUICK)
    shown = run("seeds", tmp_path / "a", tmp_path / "b")
    assert "# 2 runs" in shown
    assert "±" in shown
    assert len(json.loads(run("seeds", tmp_path / "a", tmp_path / "b", "--format", "json"))["metrics"]) >= 18
    assert "R2G-CONFIG-VALUE" in run("seeds", tmp_path / "a", tmp_path / "a", status=2)
