"""Which releases are taken, and that none is asked for what ends a process without a GPU."""

from __future__ import annotations

import importlib.machinery
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from r2gen_export.errors import R2GenError
from r2gen_export.system.gpu import Gpu, gpu
from tests.trt_engines import stubs
from tests.trt_engines.fake_cuda import FakeRuntime
from tests.trt_engines.graphs import needs_rtx
from trt_engines import plans, probe
from trt_engines.backends import OLDEST, Backend, load_backend, version_numbers
from trt_engines.builder import Order, Plan, Toolchain, inspect_plan
from trt_engines.cuda import Cuda
from trt_engines.identity import PLAN
from trt_engines.probe import INSTALL, probe_bindings
from trt_engines.runner import EngineRunner
from trt_engines.worker import NETWORK, _describe

ROOT = Path(__file__).parents[2]
LEAN_WHEELS = ("tensorrt-lean-cu13-libs==11.4.0.106", "tensorrt-lean-cu13-bindings==11.4.0.106")
INSUFFICIENT = "CUDA initialization failure with error: 35"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts a module in the place of TensorRT's bindings, or beside them."""
    monkeypatch.setitem(probe.BINDINGS, "TensorRT", ("imitated_tensorrt",))

    def install(name: str, version: str) -> None:
        module = ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.__version__ = version  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)

    return install


@pytest.mark.parametrize("version", ["10.14.1.48", "9.9"])
def test_a_release_without_the_cache_in_place_is_refused(installed: Any, version: str) -> None:
    installed("imitated_tensorrt", version)
    with pytest.raises(R2GenError, match=f"TensorRT: version {version} found, 10.15 or newer needed") as caught:
        load_backend("tensorrt")
    assert caught.value.code == "R2G-ENGINE-BACKEND"
    assert caught.value.fix == "pip install 'tensorrt>=10.15,<12'"


def test_the_oldest_release_admitted_is_the_one_tested(installed: Any) -> None:
    oldest = "10.15.1.29"
    assert stubs.RELEASES["10.15"].wheel.endswith(oldest)
    assert OLDEST["tensorrt"] == version_numbers(oldest)[:2]
    installed("imitated_tensorrt", oldest)
    assert load_backend("tensorrt").version == oldest
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    (required,) = (one.partition(";")[0] for one in extras["tensorrt"] if one.startswith("tensorrt"))
    assert INSTALL["TensorRT"] == f"pip install '{required}'"
    assert ">=10.15," in required


def test_the_lean_runtime_alone_is_refused_with_what_it_is_for(installed: Any) -> None:
    """To build and to load: `r2gen build` and every engine of TensorRT's go through `load_backend`."""
    (nothing,) = (one for one in probe_bindings() if one.product == "TensorRT")
    assert nothing.reason == "not installed (pip install 'tensorrt>=10.15,<12')"
    installed("tensorrt_lean_bindings", "11.4.0.106")
    (probed,) = (one for one in probe_bindings() if one.product == "TensorRT")
    assert not probed.usable
    said = "not installed but for its lean runtime: runs version-compatible plans only, r2gen builds none yet"
    assert probed.reason == f"{said} ({INSTALL['TensorRT']})"
    with pytest.raises(R2GenError) as caught:
        load_backend("tensorrt")
    assert caught.value.code == "R2G-ENGINE-BACKEND"
    assert caught.value.message == f"no backend for engines: TensorRT: {said}"
    assert caught.value.fix == INSTALL["TensorRT"]


class _Logger:
    Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1)
    INTERNAL_ERROR, ERROR = 0, 1


def deadly(said: str = "") -> Backend:
    """TensorRT as its lean release is without a driver: an object comes, and what it is asked then ends the process."""

    class Runtime:
        def __init__(self, logger: Any) -> None:
            if said:
                logger.log(_Logger.Severity.ERROR, said)

        def deserialize_cuda_engine(self, content: Any) -> None:
            raise SystemExit("signal 11")

    def builder(logger: Any) -> None:
        raise SystemExit("signal 11")

    return Backend("tensorrt", SimpleNamespace(ILogger=_Logger, Runtime=Runtime, Builder=builder), "11.4.0.106")


@pytest.fixture
def new_cuda(cuda_runtime: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Cuda]:
    """A fake GPU beside a driver that gives this reason why there is none."""

    def make(no_gpu: str) -> Cuda:
        monkeypatch.setattr(plans, "why_no_gpu", lambda: no_gpu)
        return Cuda(FakeRuntime(cuda_runtime))

    return make


def run(folder: Path, backend: Backend, cuda: Cuda) -> None:
    EngineRunner(folder / PLAN, backend, cuda)


def inspect(folder: Path, backend: Backend, cuda: Cuda) -> None:
    inspect_plan(backend, (folder / PLAN).read_bytes())


@pytest.mark.parametrize("load", [run, inspect])
@pytest.mark.parametrize(
    "case",
    [
        (
            "the NVIDIA driver shows no GPU",
            "",
            "R2G-DEVICE-UNAVAILABLE: TensorRT 11.4.0.106 loads .* on a GPU only: the NVIDIA driver shows no GPU",
        ),
        ("", INSUFFICIENT, f"R2G-ENGINE-BACKEND: TensorRT 11.4.0.106 does not start: {INSUFFICIENT}"),
    ],
    ids=["no GPU", "old driver"],
)
def test_nothing_is_deserialised_without_a_gpu_and_a_runtime_that_starts(
    tmp_path: Path, new_cuda: Callable[[str], Cuda], load: Any, case: tuple[str, str, str]
) -> None:
    no_gpu, said, wanted = case
    (tmp_path / PLAN).write_bytes(b"a plan")
    with pytest.raises(R2GenError, match=wanted):
        load(tmp_path, deadly(said), new_cuda(no_gpu))


def test_tensorrt_makes_no_builder_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trt_engines.builder.why_no_gpu", lambda: "no NVIDIA driver on this machine")
    with pytest.raises(R2GenError, match="starts no builder: no NVIDIA driver on this machine") as caught:
        Toolchain(deadly())
    assert caught.value.code == "R2G-ENGINE-BACKEND"
    assert "--backend tensorrt-rtx" in caught.value.fix


def test_a_plan_that_cannot_be_inspected_is_described_by_its_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan is built by then, and is not lost for that."""
    monkeypatch.setattr("trt_engines.worker.gpu", lambda: Gpu("a GPU", "8.9"))
    monkeypatch.setattr(plans, "why_no_gpu", lambda: "")
    plan = Plan(b"a plan", (), [{"name": "product"}], b"")
    assert _describe(deadly(INSUFFICIENT), plan, Order((), (), False)) == (plan.layers, NETWORK)


LOADING = """
import tensorrt_lean_bindings as lean
from trt_engines import plans
from trt_engines.backends import Backend
from trt_engines.probe import probe_bindings
print(next(one.reason for one in probe_bindings() if one.product == "TensorRT"))
backend = Backend("tensorrt", lean, lean.__version__)
for ask in (plans.why_no_gpu, lambda: ""):
    plans.why_no_gpu = ask
    try:
        plans.load_plan(backend, b"no plan" * 100, "an engine")
    except plans.R2GenError as error:
        print(error.code, error.message)
"""
CRASHING = """
import tensorrt_lean_bindings as lean
runtime = lean.Runtime(lean.Logger())
assert runtime is not None
runtime.deserialize_cuda_engine(b"no plan" * 100)
"""


@pytest.mark.slow
@needs_rtx
@pytest.mark.skipif(gpu() is not None, reason="with a GPU the runtime starts")
def test_the_lean_release_of_nvidia_does_not_end_the_process(tmp_path: Path) -> None:
    """44 MB: the one TensorRT whose libraries are on the package index. Without the guard it does end it."""
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(tmp_path), *LEAN_WHEELS], check=True
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    found = [
        subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
        for program in (LOADING, CRASHING)
    ]
    assert [one.returncode for one in found] == [0, -11], found[0].stderr
    reason, without_gpu, without_driver = found[0].stdout.splitlines()
    assert "lean runtime: runs version-compatible plans only" in reason
    assert without_gpu.startswith("R2G-DEVICE-UNAVAILABLE TensorRT 11.4.0.106 loads an engine on a GPU only")
    assert without_driver.startswith("R2G-ENGINE-BACKEND TensorRT 11.4.0.106 does not start: ")
    assert "error: 35" in without_driver
