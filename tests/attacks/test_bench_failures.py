"""`r2gen bench` where it cannot work: coded errors before or during the measurement, and no half report."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.command import interrupted, limited, run_here

pytestmark = pytest.mark.slow

SHORT = ["--devices", "cpu", "--runs", 1, "--processes", 1, "--warmup", 1, "--max-new-tokens", 3, "--quiet"]


def children(parent: int) -> list[int]:
    """Processes whose parent is this one."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(status.parent.name))
    return found


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=str)
def test_an_ended_run_leaves_no_report_and_no_process(tmp_path: Path, how: signal.Signals) -> None:
    command = [sys.executable, "cli.py", "bench", "--devices", "cpu", "--runs", "5000", "--processes", "1",
               "--concurrency", "2", "--out", str(tmp_path / "out")]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=Path(__file__).parents[2], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    deadline = time.monotonic() + 120
    for line in process.stderr:
        assert time.monotonic() < deadline
        if "round 3" in line:
            break
    measured = children(process.pid)
    assert len(measured) == 2
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL)
    assert "Traceback" not in errors
    assert not (tmp_path / "out").exists()
    if how == signal.SIGINT:
        assert "interrupted" in errors
        assert list(tmp_path.iterdir()) == []
    while any(_runs(pid) for pid in measured):
        assert time.monotonic() < deadline, "a measured process outlives its parent"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("limit", [20_000, 200_000, 262_144])
def test_a_full_disk(tmp_path: Path, limit: int) -> None:
    """At the encoder's profile, and wherever else so much is written."""
    done = limited(["bench", *SHORT, "--out", tmp_path / "out"], limit)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("R2G-OUTPUT-WRITE"), done.stderr
    assert "fix: free space" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    done = run_here("bench", *SHORT, "--out", tmp_path / "out")
    tmp_path.chmod(0o700)
    assert done.returncode == 2
    assert done.stderr.startswith("R2G-OUTPUT-WRITE")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    done = run_here("bench", *SHORT, "--out", tmp_path / "file" / "out")
    assert done.returncode == 2
    assert done.stderr.startswith("R2G-OUTPUT-WRITE")


def test_it_does_not_overwrite(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("mine", encoding="utf-8")
    done = run_here("bench", *SHORT, "--out", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("R2G-OUTPUT-EXISTS")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--devices", "cuda"], "R2G-DEVICE-UNAVAILABLE"),
        (["--devices", "cpu,tensorrt"], "R2G-DEVICE-UNAVAILABLE"),
        (["--devices", "quantum"], "R2G-CONFIG-VALUE"),
        (["--devices", ","], "R2G-CONFIG-VALUE"),
        (["--presets", "slow"], "R2G-CONFIG-VALUE"),
        (["--batch", "0"], "R2G-CONFIG-VALUE"),
        (["--batch", "two"], "R2G-CONFIG-VALUE"),
        (["--concurrency", "-1"], "R2G-CONFIG-VALUE"),
        (["--runs", "2", "--processes", "3"], "R2G-CONFIG-VALUE"),
        (["--max-new-tokens", "5000"], "R2G-CONFIG-VALUE"),
        (["--reference", "torch"], "R2G-CONFIG-VALUE"),
        (["--baseline", "nowhere"], "R2G-BENCH-FORMAT"),
        (["--peers", "nowhere"], "R2G-BENCH-FORMAT"),
        (["--images", "nowhere"], "R2G-IMAGE-MISSING"),
        (["nowhere"], "R2G-BUNDLE-MISSING"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path: Path, arguments: list[str], code: str) -> None:
    if "cuda" in arguments and Path("/dev/nvidia0").exists():
        pytest.skip("this machine has a GPU")
    done = run_here("bench", *SHORT, *arguments, "--out", tmp_path / "out")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(code), done.stderr
    assert "fix: " in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_no_images(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = run_here("bench", *SHORT, "--images", tmp_path / "empty", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.startswith("R2G-DATA-EMPTY")
    assert not (tmp_path / "out").exists()


def test_a_bad_image_is_named_by_its_number(tmp_path: Path) -> None:
    """Its name may be a patient's."""
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(images / "Doe_John.png")
    done = run_here("bench", *SHORT, "--images", images, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.startswith("R2G-IMAGE-BLANK")
    assert "Doe" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_names_of_images_are_in_no_output(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    shade = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    Image.fromarray(shade).save(images / "Doe_John.png")
    done = run_here("bench", *SHORT, "--images", images, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    texts = [done.stdout, done.stderr, *(path.read_text(encoding="utf-8") for path in (tmp_path / "out").iterdir())]
    assert not [text for text in texts if "Doe" in text]


def test_a_killed_measured_process_is_an_error(tmp_path: Path) -> None:
    """What the system does to a process for which there is no memory."""
    status, errors = interrupted(
        ["bench", "--devices", "cpu", "--runs", 5000, "--processes", 1, "--out", tmp_path / "out"],
        _Killer(),
        how=signal.SIGCONT,
    )
    assert status == 2, errors
    assert "R2G-RESOURCE-MEMORY" in errors
    assert list(tmp_path.iterdir()) == []


class _Killer:
    """Called until it has killed the measured process of the run that this test started."""

    def __call__(self) -> bool:
        for run in children(os.getpid()):
            for measured in children(run):
                command = Path(f"/proc/{measured}/cmdline").read_bytes()
                if b"benchmarks.latency.worker_process" in command:
                    os.kill(measured, signal.SIGKILL)
                    return True
        return False


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("baseline") / "out"
    done = run_here("bench", *SHORT, "--out", out)
    assert done.returncode == 0, done.stderr
    return dict(json.loads((out / "report.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("where", "key", "value"),
    [
        (("bundle",), "id", "0" * 12),
        (("settings",), "images_digest", "0" * 12),
        (("settings",), "draft", False),
        (("configurations", 0), "threads", 99),
        (("configurations", 0), "semantics", "hf-4.30"),
        (("configurations", 0, "decoding"), "num_beams", 7),
    ],
)
def test_a_baseline_of_other_conditions_is_refused_before_measuring(
    baseline: dict[str, Any], tmp_path: Path, where: tuple[Any, ...], key: str, value: object
) -> None:
    done = measured_against(baseline, tmp_path, where, key, value)
    assert done.returncode == 2
    assert "R2G-BENCH-CONDITIONS: the baseline is not comparable: " in done.stderr
    assert str(value) in done.stderr
    assert "process 1" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_what_was_measured_is_kept_when_only_that_shows_the_baseline_is_of_no_use(
    baseline: dict[str, Any], tmp_path: Path
) -> None:
    done = measured_against(baseline, tmp_path, ("configurations", 0), "provider", "CUDAExecutionProvider")
    assert done.returncode == 2
    assert "R2G-BENCH-CONDITIONS" in done.stderr
    assert "CUDAExecutionProvider against CPUExecutionProvider" in done.stderr
    assert "the report is written, without a comparison" in done.stderr
    report = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))
    assert report["comparison"] is None
    assert report["configurations"][0]["metrics"]["total"]["n"] == 1


def measured_against(
    baseline: dict[str, Any], folder: Path, where: tuple[Any, ...], key: str, value: object
) -> subprocess.CompletedProcess[str]:
    """A run against the baseline with one field changed."""
    changed = copy.deepcopy(baseline)
    place: Any = changed
    for step in where:
        place = place[step]
    assert place[key] != value
    place[key] = value
    path = folder / "baseline.json"
    path.write_text(json.dumps(changed), encoding="utf-8")
    return run_here("bench", *[one for one in SHORT if one != "--quiet"], "--baseline", path, "--out", folder / "out")
