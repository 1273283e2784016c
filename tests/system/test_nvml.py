"""NVML, with a library that is compiled for it: what `doctor`, the engines and the benchmark read of one GPU."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.latency.trackers import Nvml
from r2gen_export.runtime.doctor import gpu_checks
from r2gen_export.system import nvml

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    path = tmp_path / "libnvidia-ml.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", path, Path(__file__).with_name("nvml.c")], check=True)
    monkeypatch.setattr(nvml, "LIBRARY", str(path))
    return ctypes.CDLL(str(path))


def test_doctor_shows_the_gpus_that_answer_and_lets_go_of_the_library(library: ctypes.CDLL) -> None:
    details = [(check.name, check.detail) for check in gpu_checks()]
    assert details == [
        ("NVIDIA driver", "580.65"),
        ("GPU 0", "Imitated GPU, 24.0 GiB, compute capability 8.9"),
    ]
    assert nvml.driver_version() == "580.65"
    assert library.users() == 0


def test_the_benchmark_reads_the_first_gpu(library: ctypes.CDLL) -> None:
    gpu = Nvml()
    assert gpu.reason == ""
    assert gpu.facts() == {
        "name": "Imitated GPU", "driver": "580.65", "memory_mb": 25770, "power_limit_w": 300.0,
        "clocks_mhz": {"graphics": 1000, "sm": 1001, "memory": 1002},
    }  # fmt: skip
    assert (gpu.energy_mj(), gpu.throttle_reasons()) == (5000, 0x40)
    assert gpu.memory_mb() == pytest.approx(4294.97, abs=0.01)


def test_a_machine_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "LIBRARY", str(tmp_path / "none"))
    assert nvml.driver_version() is None
    (check,) = gpu_checks()
    assert (check.status, check.detail[:6]) == ("info", "none: ")
    assert Nvml().facts() is None
