"""What a report makes of what measured processes said: floors, folders, PyTorch beside it, lines on a terminal."""

from __future__ import annotations

import io
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.latency.environment import without_folders
from benchmarks.latency.measure import Measured
from benchmarks.latency.reference import verdict
from benchmarks.latency.report import assemble
from benchmarks.latency.roofline import Work, count_work
from benchmarks.latency.sentences import reference_lines
from benchmarks.latency.settings import BenchSettings, Configuration
from benchmarks.latency.trackers import Nvml, Rapl, Watch
from benchmarks.machine_rates import Machine, Rates
from r2gen_export.bundle import demo_bundle, load_manifest
from r2gen_export.candidates import ENGINE, Candidate, Reason
from r2gen_export.commands.bench import progress
from r2gen_export.errors import R2GenError
from r2gen_export.runtime.settings import resolve_settings
from tests.benchmarks.synthetic import starts

MANIFEST = load_manifest(demo_bundle())
MACHINE = Machine(2, (Rates(50.0, 100.0, 800.0, 30.0),) * 2)
TAKEN = Candidate("CPU", "all", True, Reason.fastest_usable)
ALONE = Configuration("auto", resolve_settings(MANIFEST, overrides={}), 1, 1, 2)


@pytest.fixture(scope="module")
def work() -> Work:
    return count_work(demo_bundle(), MANIFEST)


def measured(configuration: Configuration, provider: str, candidates: list[Candidate]) -> Measured:
    found = starts([[100.0, 110.0], [105.0, 100.0]])
    for start in found:
        start["loaded"][0] |= {"provider": provider, "backends": [asdict(one) for one in candidates]}
    return Measured(configuration, Watch(Rapl(), Nvml()), found)


def report(work: Work, contenders: list[Measured], bundle: Path) -> dict[str, Any]:
    settings = BenchSettings(bundle, Path("out"))
    return assemble(settings, MANIFEST, contenders, MACHINE, work=work, pictures=[(Path("x.png"),)])


@pytest.mark.parametrize(
    ("provider", "candidates", "floors"),
    [
        ("CPUExecutionProvider", [Candidate(ENGINE, "all", False, Reason.not_built), TAKEN], True),
        ("OpenVINO", [Candidate("OpenVINO", "decoder", True, Reason.measured_faster)], True),
        ("CUDAExecutionProvider", [Candidate("CUDA", "all", True, Reason.fastest_usable)], False),
        ("TensorRT-RTX", [Candidate(ENGINE, "decoder", True, Reason.fastest_usable)], False),
        ("CPUExecutionProvider", [Candidate(ENGINE, "vision", True, Reason.fastest_usable), TAKEN], False),
    ],
)
def test_floors_are_of_what_ran_not_of_what_was_asked_for(work, provider, candidates, floors):
    (one,) = report(work, [measured(ALONE, provider, candidates)], demo_bundle())["configurations"]
    assert one["device"] == "auto"
    assert ("decode" in one["roofline"]) == floors
    assert ("reason" in one["roofline"]) != floors


def test_steps_show_no_folders(work, tmp_path):
    bundle = tmp_path / "Jane Doe" / "model"
    broken = "its libraries do not load (/opt/doe/lib/libcudnn.so.9: cannot open)"
    candidates = [
        Candidate(ENGINE, "vision", False, Reason.not_built, "none built", f"r2gen build {bundle} --parts vision"),
        Candidate("CUDA", "all", False, Reason.does_not_load, broken),
        replace(TAKEN, message=f"fp16/int8 of '{Path.home() / 'x/y.so'}'"),
    ]
    (one,) = report(work, [measured(ALONE, "CPUExecutionProvider", candidates)], bundle)["configurations"]
    assert one["backends"][1] == {
        "name": "CUDA", "part": "all", "taken": False, "reason": "does-not-load", "fix": "",
        "message": "its libraries do not load (libcudnn.so.9: cannot open)",
    }  # fmt: skip
    assert one["provider_steps"] == [
        "TensorRT engine: not taken for the vision, none built (r2gen build model --parts vision)",
        "CUDA: not taken, its libraries do not load (libcudnn.so.9: cannot open)",
        "CPU: taken, fp16/int8 of 'y.so'",
    ]


def test_a_relative_bundle_is_cut_too():
    assert without_folders("r2gen build doe/model", Path("doe/model")) == "r2gen build model"
    assert without_folders("r2gen build model", Path("model")) == "r2gen build model"
    assert without_folders("none built (r2gen build .)", Path()) == "none built (r2gen build .)"


def test_pytorch_is_compared_with_single_reports_only(work):
    contenders = [
        measured(replace(ALONE, batch=batch, concurrency=together, engine=engine), "CPUExecutionProvider", [])
        for batch, together, engine in ((1, 1, "r2gen"), (2, 1, "r2gen"), (1, 2, "r2gen"), (1, 1, "torch"))
    ]
    found = report(work, contenders, demo_bundle())
    found["reference"] = verdict(contenders, found)
    assert [row["ours"] for row in found["reference"]["rows"]] == ["auto, fast"]
    found["reference"] = verdict(contenders[1:], found)
    assert found["reference"]["rows"] == []
    ((text, quotable),) = reference_lines(found)
    assert "nothing to compare" in text
    assert not quotable


class Terminal(io.StringIO):
    """Stderr of somebody who looks."""

    def isatty(self) -> bool:
        return True


def test_progress_leaves_an_empty_line(monkeypatch):
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    with progress(quiet=False) as tell:
        tell("round 3")
    assert shown.getvalue() == "\r\x1b[Kround 3\r\x1b[K"
    with pytest.raises(R2GenError), progress(quiet=False) as tell:
        tell("round 4")
        raise R2GenError("R2G-IMAGE-BLANK", "blank", "another")
    assert shown.getvalue().endswith("round 4\r\x1b[K")


def test_progress_in_a_file_is_lines_and_quiet_is_nothing(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    with progress(quiet=False) as tell:
        tell("round 3")
    with progress(quiet=True) as tell:
        tell("round 4")
    assert shown.getvalue() == "round 3\n"
