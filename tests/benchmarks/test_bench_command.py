"""`r2gen bench` as its command line: processes by default, what it passes over, threads there are not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.command import ROOT, run_here
from tests.helpers.dicom_studies import write

PHANTOM = ROOT / "tests/data/phantom.png"


def test_fewer_runs_than_default_processes(tmp_path: Path) -> None:
    """On an image and a DICOM file, with a DICOMDIR beside them."""
    write(tmp_path / "doe/x.dcm")
    shutil.copy(PHANTOM, tmp_path / "doe/a.png")
    (tmp_path / "doe/DICOMDIR").write_bytes(bytes(128) + b"DICM")
    out = tmp_path / "out"
    done = run_here(
        "bench",
        "--runs",
        2,
        "--warmup",
        1,
        "--max-new-tokens",
        2,
        "--images",
        tmp_path / "doe",
        "--out",
        out,
        "--quiet",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "report.json").read_text())["settings"]["processes"] == 2
    assert done.stderr == "WARNING passed over: DICOMDIR files: 1\n"


def test_threads_there_are_not_are_refused_before_measuring(tmp_path: Path) -> None:
    done = run_here("bench", "--threads", 10_000, "--out", tmp_path / "out", "--quiet")
    assert done.returncode == 2
    assert done.stderr.startswith("R2G-CONFIG-VALUE: 10000 threads on ")
    assert list(tmp_path.iterdir()) == []
