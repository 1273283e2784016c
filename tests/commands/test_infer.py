"""`r2gen infer` as a user meets it: a terminal, pipes, files, one study and many, names kept and not."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from r2gen_export.bundle import NOTICE
from r2gen_export.commands.infer_studies import UNFINISHED
from r2gen_export.reporting.report import FAILURE_SCHEMA, REPORT_SCHEMA, Report
from r2gen_export.runtime.pipeline import Pipeline
from r2gen_export.system.huge_pages import TUNABLES, huge_page_environment
from tests.command import CLI, ROOT, run_cli, run_here
from tests.helpers.bundles import nan_bundle

PHANTOM = ROOT / "tests/data/phantom.png"
REAL = ROOT / "tests/data/chest-dx-pa.png"
LONG = ("--num-beams", "1", "--min-new-tokens", "240", "--max-new-tokens", "240")


def unwrapped(text: str) -> str:
    return " ".join(text.replace("\n| ", " ").split())


def on_a_terminal(*arguments: object, interrupt: bool = False) -> tuple[int, str]:
    """r2gen with stdin, stdout and stderr on a terminal of its own; Ctrl-C is typed after the first output."""
    command = [*CLI, *map(str, arguments)]
    child, terminal = pty.fork()
    if child == 0:
        os.environ["TERM"] = "dumb"
        os.execv(command[0], command)
    seen = b""
    typed = False
    while True:
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # Linux: the other end has gone
            break
        if not piece:
            break
        seen += piece
        if interrupt and not typed:
            os.write(terminal, b"\x03")
            typed = True
    _, status = os.waitpid(child, 0)
    os.close(terminal)
    return os.waitstatus_to_exitcode(status), seen.decode().replace("\r\n", "\n")


def test_a_terminal_shows_the_report_and_the_notice() -> None:
    status, shown = on_a_terminal("infer", PHANTOM, "--preset", "fast", "--quiet")
    assert status == 0
    report = Pipeline.from_bundle(None, device="cpu").generate(PHANTOM, preset="fast")
    assert shown.startswith(report.text + "\n\n| ")
    assert unwrapped(shown).endswith(report.notice)


def test_ctrl_c_leaves_what_was_shown_with_the_notice() -> None:
    """Ctrl-C is typed after the first words: only a text that comes word by word can be cut off there."""
    status, shown = on_a_terminal("infer", PHANTOM, "--quiet", *LONG, interrupt=True)
    assert status == 130, shown
    text, _, rest = shown.replace("^C", "").partition(f"\n{UNFINISHED}\n")
    assert 0 < len(text.split()) < 150
    assert NOTICE in unwrapped(rest)
    assert rest.endswith("interrupted\n")
    assert "Traceback" not in shown


def test_a_reader_that_goes_ends_the_command_quietly() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [*CLI, "infer", str(PHANTOM), "--quiet"]
    for more in ((), ("--stream",), ("--format", "json")):
        done = subprocess.run([*command, *more], stdout=write, stderr=subprocess.PIPE, text=True, check=False)
        assert done.returncode == 141, done.stderr
        assert done.stderr == ""
    os.close(write)


def test_stdout_holds_the_report_and_stderr_the_rest() -> None:
    done = run_cli("infer", PHANTOM)
    assert done.returncode == 0
    pipeline = Pipeline.from_bundle(None, device="cpu")
    (backend,) = done.stderr.splitlines()
    assert backend.startswith(f"r2gen-demo ({pipeline.bundle_id}) on ")
    (asked_for,) = run_here("infer", PHANTOM, "--device", "cpu", "--preset", "fast").stderr.splitlines()
    assert asked_for == f"r2gen-demo ({pipeline.bundle_id}) on CPU (ONNX Runtime)"
    verbose = run_here("infer", PHANTOM, "--device", "cpu", "--preset", "fast", "-v").stderr.splitlines()
    assert verbose == [asked_for, *(f"  {step}" for step in pipeline.provider.steps)]
    assert "r2gen-demo" not in done.stdout
    assert done.stdout.endswith("\n")
    assert not done.stdout.endswith("\n\n")
    assert run_here("infer", PHANTOM, "--quiet").stderr == ""
    assert run_here("infer", PHANTOM, "--quiet", "--stream").stdout == done.stdout


def test_json_has_every_field() -> None:
    done = run_here(
        "infer", "--study", PHANTOM, REAL, "--format", "json", "--preset", "paper", "--early-stopping", "never"
    )
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert found.keys() == {field.name for field in dataclasses.fields(Report)} - {"name"} | {"schema"}
    assert found["schema"] == REPORT_SCHEMA
    assert found["views"] == 2
    assert found["decoding"]["num_beams"] == 3
    assert found["decoding"]["early_stopping"] == "never"
    assert found["preset"] == "paper"
    assert found["score"] is not None
    assert len(found["logprobs"]) == len(found["token_ids"])
    assert NOTICE in found["notice"]


def test_flags_reach_the_decoding() -> None:
    flags = {
        "min_new_tokens": 3, "max_new_tokens": 9, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2,
        "temperature": 0.7, "top_p": 0.9, "top_k": 5, "seed": 11,
    }  # fmt: skip
    words = [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", value)]
    found = json.loads(run_here("infer", PHANTOM, "--format", "json", *words).stdout)
    assert {name: found["decoding"][name] for name in flags} == flags
    assert found["decoding"]["do_sample"]
    assert 3 <= len(found["token_ids"]) <= 9


def test_out_holds_what_stdout_would(tmp_path: Path) -> None:
    out = tmp_path / "report.txt"
    done = run_here("infer", PHANTOM, "--out", out, "--quiet")
    assert (done.returncode, done.stdout) == (0, "")
    assert out.read_text() == run_here("infer", PHANTOM).stdout
    assert [path.name for path in tmp_path.iterdir()] == ["report.txt"]
    refused = run_here("infer", PHANTOM, "--out", tmp_path)
    assert refused.returncode == 2
    assert "R2G-OUTPUT-WRITE" in refused.stderr


def studies_folder(folder: Path) -> Path:
    """Three studies: an image, a folder of two views, another image."""
    (folder / "doe^john").mkdir(parents=True)
    shutil.copy(PHANTOM, folder / "a.png")
    shutil.copy(PHANTOM, folder / "doe^john" / "1.png")
    shutil.copy(REAL, folder / "doe^john" / "2.png")
    shutil.copy(REAL, folder / "z.png")
    (folder / "notes.md").write_text("not an image")
    return folder


def test_folders_lists_and_annotations_name_the_same_studies(tmp_path: Path) -> None:
    folder = studies_folder(tmp_path / "studies")
    listed = tmp_path / "list.txt"
    listed.write_text(
        "# three studies\nstudies/a.png\nstudies/doe^john/1.png\tstudies/doe^john/2.png\n\nstudies/z.png\n"
    )
    annotation = tmp_path / "annotation.json"
    entries = [["studies/a.png"], ["studies/doe^john/1.png", "studies/doe^john/2.png"], ["studies/z.png"]]
    splits = [[{"id": str(at), "report": "", "image_path": paths}] for at, paths in enumerate(entries)]
    annotation.write_text(json.dumps(dict(zip(("train", "val", "test"), splits, strict=True))))
    texts = []
    for source in (folder, listed, annotation):
        done = run_here("infer", source, "--format", "json")
        assert done.returncode == 0, done.stderr
        assert "doe" not in done.stdout + done.stderr
        found = [json.loads(line) for line in done.stdout.splitlines()]
        assert [one["study"] for one in found] == [1, 2, 3]
        assert [one["views"] for one in found] == [1, 2, 1]
        texts.append([one["text"] for one in found])
    assert texts[0] == texts[1] == texts[2]
    both = run_here("infer", folder, listed, "--quiet")
    assert both.stdout.count("== study ") == 6
    assert unwrapped(both.stdout).count(NOTICE) == 6


def test_names_are_shown_when_asked_for(tmp_path: Path) -> None:
    folder = studies_folder(tmp_path / "studies")
    (folder / "doe^john" / "2.png").write_text("not an image")
    hidden = run_here("infer", folder, "--format", "json")
    assert hidden.returncode == 4
    assert "doe" not in hidden.stdout + hidden.stderr
    assert "R2G-IMAGE-FORMAT: study 2, view 2 is" in hidden.stderr
    shown = run_here("infer", folder, "--format", "json", "--names")
    found = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [Path(one["name"]).name for one in found] == ["a.png", "doe^john", "z.png"]
    assert "doe^john" in shown.stderr
    assert found[1]["schema"] == FAILURE_SCHEMA
    assert found[1]["error"]["code"] == "R2G-IMAGE-FORMAT"
    assert NOTICE in found[1]["notice"]
    assert "text" not in found[1]


def test_studies_are_numbered_in_the_order_of_the_arguments_and_of_names(tmp_path: Path) -> None:
    """And named with `--names`, in text as in JSON; a line at the end counts them."""
    folder = studies_folder(tmp_path / "studies")
    arguments = ("infer", REAL, folder, "--preset", "fast", "--names")
    expected = [REAL, folder / "a.png", folder / "doe^john", folder / "z.png"]
    shown = run_here(*arguments, "--format", "json")
    lines = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [line["name"] for line in lines] == list(map(str, expected))
    assert lines[0]["inputs"] == [hashlib.sha256(REAL.read_bytes()).hexdigest()]
    assert [len(line["inputs"]) for line in lines] == [1, 1, 2, 1]
    assert re.fullmatch(r"4 reports, \d+\.\d reports/s", shown.stderr.splitlines()[-1])
    (folder / "z.png").write_text("not an image")
    out = tmp_path / "reports.txt"
    failed = run_here(*arguments, "--out", out)
    titles = [line for line in out.read_text().splitlines() if line.startswith("== ")]
    views = ["", "", ", 2 views", ""]
    assert [re.sub(r" \[[0-9a-f]{16}\] ==$", " ==", title) for title in titles] == [
        f"== study {number} of 4{view}: {path} =="
        for number, (view, path) in enumerate(zip(views, expected, strict=True), 1)
    ]
    pattern = r"3 reports in reports.txt, 1 study without one, \d+\.\d reports/s"
    assert [line for line in failed.stderr.splitlines() if re.fullmatch(pattern, line)]
    assert run_here("infer", REAL, "--names", "--preset", "fast").stdout.startswith(f"== {REAL} ==\n")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("none.png",), "R2G-IMAGE-MISSING"),
        ((PHANTOM, ".", "--study"), "R2G-CONFIG-VALUE"),
        (("empty",), "R2G-DATA-EMPTY"),
        (("bad.json",), "R2G-DATA-ANNOTATION"),
        (("nothing.json",), "R2G-DATA-ANNOTATION"),
        (("gone.txt",), "R2G-IMAGE-MISSING"),
        ((PHANTOM, "--preset", "slow"), "R2G-CONFIG-VALUE"),
        ((PHANTOM, "--max-new-tokens", "9999"), "R2G-CONFIG-VALUE"),
        ((PHANTOM, "--threads", "1000"), "R2G-CONFIG-VALUE"),
        ((PHANTOM, "--num-beams", "5000"), "R2G-CONFIG-VALUE"),
        (("pipe.png",), "R2G-IMAGE-FORMAT"),
        (("text.json",), "R2G-DATA-ANNOTATION"),
        ((PHANTOM, "--temperature", "nan"), "R2G-CONFIG-VALUE"),
        ((PHANTOM, "--device", "cuda"), "R2G-DEVICE-UNAVAILABLE"),
        ((PHANTOM, "--bundle", "empty"), "R2G-BUNDLE-MISSING"),
    ],
    ids=str,
)
def test_mistakes_have_a_code(tmp_path: Path, arguments: tuple[object, ...], code: str) -> None:
    if code == "R2G-DEVICE-UNAVAILABLE" and shutil.which("nvidia-smi"):
        pytest.skip("there is a GPU")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "text.json").write_text('{"train": [{"id": 1, "image_path": "x.png"}]}')
    (tmp_path / "nothing.json").write_text("{}")
    (tmp_path / "gone.txt").write_text("gone.png\n")
    (tmp_path / "bad.json").write_text('{"train": [{}]}')
    done = run_here("infer", *arguments, "--quiet", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(code), done.stderr
    assert len(done.stderr.splitlines()) <= 2


def test_errors_of_one_study_carry_no_file_name(tmp_path: Path) -> None:
    bad = tmp_path / "doe^john.png"
    missing = run_here("infer", bad, "--quiet")
    bad.write_text("not an image")
    for done in (
        missing,
        run_here("infer", bad, "--quiet"),
        run_here("infer", PHANTOM, bad, "--study", "--stream", "--quiet"),
    ):
        assert done.returncode == 2
        assert "doe" not in done.stdout + done.stderr
        assert done.stderr.startswith("R2G-IMAGE")
    assert "doe^john" in run_here("infer", bad, "--quiet", "--names").stderr


def test_what_a_folder_holds_beside_images_is_said(tmp_path: Path) -> None:
    """The layout of public data sets, a DICOMDIR, an image without suffix; exit status 0 leaves nothing unsaid."""
    deep = tmp_path / "doe/p10/p1/s1"
    deep.mkdir(parents=True)
    shutil.copy(PHANTOM, deep / "deep.png")
    shutil.copy(PHANTOM, tmp_path / "doe/IM0001")
    (tmp_path / "doe/DICOMDIR").write_bytes(bytes(128) + b"DICM")
    done = run_here("infer", tmp_path / "doe", "--quiet", "--format", "json")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 2
    assert done.stderr == "WARNING passed over: DICOMDIR files: 1\n"


def test_many_views_and_unlike_ones_are_warned_of(tmp_path: Path) -> None:
    """Twelve patients are twelve studies; as views of one they are at least suspicious."""
    images = [Path(shutil.copy(PHANTOM, tmp_path / f"doe{number}.png")) for number in range(5)]
    colours = np.zeros((64, 64, 3), np.uint8)
    colours[:32, :, 0], colours[32:, :, 2] = 200, 200
    Image.fromarray(colours).save(tmp_path / "photo.png")
    each = run_here("infer", *images, "--quiet", "--preset", "fast")
    assert each.stdout.count("== study ") == 5
    assert each.stderr == ""
    many = run_here("infer", "--study", *images, "--preset", "fast", "--quiet")
    assert many.stdout.startswith("== 5 views ==\n")
    warning = "5 views in one study, more than 4: are they of one patient?"
    assert many.stderr == f"WARNING {warning}\n"
    assert f"WARNING {warning}" in many.stdout
    mixed = run_here("infer", "--study", images[0], tmp_path / "photo.png", "--quiet", "--format", "json")
    assert "WARNING colour and grey views in one study\n" in mixed.stderr
    assert "colour and grey views in one study" in json.loads(mixed.stdout)["warnings"]


def test_nan_in_the_weights(tmp_path: Path) -> None:
    done = run_here("infer", PHANTOM, "--bundle", nan_bundle(tmp_path), "--quiet")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("R2G-GENERATE-NONFINITE")


def test_a_large_bundle_starts_again_with_huge_pages_and_says_the_same(tmp_path: Path) -> None:
    large = (
        "import sys, r2gen_export.runtime.backends.decoders as e; e.LARGE = 0; print(); from cli import main; main()"
    )
    command = [sys.executable, "-c", large, "infer", str(PHANTOM), "--preset", "fast", "--format", "json"]
    environment = {**os.environ, "R2GEN_CACHE": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    environment.pop(TUNABLES, None)
    found = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    *starts, written = found.stdout.splitlines()
    assert len(starts) == (2 if huge_page_environment() else 1)
    report = Pipeline.from_bundle(None, device="cpu").generate(PHANTOM, preset="fast")
    assert json.loads(written)["token_ids"] == list(report.token_ids)
