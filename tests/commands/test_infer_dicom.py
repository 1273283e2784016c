"""`r2gen infer` on DICOM files, folders, a DICOMDIR and archives; the same files by the Python API."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from r2gen_export.errors import R2GenError
from r2gen_export.runtime.pipeline import Pipeline
from r2gen_export.studies.collect import collect_studies
from r2gen_export.studies.dicom.types import DicomSettings
from r2gen_export.studies.images import content_sha256, read_image
from tests.command import CLI, run_cli, run_here
from tests.helpers.dicom_studies import DATA, save, text_object, write
from tests.helpers.loaded_once import loaded_once

PHANTOM = DATA / "phantom.png"
SHORT = ("--preset", "fast", "--min-new-tokens", "3", "--max-new-tokens", "4", "--device", "cpu", "--quiet")
FEW = {"preset": "fast", "min_new_tokens": 3, "max_new_tokens": 4}


@pytest.fixture(autouse=True, scope="module")
def demo_loaded_once() -> Iterator[None]:
    with loaded_once():
        yield


@pytest.fixture(scope="module")
def pipeline(demo_loaded_once: None) -> Pipeline:
    return Pipeline.from_bundle(None, device="cpu")


@pytest.mark.parametrize("other", [{"PatientID": "T2"}, {"SOPInstanceUID": "1.2.3"}, {"AccessionNumber": "A2"}])
def test_a_file_that_was_replaced_after_its_header_was_read(
    other: dict[str, str], tmp_path: Path, pipeline: Pipeline
) -> None:
    """Whom a report belongs to is read with the headers; the pixels may be read hours later."""
    (study,) = collect_studies([write(tmp_path / "a", 1, 1)]).studies
    assert pipeline.generate(study, **FEW).text
    write(tmp_path / "a", 1, 1, **other)
    with pytest.raises(R2GenError, match="view 1 changed after its header was read"):
        pipeline.generate(study, **FEW)
    (outcome,) = pipeline.generate_many([study], **FEW)
    assert outcome.error is not None
    assert outcome.error.message.startswith("study 1, view 1 changed")


def test_what_is_odd_about_a_name_is_in_the_warnings(tmp_path: Path, pipeline: Pipeline) -> None:
    file = write(tmp_path / "a", 1, 1, PatientName="Müller^Änne", SpecificCharacterSet="ISO_IR 100")
    file.write_bytes(file.read_bytes().replace(b"ISO_IR 100", b"ISO_IR 999"))
    (study,) = collect_studies([file]).studies
    assert (
        "view 1: its text does not fit its character set: names may be wrong"
        in pipeline.generate(study, **FEW).warnings
    )


def test_a_dicom_file_with_the_suffix_of_a_picture_is_of_the_same_patient(tmp_path: Path, pipeline: Pipeline) -> None:
    """A list may name hundreds of thousands of files, which are not opened while studies are collected."""
    write(tmp_path / "a.dcm", 1, 1)
    write(tmp_path / "b.png", 2, 1)
    write(tmp_path / "c.png", 1, 2)
    for name in ("b.png", "c.png"):
        (tmp_path / "list.txt").write_text(f"a.dcm\t{name}")
        (study,) = collect_studies([tmp_path / "list.txt"]).studies
        if name == "c.png":
            assert pipeline.generate(study, **FEW).views == 2
            continue
        with pytest.raises(R2GenError, match="its files are of 2 studies"):
            pipeline.generate(study, **FEW)


def test_a_folder_gives_a_report_for_each_study(tmp_path: Path, pipeline: Pipeline) -> None:
    lateral = write(tmp_path / "a/l", 1, 1, ViewPosition="LL")
    frontal = write(tmp_path / "b/f.dcm", 1, 2, ViewPosition=None)
    save(text_object(1), tmp_path / "b/sr")
    shutil.copy(PHANTOM, tmp_path / "c.png")
    done = run_here("infer", tmp_path, *SHORT, "--format", "json")
    assert done.returncode == 0, done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    assert first["views"] == 2
    assert first["inputs"] == [content_sha256(frontal), content_sha256(lateral)]
    assert first["warnings"] == ["view 1: it does not state its view"]
    assert second["inputs"] == [content_sha256(tmp_path / "c.png")]
    passed_over, warning = done.stderr.splitlines()
    assert passed_over == "WARNING passed over: DICOM objects (a structured report): 1"
    assert warning == "WARNING study 1, view 1: it does not state its view"
    (study, _) = collect_studies([tmp_path]).studies
    pixels = [read_image(path).pixels for path in study.images]
    expected = pipeline.generate(pixels, **FEW)
    assert first["token_ids"] == list(expected.token_ids)
    assert first["token_ids"] == list(pipeline.generate(study, **FEW).token_ids)
    assert pipeline.generate([frontal, lateral], **FEW).inputs == tuple(first["inputs"])


def test_files_of_two_studies_are_refused_as_one(tmp_path: Path, pipeline: Pipeline) -> None:
    files = [write(tmp_path / "1", 1, 1), write(tmp_path / "2", 2, 1)]
    done = run_here("infer", "--study", *files, *SHORT)
    assert done.returncode == 2
    assert done.stderr.startswith("R2G-DICOM-STUDY: --study: its files are of 2 studies")
    with pytest.raises(R2GenError, match="R2G-DICOM-STUDY"):
        pipeline.generate(files, **FEW)
    (outcome,) = pipeline.generate_many([files], **FEW)
    assert outcome.error is not None
    assert outcome.error.message.startswith("study 1: its files are of 2 studies")
    assert run_here("infer", *files, *SHORT).stdout.count("== study ") == 2
    for file in files:
        file.rename(file.with_suffix(".png"))
    (tmp_path / "list.txt").write_text("1.png 2.png\n")
    assert "R2G-DICOM-STUDY" in run_here("infer", tmp_path / "list.txt", *SHORT).stderr


def test_what_is_refused_fails_alone_with_its_code(tmp_path: Path) -> None:
    write(tmp_path / "1", 1, 1)
    hand = write(tmp_path / "2", 2, 1, BodyPartExamined="HAND")
    write(tmp_path / "3", 3, 1, ViewPosition="LL")
    (tmp_path / "4.dcm").write_bytes(b"no DICOM")
    done = run_here("infer", tmp_path, *SHORT, "--format", "json")
    assert done.returncode == 4
    _, *failures = map(json.loads, done.stdout.splitlines())
    assert [(failure["study"], failure["error"]["code"]) for failure in failures] == [
        (2, "R2G-DICOM-REFUSED"),
        (3, "R2G-DICOM-REFUSED"),
        (4, "R2G-DICOM-FORMAT"),
    ]
    assert "study 2: the image has body part HAND, not the chest" in done.stderr
    alone = run_here("infer", hand, *SHORT)
    assert alone.returncode == 2
    assert alone.stderr.startswith("R2G-DICOM-REFUSED: the image has body part HAND, not the chest")


def test_force_and_polarity_are_recorded(tmp_path: Path) -> None:
    path = write(tmp_path / "1", 1, 1, BodyPartExamined="HAND", ViewPosition="LL", PresentationLUTShape="INVERSE")
    texts = {}
    for polarity in ("auto", "shape", "photometric"):
        done = run_here("infer", path, *SHORT, "--force", "--polarity", polarity, "--format", "json")
        assert done.returncode == 0, done.stderr
        warnings = json.loads(done.stdout)["warnings"]
        assert "lateral views only, read with --force" in warnings
        assert "view 1: read by --force although it has body part HAND, not the chest" in warnings
        texts[polarity] = [warning for warning in warnings if "--polarity" in warning]
    assert texts == {
        "auto": [],
        "shape": ["view 1: polarity by PresentationLUTShape alone (--polarity shape)"],
        "photometric": ["view 1: polarity by PhotometricInterpretation alone (--polarity photometric)"],
    }
    shape, photometric = (read_image(path, dicom=DicomSettings(at, force=True)) for at in ("shape", "photometric"))
    assert (shape.pixels == 255 - photometric.pixels).all()


def test_resume_knows_a_study_by_its_files_and_how_they_are_read(tmp_path: Path) -> None:
    for number in (1, 2):
        write(tmp_path / f"in/{number}", number, 1)
    out = ("--format", "json", "--out", tmp_path / "out.jsonl")
    assert run_here("infer", tmp_path / "in", *SHORT, *out).returncode == 0
    shutil.move(tmp_path / "in/1", tmp_path / "in/1a")  # another name in the same place
    for more, written in (((), 0), (("--polarity", "photometric"), 2), (("--polarity", "photometric"), 0)):
        before = len((tmp_path / "out.jsonl").read_text().splitlines())
        assert run_here("infer", tmp_path / "in", *SHORT, *out, "--resume", *more).returncode == 0
        assert len((tmp_path / "out.jsonl").read_text().splitlines()) - before == written


def archive(folder: Path, count: int = 1) -> Path:
    """With so many studies, numbered from 100."""
    path = folder / "examination.zip"
    with zipfile.ZipFile(path, "w") as file:
        for number in range(100, 100 + count):
            file.write(write(folder / "unpacked", number, 1), f"cd/{number}")
    return path


def test_an_archive_and_a_dicomdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pydicom.fileset import FileSet

    files = FileSet()
    for number in (1, 2):
        files.add(write(tmp_path / "image", 1, number))
    files.write(tmp_path / "cd")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    done = run_here("infer", tmp_path / "cd/DICOMDIR", archive(tmp_path), *SHORT, "--names")
    assert done.returncode == 0, done.stderr
    first, second = [line for line in done.stdout.splitlines() if line.startswith("== ")]
    assert first.startswith(f"== study 1 of 2, 2 views: {tmp_path}/cd/")
    assert second == f"== study 2 of 2: {tmp_path}/examination.zip/cd/100 =="
    assert list(scratch.iterdir()) == []


def test_a_signal_removes_what_was_unpacked(tmp_path: Path) -> None:
    path = archive(tmp_path, 100)
    scratch, out = tmp_path / "scratch", tmp_path / "out"
    scratch.mkdir()
    command = [*CLI, "infer", str(path), *SHORT, "--batch-size", "1", "--out", str(out)]
    process = subprocess.Popen(command, env={**os.environ, "TMPDIR": str(scratch)}, stderr=subprocess.DEVNULL)
    partial = tmp_path / "out.partial"
    deadline = time.monotonic() + 100
    while not partial.exists() or b"\n" not in partial.read_bytes():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert [entry.name[:6] for entry in scratch.iterdir()] == ["r2gen-"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert list(scratch.iterdir()) == []


WITHOUT_PYDICOM = """
import importlib.machinery, sys
class Without(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] == "pydicom" else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Without
"""
"""A `sitecustomize`: the package is not there, as after an installation without the extra."""


def test_without_the_extra_a_dicom_file_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(WITHOUT_PYDICOM)
    write(tmp_path / "in/doe.dcm")
    shutil.copy(PHANTOM, tmp_path / "in/doe.png")
    path = f"{tmp_path / 'site'}{os.pathsep}{os.environ['PYTHONPATH']}" if "PYTHONPATH" in os.environ else None
    environment = {"PYTHONPATH": path or os.pathsep.join([str(tmp_path / "site"), str(Path(CLI[1]).parent)])}
    for source in (tmp_path / "in/doe.dcm", tmp_path / "in"):
        done = run_cli("infer", source, *SHORT, **environment)
        assert done.returncode == 2, done.stderr
        first, second = done.stderr.splitlines()
        assert first.startswith("R2G-DEPENDENCY-MISSING: ") and "pydicom" in first
        assert "pip install 'r2gen[dicom]'" in second
        assert "doe" not in done.stderr
    assert run_cli("infer", PHANTOM, *SHORT, **environment).returncode == 0
