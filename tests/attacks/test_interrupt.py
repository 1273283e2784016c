"""Ctrl-C in the middle of export and train: exit status 130, no traceback, no half artefact; training resumes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.conftest import TinySources
from tests.tiny import make_annotation

ROOT = Path(__file__).parents[2]


def interrupted(arguments: list[object], begun: Callable[[], bool]) -> tuple[int, str]:
    """Start r2gen, send SIGINT as soon as `begun`, wait for its end. Returns exit status and stderr."""
    command = [sys.executable, str(ROOT / "cli.py"), *map(str, arguments)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"})
    deadline = time.monotonic() + 120
    while not begun():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


def test_export(tiny_sources: TinySources, tmp_path: Path) -> None:
    status, errors = interrupted(
        ["export", "--checkpoint", tiny_sources.checkpoint, "--vision", tiny_sources.vision,
         "--llm", tiny_sources.llm, "--out", tmp_path / "bundle"],
        lambda: any(tmp_path.glob(".bundle.*.part/embed_tokens.npy")),
    )  # fmt: skip
    assert status == 130, errors
    assert "Traceback" not in errors
    assert "interrupted" in errors
    assert list(tmp_path.iterdir()) == []


def test_train_can_be_resumed(tiny_sources: TinySources, tmp_path: Path) -> None:
    annotation = make_annotation(tmp_path / "data")
    out = tmp_path / "run"
    arguments: list[object] = [
        "train", "--annotation", annotation, "--base-dir", tmp_path / "data/images", "--vision", tiny_sources.vision,
        "--llm", tiny_sources.llm, "--dataset", "iu_xray", "--out", out, "--epochs", 400, "--batch-size", 4,
    ]  # fmt: skip
    status, errors = interrupted(arguments, (out / "last.ckpt").exists)
    assert status == 130, errors
    assert "Traceback" not in errors
    assert not list(out.rglob("*.part"))
    state = (out / "last.ckpt").stat().st_mtime_ns
    status, errors = interrupted([*arguments, "--resume"], lambda: (out / "last.ckpt").stat().st_mtime_ns != state)
    assert status == 130, errors
