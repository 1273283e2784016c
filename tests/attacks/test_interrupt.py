"""Signals in the middle of infer, export, phantom, train: exit status, no traceback, no half artefact; work is kept."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from r2gen_export.bundle import open_bundle
from tests.command import CLI, interrupted, run_here
from tests.conftest import TinySources
from tests.helpers.tiny import make_annotation

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    for number in range(300):
        shutil.copy(ROOT / "tests/data/phantom.png", folder / f"{number:03}.png")
    return folder


ENDS = [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "ended by SIGTERM"),
        (signal.SIGHUP, 129, "ended by SIGHUP")]  # fmt: skip


@pytest.mark.parametrize(("how", "expected", "said"), ENDS, ids=lambda value: getattr(value, "name", ""))
def test_finished_reports_outlive_a_signal(
    many: Path, tmp_path: Path, how: signal.Signals, expected: int, said: str
) -> None:
    """They are in FILE.partial, whole lines each, and stderr says so; nothing hidden is left, nor FILE."""
    out, partial = tmp_path / "reports.jsonl", tmp_path / "reports.jsonl.partial"
    command = ["infer", many, "--format", "json", "--preset", "fast", "--batch-size", 2, "--quiet", "--out", out]
    status, errors = interrupted(command, lambda: partial.exists() and partial.read_bytes().count(b"\n") >= 4, how=how)
    assert status == expected, errors
    assert list(tmp_path.iterdir()) == [partial]
    lines = partial.read_text().splitlines(keepends=True)
    assert [json.loads(line)["study"] for line in lines] == list(range(1, len(lines) + 1))
    assert 4 <= len(lines) < 300
    told = f"{partial} has the {len(lines)} of 300 studies that were finished"
    assert errors.splitlines() == [f"{told}; the same command with --resume does the rest", said]
    refused = subprocess.run([*CLI, *map(str, command)], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "R2G-OUTPUT-EXISTS" in refused.stderr and "reports of a run that was stopped" in refused.stderr


def test_a_signal_before_the_first_report_leaves_nothing(many: Path, tmp_path: Path) -> None:
    out = tmp_path / "reports.jsonl"
    command = ["infer", many, "--format", "json", "--batch-size", 300, "--out", out]
    status, errors = interrupted(command, (tmp_path / "reports.jsonl.partial").exists, how=signal.SIGTERM)
    assert status == 143, errors
    assert list(tmp_path.iterdir()) == []
    assert errors.endswith("\nended by SIGTERM\n")


def test_stdout_ends_with_a_whole_line(many: Path, tmp_path: Path) -> None:
    written = tmp_path / "stdout"
    command = [*CLI, "infer", str(many), "--format", "json", "--preset", "fast", "--batch-size", "1"]
    with written.open("wb") as stdout:
        process = subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True)
        while written.read_bytes().count(b"\n") < 3 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    lines = written.read_text().splitlines(keepends=True)
    assert all(line.endswith("}\n") and json.loads(line) for line in lines)
    assert f"stdout has the {len(lines)} of 300 studies that were finished" in errors


def export(sources: TinySources, out: Path) -> list[object]:
    return ["export", "--checkpoint", sources.checkpoint, "--vision", sources.vision, "--llm", sources.llm,
            "--out", out, "--parity-tokens", 3, "--for", "cpu"]  # fmt: skip


@pytest.mark.parametrize(
    ("written", "delay", "end"),
    [
        ("embed_tokens.npy", 1.0, ENDS[0]),
        ("vision.onnx", 0.0, ENDS[0]),
        ("embed_tokens.npy", 1.0, ENDS[1]),
        ("embed_tokens.npy", 0.0, ENDS[2]),
    ],
    ids=lambda value: value[0].name if isinstance(value, tuple) else str(value),
)
def test_export(
    tiny_sources: TinySources, tmp_path: Path, written: str, delay: float, end: tuple[signal.Signals, int, str]
) -> None:
    """Before, and in the middle of, the two traces: torch's tracers take an exception for a failed conversion.

    Each place and each signal; that every signal ends every command is shown above.
    """
    how, expected, said = end
    status, errors = interrupted(
        export(tiny_sources, tmp_path / "bundle"),
        lambda: any(tmp_path.glob(f".bundle.*.part/{written}")),
        how=how,
        delay=delay,
    )
    assert status == expected, errors
    assert "Traceback" not in errors
    assert said in errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("how", "expected", "said"), ENDS, ids=lambda value: getattr(value, "name", ""))
def test_phantom(tmp_path: Path, how: signal.Signals, expected: int, said: str) -> None:
    command: list[object] = ["phantom", "--out", tmp_path / "data", "--studies", 2000]
    status, errors = interrupted(command, lambda: any(tmp_path.glob(".data.*.part/images/*")), how=how)
    assert status == expected, errors
    assert errors.endswith(f"{said}\n") and "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def test_a_killed_export_leaves_no_bundle_and_can_be_repeated(tiny_sources: TinySources, tmp_path: Path) -> None:
    command = export(tiny_sources, tmp_path / "bundle")
    status, _ = interrupted(
        command, lambda: any(tmp_path.glob(".bundle.*.part/vision.onnx")), how=signal.SIGKILL
    )  # fmt: skip
    assert status == -signal.SIGKILL
    assert not (tmp_path / "bundle").exists()
    assert run_here(*command).returncode == 0
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
