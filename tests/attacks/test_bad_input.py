"""Bad input to `r2gen infer`: one or two coded lines, exit status 2, no report, no traceback."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from r2gen_export.bundle import demo_bundle
from tests.command import run_here
from tests.studies.test_images import KINDS, hostile

ROOT = Path(__file__).parents[2]


def infer(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_here("infer", "--quiet", *arguments)


def assert_refused(done: subprocess.CompletedProcess[str], code: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith(code)
    assert len(done.stderr.splitlines()) <= 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "folder"])
def test_bad_images(tmp_path: Path, kind: str) -> None:
    assert_refused(infer(hostile(tmp_path, kind)), KINDS[kind])


def test_flipped_bit_in_a_bundle(tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(demo_bundle(), tmp_path / "bundle"))
    data = bytearray((bundle / "embed_tokens.npy").read_bytes())
    data[5000] ^= 1
    (bundle / "embed_tokens.npy").write_bytes(data)
    assert_refused(infer(ROOT / "tests/data/phantom.png", "--bundle", bundle), "R2G-BUNDLE-HASH")


def test_one_bad_study_does_not_stop_the_others(tmp_path: Path) -> None:
    good = tmp_path / "studies/a.png"
    good.parent.mkdir()
    shutil.copy(ROOT / "tests/data/phantom.png", good)
    (tmp_path / "studies/b.png").write_text("not an image")
    shutil.copy(good, tmp_path / "studies/c.png")
    done = infer(tmp_path / "studies", "--format", "json")
    assert done.returncode == 4
    lines = done.stdout.splitlines()
    assert ["token_ids" in line for line in lines] == [True, False, True]
    assert "R2G-IMAGE-FORMAT" in lines[1]
    assert "b.png" not in done.stderr + done.stdout


def test_doctor_fails_when_infer_could_not_run(tmp_path: Path) -> None:
    good = run_here("doctor", "--bundle", demo_bundle())
    assert good.returncode == 0, good.stdout + good.stderr
    bad = run_here("doctor", "--bundle", tmp_path / "none")
    assert bad.returncode == 2, bad.stdout + bad.stderr
    assert "Traceback" not in bad.stderr


def test_a_full_disk_leaves_no_output(tmp_path: Path) -> None:
    """A file size limit of one block stands for the full disk: the write fails in the same call."""
    out = tmp_path / "reports.jsonl"
    arguments = f"infer --quiet --format json --out {out} {ROOT / 'tests/data/phantom.png'}"
    limited = f"ulimit -f 1; trap '' XFSZ; exec {sys.executable} {ROOT / 'cli.py'} {arguments}"
    done = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("R2G-OUTPUT-WRITE")
    assert list(tmp_path.iterdir()) == []
