"""Type stubs of every TensorRT release, made once, and the module of `cuda-bindings`."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.shared import key_of, made_once
from tests.trt_engines import stubs

CUDA_BINDINGS = "cuda-bindings==13.5.0"


@pytest.fixture(scope="session")
def stub_folder() -> Callable[[str], Path]:
    """What belongs on mypy's path for a release; downloads its bindings and compiles when first asked for it."""
    if stubs.compiler() is None:
        pytest.skip("no C compiler (cc): the TensorRT bindings cannot be made to import")

    @cache
    def folder(name: str) -> Path:
        key = key_of(Path(stubs.__file__), stubs.SOURCE)
        return made_once(f"stubs-{name}", lambda folder: stubs.make_stubs(name, folder), key=key) / "stubs"

    return folder


@pytest.fixture(scope="session", params=list(stubs.RELEASES))
def stub_file(request: pytest.FixtureRequest, stub_folder: Callable[[str], Path]) -> Path:
    """The stub of each release in turn."""
    return stub_folder(request.param) / stubs.PACKAGE / "__init__.pyi"


@pytest.fixture(autouse=True)
def driver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever works with a fake GPU has one, as far as the driver is asked before a plan is loaded."""
    if "cuda_runtime" in request.fixturenames:
        monkeypatch.setattr("trt_engines.plans.why_no_gpu", lambda: "")


@pytest.fixture(scope="session")
def cuda_runtime() -> Any:
    """The real `cuda.bindings.runtime`: it imports without a driver. Fetched where it is not installed."""
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError:
        sys.path.append(str(made_once("cuda", _install_cuda, key=key_of(Path(__file__)))))
        importlib.invalidate_caches()
        return importlib.import_module("cuda.bindings.runtime")


def _install_cuda(folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), CUDA_BINDINGS]
    subprocess.run(command, check=True)
