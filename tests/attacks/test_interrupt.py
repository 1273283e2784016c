"""Ctrl-C in the middle of export and train: exit status 130, no traceback, no half artefact; training resumes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from r2gen_export.bundle import open_bundle
from tests.conftest import TinySources
from tests.tiny import make_annotation

ROOT = Path(__file__).parents[2]


def interrupted(
    arguments: list[object], begun: Callable[[], bool], *, how: signal.Signals = signal.SIGINT, delay: float = 0.0
) -> tuple[int, str]:
    """Start r2gen, send a signal `delay` s after `begun`, wait for its end. Returns exit status and stderr."""
    command = [sys.executable, str(ROOT / "cli.py"), *map(str, arguments)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"})
    deadline = time.monotonic() + 120
    while not begun():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(delay)
    process.send_signal(how)
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


def export(sources: TinySources, out: Path) -> list[object]:
    return ["export", "--checkpoint", sources.checkpoint, "--vision", sources.vision, "--llm", sources.llm,
            "--out", out, "--parity-tokens", 3, "--for", "cpu"]  # fmt: skip


@pytest.mark.parametrize(
    ("written", "delay"), [("embed_tokens.npy", 0.0), ("embed_tokens.npy", 1.0), ("vision.onnx", 0.3)], ids=str
)
def test_export(tiny_sources: TinySources, tmp_path: Path, written: str, delay: float) -> None:
    """Before, and in the middle of, the two traces: torch's tracers take an exception for a failed conversion."""
    status, errors = interrupted(
        export(tiny_sources, tmp_path / "bundle"),
        lambda: any(tmp_path.glob(f".bundle.*.part/{written}")),
        delay=delay,
    )
    assert status == 130, errors
    assert "Traceback" not in errors
    assert "interrupted" in errors
    assert list(tmp_path.iterdir()) == []


def test_a_killed_export_leaves_no_bundle_and_can_be_repeated(tiny_sources: TinySources, tmp_path: Path) -> None:
    command = export(tiny_sources, tmp_path / "bundle")
    status, _ = interrupted(
        command, lambda: any(tmp_path.glob(".bundle.*.part/vision.onnx")), how=signal.SIGKILL
    )  # fmt: skip
    assert status == -signal.SIGKILL
    assert not (tmp_path / "bundle").exists()
    done = subprocess.run([sys.executable, str(ROOT / "cli.py"), *map(str, command)], capture_output=True, check=False)
    assert done.returncode == 0
    assert open_bundle(tmp_path / "bundle").parity


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
