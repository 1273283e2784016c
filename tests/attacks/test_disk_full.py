"""A disk that fills up during export or train: one coded error, nothing half, and the run goes on with more space.

A limit on the size of each file stands for the full disk: the write fails in the same calls, with another errno.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from r2gen_export.training.checkpoint import read_config
from tests.command import ROOT
from tests.conftest import TinySources
from tests.helpers.tiny import make_annotation

SEVERAL = """
import contextlib, io, json, resource, sys
sys.path.insert(0, {root!r})
import cli, torch
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
told = []
for limit, command in json.loads({calls!r}):
    stdout, stderr, status = io.StringIO(), io.StringIO(), 0
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            cli.app(command)
        except SystemExit as end:
            status = end.code
    told.append([status, stdout.getvalue(), stderr.getvalue()])
print(json.dumps(told))
"""


def several(calls: list[tuple[int, list[object]]]) -> list[subprocess.CompletedProcess[str]]:
    """Commands one after the other, each with its limit, in one process that imports torch once."""
    plain = json.dumps([[limit, [str(word) for word in command]] for limit, command in calls])
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL.format(root=str(ROOT), calls=plain)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    return [
        subprocess.CompletedProcess(command, status or 0, stdout, stderr)
        for (_, command), (status, stdout, stderr) in zip(calls, told, strict=True)
    ]


def assert_coded(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    error, fix = done.stderr.splitlines()[-2:]
    assert error.startswith("R2G-OUTPUT-WRITE"), done.stderr
    assert "File too large" in error
    assert fix.startswith("  fix: ")


@pytest.mark.slow
def test_export(tiny_sources: TinySources, tmp_path: Path) -> None:
    """At the tokenizer, the embeddings, the vision encoder and the decoder."""
    command = ["export", "--checkpoint", tiny_sources.checkpoint, "--vision", tiny_sources.vision,
               "--llm", tiny_sources.llm, "--out", tmp_path / "bundle", "--for", "cpu"]  # fmt: skip
    for done in several([(limit, command) for limit in (2_000, 10_000, 25_000, 60_000)]):
        assert_coded(done)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_train(tiny_sources: TinySources, tmp_path: Path) -> None:
    """At the settings, the feature cache, the checkpoint and the state to resume from."""
    annotation = make_annotation(tmp_path / "data")
    runs = {limit: tmp_path / f"run{limit}" for limit in (500, 900, 2_600, 5_000)}
    commands = {
        limit: ["train", "--annotation", annotation, "--base-dir", annotation.parent / "images",
                "--vision", tiny_sources.vision, "--llm", tiny_sources.llm, "--dataset", "iu_xray", "--out", run,
                "--epochs", 2, "--batch-size", 4]
        for limit, run in runs.items()
    }  # fmt: skip
    for done in several(list(commands.items())):
        assert_coded(done)
    for run in runs.values():
        assert not list(run.rglob("*.part"))
        assert not (run / "last.ckpt").exists()
        for checkpoint in (run / "best", run / "last"):
            if checkpoint.exists():
                read_config(checkpoint)
    for done in several([(10_000_000, [*command, "--resume"]) for command in commands.values()]):
        assert done.returncode == 0, done.stderr
    for run in runs.values():
        assert read_config(run / "best").alignment == "shallow"
