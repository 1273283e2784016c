"""`infer --format sr, pdf, dicom-pdf, kos, fhir, hl7`: files, one for each study, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import pty
import shutil
import subprocess
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file

from r2gen_export.bundle.manifest import DEMO_NOTICE
from r2gen_export.commands.infer_documents import Documents, written_form
from r2gen_export.commands.infer_results import InferRequest
from r2gen_export.errors import R2GenError
from r2gen_export.reporting.writers import FORMS
from r2gen_export.runtime.pipeline import Pipeline
from r2gen_export.studies.collect import Study, StudyList
from tests.command import CLI, ROOT, run_cli, run_here
from tests.helpers.documents import bare, radiograph

PHANTOM = ROOT / "tests/data/phantom.png"
REAL = ROOT / "tests/data/chest-dx-pa.png"
SENTINEL = "ZZYZX"

FORMATS = {
    "sr": (), "pdf": (), "dicom-pdf": (), "kos": (), "fhir": (), "fhir-r5": ("--fhir-version", "R5"), "hl7": (),
}  # fmt: skip
"""Every form, with what else its command line needs."""


def command(form: str, *arguments: object) -> list[str]:
    return ["infer", "--format", form.removesuffix("-r5"), *FORMATS[form], *map(str, arguments), "--preset", "fast"]


def leftovers(folder: Path) -> list[str]:
    """Names of files that no document should leave behind."""
    return [
        path.name for path in folder.rglob("*") if path.name.startswith(".") or path.suffix in (".part", ".partial")
    ]


def test_every_form_has_a_command_line() -> None:
    assert FORMATS.keys() == FORMS.keys()
    for form, more in FORMATS.items():
        request = InferRequest((), format=form.removesuffix("-r5"), fhir_version="R5" if more else "R4")
        assert written_form(request) is FORMS[form]
    assert written_form(InferRequest((), format="text")) is None
    assert written_form(InferRequest((), format="json")) is None


def test_a_page_in_a_file_and_in_a_pipe(tmp_path: Path) -> None:
    out = tmp_path / "report.pdf"
    done = run_cli(*command("pdf", PHANTOM, "--out", out, "--quiet"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    piped = subprocess.run(
        [*CLI, *command("pdf", PHANTOM, "--quiet")],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert piped.returncode == 0, piped.stderr
    assert piped.stdout == out.read_bytes()
    assert piped.stdout.startswith(b"%PDF-")
    assert leftovers(tmp_path) == []
    into = tmp_path / "folder"
    into.mkdir()
    assert run_here(*command("pdf", PHANTOM, "--out", into)).returncode == 0
    assert [path.name for path in into.iterdir()] == ["study-0001.pdf"]
    assert (into / "study-0001.pdf").read_bytes() == piped.stdout


def test_a_terminal_gets_no_binary_form() -> None:
    child, terminal = pty.fork()
    if child == 0:
        os.environ["PYTHONPATH"] = str(ROOT)
        os.execv(CLI[0], [*CLI, *command("pdf", PHANTOM)])
    shown = b""
    while True:
        try:
            shown += os.read(terminal, 65536)
        except OSError:
            break
        if not shown:
            break
    _, status = os.waitpid(child, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 2
    assert b"R2G-CONFIG-VALUE: --format pdf is not for a terminal" in shown
    assert b"%PDF" not in shown


def test_many_studies_have_a_file_each_and_one_failure_stops_none(tmp_path: Path) -> None:
    broken, out = tmp_path / "broken.png", tmp_path / "out"
    broken.write_bytes(PHANTOM.read_bytes()[:3000])
    out.mkdir()
    for name in ("study-0002.pdf", "study-0009.pdf", "study-0001.dcm", "notes.txt"):
        (out / name).write_text("of an earlier run")
    arguments = command("pdf", PHANTOM, broken, REAL, "--out", out)
    refused = run_here(*arguments)
    assert refused.returncode == 2
    assert refused.stderr.startswith("R2G-OUTPUT-EXISTS: ")
    assert (out / "study-0009.pdf").read_text() == "of an earlier run"
    done = run_here(*arguments, "--overwrite")
    assert done.returncode == 4, done.stderr
    assert "R2G-IMAGE-TRUNCATED: study 2, view 1 " in done.stderr
    assert "2 reports in out, 1 study without one" in done.stderr
    assert "1 of 3 studies have no report: 2" in done.stderr
    assert done.stdout == ""
    # What is there now is of this run: a page of study 2, or 9, would be taken for its report.
    assert sorted(path.name for path in out.iterdir()) == [
        "notes.txt", "study-0001.dcm", "study-0001.pdf", "study-0003.pdf",
    ]  # fmt: skip
    assert all(path.read_bytes().startswith(b"%PDF-") for path in out.glob("*.pdf"))
    # The terminal shows no report: stderr says that the model knows phantoms only, and --names says whose a file is.
    assert f"WARNING {DEMO_NOTICE}" in done.stderr
    assert PHANTOM.name not in done.stderr
    named = run_here(*arguments, "--overwrite", "--names").stderr
    assert f"study-0001.pdf: {PHANTOM}\n" in named
    assert f"study-0003.pdf: {REAL}\n" in named
    assert "study-0002.pdf" not in named


REFUSALS = {
    "no DICOM": (("--format", "sr"), "R2G-DICOM-SOURCE"),
    "no DICOM, many": (("--format", "hl7", REAL, "--out", "out"), "R2G-DICOM-SOURCE"),
    "many on stdout": (("--format", "pdf", REAL), "R2G-CONFIG-VALUE"),
    "resume": (("--format", "pdf", "--out", "out", "--resume"), "R2G-CONFIG-VALUE"),
    "replaces a page": (("--format", "pdf", "--replaces", "a.dcm"), "R2G-CONFIG-VALUE"),
    "replaces in text": (("--replaces", "a.dcm"), "R2G-CONFIG-VALUE"),
    "a file is there": (("--format", "pdf", "--out", PHANTOM), "R2G-OUTPUT-EXISTS"),
    "no folder": (("--format", "pdf", REAL, "--out", PHANTOM, "--overwrite"), "R2G-CONFIG-VALUE"),
    "device": (("--format", "pdf", "--out", "/dev/null", "--overwrite"), "R2G-OUTPUT-WRITE"),
}


@pytest.mark.parametrize(("arguments", "code"), REFUSALS.values(), ids=REFUSALS)
def test_what_is_refused_before_any_work(
    arguments: tuple[object, ...], code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = PHANTOM.read_bytes()
    monkeypatch.chdir(tmp_path)
    done = run_here("infer", PHANTOM, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{code}: "), done.stderr
    assert "r2gen-demo" not in done.stderr, "the bundle was loaded first"
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []
    assert PHANTOM.read_bytes() == before


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run_here(*command("pdf", PHANTOM, REAL, "--out", tmp_path / "file/out"))
    assert done.returncode == 2
    assert "R2G-OUTPUT-WRITE: " in done.stderr
    assert "Traceback" not in done.stderr


def test_an_image_that_changed_meanwhile_is_not_shown_beside_the_report(tmp_path: Path) -> None:
    image = tmp_path / "view.png"
    shutil.copy(PHANTOM, image)
    pipeline = Pipeline.from_bundle(None, device="cpu")
    study = Study("x", (image,))
    report = pipeline.generate(study.images, preset="fast")
    request = InferRequest((image,), format="pdf", out=tmp_path / "report.pdf")
    documents = Documents.of(request, StudyList((study,), many=False), FORMS["pdf"])
    shutil.copy(REAL, image)
    with pytest.raises(R2GenError, match="an image changed while its report was written"):
        documents.write_single(pipeline, study, report)
    assert not (tmp_path / "report.pdf").exists()


def test_a_study_without_a_source_among_others_fails_alone(tmp_path: Path) -> None:
    """The document of one, and the coded error of the other, by its number."""
    from r2gen_export.runtime.outcome import Outcome

    pipeline = Pipeline.from_bundle(None, device="cpu")
    report = pipeline.generate(PHANTOM, preset="fast")
    studies = (
        Study("a", (PHANTOM,), radiograph().identity),
        Study("b", (PHANTOM,)),
        Study("c", (PHANTOM,), bare().identity),
    )
    request = InferRequest((), format="sr", out=tmp_path)
    documents = Documents.of(request, StudyList(studies, many=True), FORMS["sr"])
    outcomes = [documents.write(pipeline, study, Outcome(n, report)) for n, study in enumerate(studies, start=1)]
    assert [outcome.error.code if outcome.error else "" for outcome in outcomes] == ["", "R2G-DICOM-SOURCE", ""]
    assert outcomes[1].error is not None
    assert outcomes[1].error.message.startswith("study 2: no sr")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["study-0001.dcm", "study-0003.dcm"]
    assert pydicom.dcmread(tmp_path / "study-0001.dcm").PatientID == "9RG1"


def named_file(folder: Path) -> Path:
    """A chest radiograph in whose identifying attributes, and file name, the sentinel stands."""
    dataset = pydicom.dcmread(str(get_testdata_file("RG1_UNCI.dcm")))
    dataset.PatientName = f"{SENTINEL}^Jane"
    for keyword in ("PatientID", "AccessionNumber", "StudyID", "IssuerOfPatientID"):
        setattr(dataset, keyword, f"{SENTINEL}{keyword[:2]}")
    dataset.ReferringPhysicianName = f"{SENTINEL}^Doctor"
    path = folder / f"{SENTINEL}.dcm"
    dataset.save_as(path)
    return path


@pytest.mark.parametrize("form", ["text", "json", *FORMATS])
def test_an_identity_is_in_the_documents_and_nowhere_else(form: str, tmp_path: Path) -> None:
    image, out = named_file(tmp_path), tmp_path / "out"
    if form in ("text", "json"):
        out.mkdir()
        done = run_here("infer", image, PHANTOM, "--format", form, "--out", out / "reports", "-v", "--preset", "fast")
    else:
        done = run_here(*command(form, image, PHANTOM, "--out", out, "-v"))
    assert done.returncode == (0 if form in ("text", "json", "pdf") else 4), done.stderr
    assert SENTINEL not in done.stdout + done.stderr
    written = [path for path in out.rglob("*") if path.is_file()]
    assert len(written) == 1 + (form == "pdf")
    for path in written:
        assert SENTINEL not in path.name
        names = form in ("sr", "kos", "dicom-pdf", "fhir", "fhir-r5", "hl7")
        assert (SENTINEL.encode() in path.read_bytes()) == names
    assert leftovers(tmp_path) == []


def test_a_view_without_dicom_is_said_to_be_missing_from_the_references(tmp_path: Path) -> None:
    out = tmp_path / "report.dcm"
    done = run_here(*command("sr", "--study", str(get_testdata_file("RG1_UNCI.dcm")), PHANTOM, "--out", out))
    assert done.returncode == 0, done.stderr
    summary = pydicom.dcmread(out).ContentSequence[-2].ContentSequence
    said = "WARNING 1 of 2 views is no DICOM image, and the report does not refer to it"
    assert said in [item.TextValue for item in summary]


def test_a_radiograph_becomes_a_report_of_its_study(tmp_path: Path) -> None:
    """Twice: the same but for the time; and with --replaces a revision of it."""
    image = str(get_testdata_file("RG1_UNCI.dcm"))
    source = pydicom.dcmread(image, stop_before_pixels=True)
    first, again, second = (tmp_path / f"{name}.dcm" for name in ("first", "again", "second"))
    for path, more in ((first, []), (again, []), (second, ["--replaces", first])):
        assert run_here(*command("sr", image, "--out", path, *more)).returncode == 0
    reports = [pydicom.dcmread(path) for path in (first, again, second)]
    assert {report.StudyInstanceUID for report in reports} == {source.StudyInstanceUID}
    assert reports[0].SOPInstanceUID == reports[1].SOPInstanceUID != reports[2].SOPInstanceUID
    (study,) = reports[2].PredecessorDocumentsSequence
    named = study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert named.ReferencedSOPInstanceUID == reports[0].SOPInstanceUID
    (finding,) = (item for item in reports[0].ContentSequence[-1].ContentSequence if item.ValueType == "TEXT")
    said = json.loads(run_here("infer", image, "--format", "json", "--preset", "fast").stdout)
    assert finding.TextValue.replace("\r\n", "\n") == said["text"].strip()


def test_requests_keep_their_defaults() -> None:
    """`InferRequest` is made by others too: a form is named, never guessed from the name of a file."""
    request = InferRequest((PHANTOM,), out=Path("report.pdf"))
    assert dataclasses.asdict(request)["format"] == "text"
    assert written_form(request) is None


def test_a_folder_keeps_no_page_of_an_earlier_call_beside_that_of_a_single_study(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run_here(*command("pdf", PHANTOM, REAL, "--out", out)).returncode == 0
    assert run_here(*command("pdf", PHANTOM, "--out", out, "--overwrite")).returncode == 0
    assert [path.name for path in out.iterdir()] == ["study-0001.pdf"]


@pytest.mark.parametrize("form", ["sr", "kos"])
def test_what_r2gen_did_not_write_is_not_replaced(form: str, tmp_path: Path) -> None:
    """An archive would take a radiologist's report, or an image, for outdated; nothing is generated first."""
    image = str(get_testdata_file("RG1_UNCI.dcm"))
    done = run_here(*command(form, image, "--out", tmp_path / "new.dcm", "--replaces", image))
    assert done.returncode == 2
    assert "was not written by r2gen" in done.stderr
    assert not list(tmp_path.iterdir())
