"""A disk that fills up during export or train: one coded error, nothing half, and the run goes on with more space.

A limit on the size of each file stands for the full disk: the write fails in the same calls, with another errno.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from r2gen_export.training.checkpoint import read_config
from tests.conftest import TinySources
from tests.tiny import make_annotation

ROOT = Path(__file__).parents[2]


def limited(arguments: list[object], limit: int) -> subprocess.CompletedProcess[str]:
    """r2gen in a process that can write no file beyond `limit` bytes."""
    return subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )


def assert_coded(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    error, fix = done.stderr.splitlines()[-2:]
    assert error.startswith("R2G-OUTPUT-WRITE"), done.stderr
    assert "File too large" in error
    assert fix.startswith("  fix: ")


@pytest.mark.parametrize("limit", [2_000, 10_000, 25_000, 60_000])
def test_export(tiny_sources: TinySources, tmp_path: Path, limit: int) -> None:
    """At the tokenizer, the embeddings, the vision encoder and the decoder."""
    command = ["export", "--checkpoint", tiny_sources.checkpoint, "--vision", tiny_sources.vision,
               "--llm", tiny_sources.llm, "--out", tmp_path / "bundle", "--for", "cpu"]  # fmt: skip
    assert_coded(limited(command, limit))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", [500, 900, 2_600, 5_000])
def test_train(tiny_sources: TinySources, tmp_path: Path, limit: int) -> None:
    """At the settings, the feature cache, the checkpoint and the state to resume from."""
    annotation = make_annotation(tmp_path / "data")
    run = tmp_path / "run"
    command = ["train", "--annotation", annotation, "--base-dir", annotation.parent / "images",
               "--vision", tiny_sources.vision, "--llm", tiny_sources.llm, "--dataset", "iu_xray", "--out", run,
               "--epochs", 2, "--batch-size", 4]  # fmt: skip
    assert_coded(limited(command, limit))
    assert not list(run.rglob("*.part"))
    assert not (run / "last.ckpt").exists()
    for checkpoint in (run / "best", run / "last"):
        if checkpoint.exists():
            read_config(checkpoint)
    done = limited([*command, "--resume"], 10_000_000)
    assert done.returncode == 0, done.stderr
    assert read_config(run / "best").alignment == "shallow"
