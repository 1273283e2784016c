"""mypy over `trt_engines` against the real API of each TensorRT release, and proof that this check bites."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trt_engines import stubs
from tests.trt_engines.double import Double

ROOT = Path(__file__).parents[2]
MISTAKES = Path(__file__).with_name("seeded_mistakes.py")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mypy's own: what it found of the packages that all its runs read."""
    return tmp_path_factory.mktemp("mypy")


def _mypy(folder: Path, cache: Path, *paths: Path) -> list[str]:
    """Lines of mypy, run from the project's root with its settings. `folder`: holds the stubs."""
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(cache), "--no-error-summary", *map(str, paths)]
    found = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "MYPYPATH": str(folder)}, capture_output=True, text=True, check=False
    )
    assert found.returncode in (0, 1), found.stdout + found.stderr
    return [line for line in found.stdout.splitlines() if ": error: " in line]


@pytest.mark.parametrize("release", list(stubs.RELEASES))
def test_the_package_keeps_to_the_api_of_every_release_and_every_seeded_mistake_is_found(
    release: str, stub_folder: Callable[[str], Path], cache: Path
) -> None:
    wanted = {}
    for number, line in enumerate(MISTAKES.read_text(encoding="utf-8").splitlines(), start=1):
        if found := re.search(r"# caught(?: on ([\w., -]+))?: ([\w-]+)$", line):
            releases = found[1].split(", ") if found[1] else list(stubs.RELEASES)
            if release in releases:
                wanted[number] = found[2]
    lines = _mypy(stub_folder(release), cache, ROOT / "trt_engines", MISTAKES)
    seeded = [line for line in lines if MISTAKES.name in line]
    assert [line for line in lines if line not in seeded] == []
    errors = [re.match(r".*?:(\d+): error: .*\[([\w-]+)\]$", line) for line in seeded]
    assert {int(one[1]): one[2] for one in errors if one} == wanted
    assert len(wanted) >= 28


def test_without_stubs_nothing_is_checked_and_nothing_fails(tmp_path: Path, cache: Path) -> None:
    """The project's own mypy run, on machines without the bindings, takes TensorRT for Any."""
    assert _mypy(tmp_path, cache, ROOT / "trt_engines") == []


def test_the_double_refuses_what_the_api_does_not_have(stub_file: Path) -> None:
    double = Double(stub_file, {"Runtime.deserialize_cuda_engine": lambda this, content: 5})
    trt = double.module
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    for wrong in (
        trt.Runtime,
        lambda: trt.Runtime(3),
        lambda: trt.Runtime(logger=trt.Logger(), more=1),
        lambda: runtime.deserialize_cuda_engine("engine.plan"),
    ):
        with pytest.raises(TypeError):
            wrong()
    for missing in (
        lambda: trt.Runtimes,
        lambda: runtime.load,
        lambda: trt.TensorIOMode.IN,
        lambda: setattr(runtime, "log", 1),
    ):
        with pytest.raises(AttributeError):
            missing()
    with pytest.raises(AssertionError, match="has no answer"):
        trt.Runtime(trt.Logger()).get_plugin_registry()
    with pytest.raises(AssertionError, match="which is not ICudaEngine"):
        runtime.deserialize_cuda_engine(b"plan")
    assert double.names("Runtime")[0] == "__init__"
