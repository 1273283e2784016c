"""`r2gen label`: its output file and a reader of its output that goes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from tests.command import CLI, ROOT, run_here


def reports(path: Path, count: int) -> Path:
    path.write_text("".join(json.dumps({"id": n, "report": "No pneumothorax."}) + "\n" for n in range(count)))
    return path


def test_a_reader_that_goes_is_no_fault_of_the_file(tmp_path: Path) -> None:
    file = reports(tmp_path / "reports.jsonl", 500)
    with subprocess.Popen(
        [*CLI, "label", str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["labels"]["Pneumothorax"] == "negative"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_an_output_that_is_there_is_refused_with_options_that_label_has(tmp_path: Path) -> None:
    file, out = reports(tmp_path / "reports.jsonl", 1), tmp_path / "labels.jsonl"
    out.write_text("of an earlier run")
    refused = run_here("label", file, "--out", out)
    assert refused.returncode == 2
    assert refused.stderr.endswith("fix: name another file, or add --overwrite\n")
    assert out.read_text() == "of an earlier run"
    assert run_here("label", file, "--out", out, "--overwrite").returncode == 0
    assert json.loads(out.read_text())["id"] == 0
