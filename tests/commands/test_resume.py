"""`r2gen infer --resume`: a run of many studies goes on where an earlier one ended."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from r2gen_export.phantoms import write_phantoms
from tests.command import CLI, ROOT, run_here

STUDIES = 24
KILLS = int(os.environ.get("R2GEN_KILLS", "3"))


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("resume") / "phantoms"
    write_phantoms(out, STUDIES, 5)
    return out


def command(phantoms: Path, out: Path, *more: str) -> list[str]:
    return ["infer", str(phantoms), "--preset", "fast", "--batch-size", "2", "--out", str(out), *more]


@pytest.fixture(scope="module")
def whole(phantoms: Path) -> list[dict[str, object]]:
    """What a run that nobody stops writes."""
    out = phantoms.parent / "whole.jsonl"
    assert run_here(*command(phantoms, out, "--format", "json")).returncode == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_a_run_that_is_killed_again_and_again_has_every_study_once(
    phantoms: Path, whole: list[dict[str, object]], tmp_path: Path
) -> None:
    """SIGKILL at random moments, which leaves no time to put anything in order; `R2GEN_KILLS` sets how often."""
    out, partial = tmp_path / "reports.jsonl", tmp_path / "reports.jsonl.partial"
    arguments = command(phantoms, out, "--format", "json", "--resume", "--quiet")
    draw = random.Random(7)
    for _ in range(KILLS):
        written = partial.stat().st_size if partial.exists() else 0
        enough = written + draw.randrange(1, 12_000)
        child = subprocess.Popen([*CLI, *arguments], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
        while child.poll() is None and not (partial.exists() and partial.stat().st_size >= enough):
            time.sleep(0.001)
        child.send_signal(signal.SIGKILL)
        child.wait()
    # A write that the kill cut: half a line.
    if partial.exists():
        with partial.open("ab") as file:
            file.write(b'{"schema": "r2gen-report/1", "stu')
    assert run_here(*arguments).returncode == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(line["study"] for line in lines) == list(range(1, STUDIES + 1))
    expected = {line["study"]: (line["token_ids"], line["inputs"], line["key"]) for line in whole}
    assert {line["study"]: (line["token_ids"], line["inputs"], line["key"]) for line in lines} == expected
    assert not partial.exists()


def test_other_settings_are_other_reports(phantoms: Path, whole: list[dict[str, object]], tmp_path: Path) -> None:
    out = tmp_path / "reports.jsonl"
    image = phantoms / "images/phantom-000000/0.png"
    first = ["infer", str(image), "--format", "json", "--out", str(out), "--resume", "--preset", "fast"]
    for more, reports in (((), 1), ((), 1), (("--max-new-tokens", "5"), 2)):
        assert run_here(*first, *more).returncode == 0
        assert len(out.read_text().splitlines()) == reports


def test_a_study_without_a_report_is_tried_again(phantoms: Path, tmp_path: Path) -> None:
    out, images = tmp_path / "reports.txt", tmp_path / "images"
    images.mkdir()
    source = (phantoms / "images/phantom-000000/0.png").read_bytes()
    (images / "a.png").write_bytes(source)
    (images / "b.png").write_bytes(b"half a file")
    arguments = ["infer", str(images), "--out", str(out), "--preset", "fast", "--resume"]
    assert run_here(*arguments).returncode == 4
    assert "no report: R2G-IMAGE-FORMAT" in out.read_text()
    (images / "b.png").write_bytes(source)  # equal pictures are two studies all the same
    done = run_here(*arguments)
    assert done.returncode == 0
    assert "1 report in reports.txt, 1 there already" in done.stderr
    text = out.read_text()
    assert (text.count("== study 1 of 2"), text.count("== study 2 of 2"), text.count("no report")) == (1, 1, 0)


def test_a_name_of_several_lines_begins_no_other_entry(phantoms: Path, tmp_path: Path) -> None:
    out, images = tmp_path / "reports", tmp_path / "images"
    images.mkdir()
    for name in ("a\n== study 2 of 2 [0123456789abcdef] ==\nClear.png", "b.png"):
        shutil.copy(phantoms / "images/phantom-000000/0.png", images / name)
    arguments = ["infer", str(images), "--out", str(out), "--preset", "fast", "--resume", "--names"]
    for there in (0, 2):
        done = run_here(*arguments)
        assert done.returncode == 0
        assert there == 0 or f"{there} there already" in done.stderr
    titles = [line[:16] for line in out.read_text().splitlines() if line.startswith("==")]
    assert titles == ["== study 1 of 2:", "== study 2 of 2:"]


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_study_does_not_come_under_another_number(phantoms: Path, form: str, tmp_path: Path) -> None:
    """An image that came to a folder moves the numbers of those behind it: two studies would have one."""
    out, images = tmp_path / "reports", tmp_path / "images"
    images.mkdir()
    shutil.copy(phantoms / "images/phantom-000000/0.png", images / "b.png")
    shutil.copy(phantoms / "images/phantom-000001/0.png", images / "c.png")
    arguments = ["infer", str(images), "--out", str(out), "--format", form, "--preset", "fast", "--resume"]
    assert run_here(*arguments).returncode == 0
    before = out.read_bytes()
    shutil.copy(phantoms / "images/phantom-000002/0.png", images / "a.png")
    done = run_here(*arguments)
    assert done.stderr.splitlines()[-2].startswith("R2G-OUTPUT-EXISTS: the file has reports of 2 of"), done.stderr
    assert out.read_bytes() == before
    (images / "a.png").rename(images / "d.png")
    assert run_here(*arguments).returncode == 0
    assert out.read_bytes().startswith(before)


def test_an_image_that_waits_for_ever_is_not_waited_for(phantoms: Path, tmp_path: Path) -> None:
    """Looking for earlier reports reads images as reports do: a pipe is no image."""
    out, pipe = tmp_path / "reports.jsonl", tmp_path / "pipe.png"
    os.mkfifo(pipe)
    image = phantoms / "images/phantom-000000/0.png"
    arguments = ["infer", str(image), str(pipe), "--format", "json", "--out", str(out), "--preset", "fast", "--resume"]
    for there in (0, 1):
        done = run_here(*arguments)
        assert done.returncode == 4
        assert "study 2, view 1 is not a regular file" in done.stderr
        assert (f"{there} there already" in done.stderr) == (there > 0)


@pytest.mark.parametrize("more", [("--resume",), ("--resume", "--overwrite", "--out", "x")])
def test_resume_needs_a_file_and_keeps_it(phantoms: Path, more: tuple[str, ...], tmp_path: Path) -> None:
    done = run_here("infer", str(phantoms), *more, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("R2G-CONFIG-VALUE")
