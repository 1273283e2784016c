"""ONNX Runtime's CUDA provider over an imitated CUDA runtime: real partitioning and copies, kernels that do nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.shared import made_once

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("program.py")

Run = Callable[..., Any]


@pytest.fixture(scope="session")
def imitated(run_folder: Path) -> Path:
    """A folder for LD_LIBRARY_PATH; the test is skipped where it cannot be compiled."""
    from benchmarks.gpu.imitated import build, why_not

    if reason := why_not():
        pytest.skip(reason)
    return made_once("imitated", build, place=run_folder)


def environment(folder: Path | None, **variables: str) -> dict[str, str]:
    """Of a process that has the imitated GPU, or none."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    found = {**os.environ, **variables, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    if folder is not None:
        found["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, [str(folder), os.environ.get("LD_LIBRARY_PATH", "")]))
    return found


@pytest.fixture
def run_program() -> Run:
    """Call a function of `program.py` in a process of its own: its JSON answer."""

    def run(folder: Path | None, name: str, *arguments: object, **variables: str) -> Any:
        command = [sys.executable, str(PROGRAM), name, *map(str, arguments)]
        done = subprocess.run(
            command, env=environment(folder, **variables), capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    return run
