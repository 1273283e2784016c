"""The ladder's first rung, in processes of their own: an imitated driver, real bindings, engines that cannot run."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from r2gen_export.bundle import bundle_id, demo_bundle, load_manifest
from r2gen_export.candidates import Reason, render
from r2gen_export.errors import R2GenError
from r2gen_export.runtime.backends.select import EngineCandidates
from r2gen_export.system.gpu import gpu
from trt_engines.backends import Backend
from trt_engines.identity import PLAN, EngineIdentity, platform_name, read_identity, verify_plan
from trt_engines.select import Fitting, find_engines
from trt_engines.store import Engine, source_sha256

ROOT = Path(__file__).parents[2]
PHANTOM = ROOT / "tests/data/phantom.png"
COMMAND = [sys.executable, str(ROOT / "cli.py")]
NO_PLAN = b"no plan"


@pytest.fixture(scope="module")
def machine(
    stub_folder: Callable[[str], Path], cuda_runtime: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Environment of a machine with a driver and TensorRT-RTX, neither of which can do work, and cuda-bindings."""
    made = stub_folder("rtx-1.7").parent
    folder = tmp_path_factory.mktemp("driver")
    library = folder / "libcuda.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, Path(__file__).with_name("driver.c")], check=True)
    paths = {
        "PYTHONPATH": [str(made / "site"), str(ROOT), str(Path(cuda_runtime.__file__).parents[2])],
        "LD_LIBRARY_PATH": [str(folder), str(made / "native")],
    }
    return {
        **os.environ,
        **{
            name: os.pathsep.join([*added, os.environ.get(name, "")]).strip(os.pathsep) for name, added in paths.items()
        },
    }


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_bundle(), tmp_path / "bundle"))


def add_engine(bundle: Path, part: str, *, capability: str, backend: str = "tensorrt-rtx", created: str = "1") -> Path:
    """An engine's folder as a build leaves it; its plan is none."""
    manifest = load_manifest(bundle)
    folder = bundle / "engines" / f"{backend}-{capability}-{created}" / part
    folder.mkdir(parents=True)
    (folder / PLAN).write_bytes(NO_PLAN)
    EngineIdentity(
        backend=backend, version="1.7.1.116", platform=platform_name(), compute_capabilities=(capability,), gpu=None,
        driver=None, part=part, precision="fp16", asked="fp16", dialect=manifest.dialect, bundle_id=bundle_id(manifest),
        source_sha256=source_sha256(manifest, part), onnx_sha256="0" * 64, max_length=None, profiles=(), flags=(),
        plan_sha256=hashlib.sha256(NO_PLAN).hexdigest(), plan_bytes=len(NO_PLAN),
        timing_cache_sha256=None, options=("--max-batch", "8"), created=created, build_s=1.0, peak_rss_bytes=1,
        parameter_bytes=1, layer_source="network",
    ).write(folder)  # fmt: skip
    return folder


def infer(bundle: Path, machine: dict[str, str], device: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, "infer", str(PHANTOM), "--bundle", str(bundle), "--device", device, "--format", "json"]
    return subprocess.run(command, env=machine, capture_output=True, text=True, check=False)


def steps(bundle: Path, machine: dict[str, str]) -> tuple[str, list[str]]:
    """What a report says it ran on, and the steps to it."""
    report = json.loads(infer(bundle, machine, "auto").stdout)
    assert report["text"]
    return report["execution_provider"], report["provider_steps"]


def test_a_machine_without_a_gpu_is_not_told_to_build(bundle: Path) -> None:
    if gpu() is not None:
        pytest.skip("this machine has a GPU")
    add_engine(bundle, "decoder", capability="8.9")
    provider, said = steps(bundle, dict(os.environ))
    assert provider == "CPUExecutionProvider"
    assert said[0] == "TensorRT engine: not taken, no NVIDIA driver on this machine"


def test_each_reason_for_stepping_down_is_recorded(bundle: Path, machine: dict[str, str]) -> None:
    provider, said = steps(bundle, machine)
    assert provider == "CPUExecutionProvider"
    assert said[0] == "TensorRT engine: not taken, none built (r2gen build BUNDLE)"

    add_engine(bundle, "decoder", capability="8.9")
    _, said = steps(bundle, machine)
    assert said[0] == "TensorRT engine: not taken for the vision, none built (r2gen build BUNDLE --parts vision)"
    assert said[1] == (
        "TensorRT engine: not taken for the decoder, built for compute capability 8.9, found 8.6 (Imitated GPU) "
        "(r2gen build BUNDLE --backend tensorrt-rtx --parts decoder --precision fp16 "
        "--compute-capability 8.6 --max-batch 8)"
    )

    add_engine(bundle, "vision", capability="8.6", backend="tensorrt")
    _, said = steps(bundle, machine)
    assert "TensorRT: not installed" in said[0]


def test_an_engine_that_fits_and_does_not_load_costs_a_step_and_no_report(
    bundle: Path, machine: dict[str, str]
) -> None:
    for part in ("vision", "decoder"):
        add_engine(bundle, part, capability="8.6")
    provider, said = steps(bundle, machine)
    assert provider == "CPUExecutionProvider"
    assert said[0].startswith("TensorRT engine: not taken, R2G-DEVICE-UNAVAILABLE: cudaGetDeviceCount failed")
    assert said[-2:] == [
        "CPU: taken",
        "OpenVINO: not taken for the decoder, it cannot run a decoder of dialect standard in fp32",
    ]
    shown = subprocess.run(
        [*COMMAND, "doctor", "--bundle", str(bundle)], env=machine, capture_output=True, text=True, check=True
    ).stdout
    assert re.search(r"TensorRT engine +decoder +taken +TensorRT-RTX 1\.7\.1\.116, fp16", shown)
    assert "runs on" in shown


def test_engines_are_found_for_the_gpu_they_are_to_run_on(bundle: Path, machine: dict[str, str]) -> None:
    """The imitated driver shows an 8.6 and an 8.9, and no third."""
    program = """
import sys
from pathlib import Path
from r2gen_export.bundle import load_manifest
from trt_engines.select import find_engines
bundle = Path(sys.argv[1])
for device_id in range(3):
    fitting, refused = find_engines(bundle, load_manifest(bundle), device_id)
    print(fitting["decoder"].identity.compute_capabilities[0] if fitting else refused["decoder"][0].message)
"""
    add_engine(bundle, "decoder", capability="8.9")
    command = [sys.executable, "-c", program, str(bundle)]
    done = subprocess.run(command, env=machine, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "built for compute capability 8.9, found 8.6 (Imitated GPU)",
        "8.9",
        "built for a GPU of compute capability 8.9, found no GPU",
    ]


def test_bench_plans_for_what_infer_would_run_on(bundle: Path, machine: dict[str, str]) -> None:
    """Engines that fit are enough for `--devices tensorrt`; ONNX Runtime needs no TensorRT provider."""
    planned = """
import sys
from pathlib import Path
from benchmarks.latency.settings import BenchSettings, plan
from r2gen_export.bundle import load_manifest
bundle = Path(sys.argv[1])
print(*[one.name for one in plan(BenchSettings(bundle, Path("out"), devices=("tensorrt",)), load_manifest(bundle))])
"""
    command = [sys.executable, "-c", planned, str(bundle)]
    add_engine(bundle, "decoder", capability="8.9")
    refused = subprocess.run(command, env=machine, capture_output=True, text=True, check=False)
    assert "R2G-DEVICE-UNAVAILABLE" in refused.stderr
    for part in ("vision", "decoder"):
        add_engine(bundle, part, capability="8.6")
    done = subprocess.run(command, env=machine, capture_output=True, text=True, check=True)
    assert done.stdout == "tensorrt, fast\n"


def test_no_step_says_where_the_bundle_lies(tmp_path: Path, machine: dict[str, str]) -> None:
    """Reports keep the steps, and a folder can name a user."""
    bundle = Path(shutil.copytree(demo_bundle(), tmp_path / "a user's"))
    for part in ("vision", "decoder"):
        folder = add_engine(bundle, part, capability="8.6")
    (folder / PLAN).write_bytes(b"tampered")
    (folder.parent / "vision/identity.json").write_text("{")
    _, said = steps(bundle, machine)
    assert not [step for step in said if tmp_path.name in step or "a user" in step]
    assert "engines/tensorrt-rtx-8.6-1/vision/identity.json cannot be read" in said[0]

    identity = read_identity(folder)
    engines = EngineCandidates(bundle, load_manifest(bundle), "cpu")
    engine = Engine("target", "decoder", folder)
    engines.fitting["decoder"] = Fitting(engine, identity, Backend("tensorrt-rtx", None, ""))
    with pytest.raises(R2GenError) as caught:
        verify_plan(folder, identity)
    engines.drop("decoder", caught.value)
    (step,) = map(render, engines.candidates)
    assert "engines/tensorrt-rtx-8.6-1/decoder/engine.plan has 8 bytes" in step
    assert "build it again: r2gen build BUNDLE --backend" in step
    assert tmp_path.name not in step


def test_asked_for_by_name_it_is_an_error_with_every_reason(bundle: Path, machine: dict[str, str]) -> None:
    add_engine(bundle, "decoder", capability="8.9")
    child = infer(bundle, machine, "tensorrt")
    assert child.returncode == 2
    assert "R2G-DEVICE-UNAVAILABLE: TensorRT is not usable: " in child.stderr
    assert "built for compute capability 8.9, found 8.6" in child.stderr
    assert not child.stdout


def test_the_newest_engine_that_fits_is_taken_and_others_are_not_in_the_way(bundle: Path) -> None:
    """In this process: without a GPU nothing fits, and every engine says so; a torn one too."""
    if gpu() is not None:
        pytest.skip("this machine has a GPU")
    folder = add_engine(bundle, "decoder", capability="8.9")
    (folder / PLAN).write_bytes(NO_PLAN.upper())
    (add_engine(bundle, "decoder", capability="8.6", created="2") / "identity.json").write_text("{")
    fitting, refused = find_engines(bundle, load_manifest(bundle))
    assert not fitting
    assert {one.reason for one in refused["decoder"]} == {Reason.other_target, Reason.unreadable}
    assert [(one.reason, one.fix) for one in refused["vision"]] == [
        (Reason.not_built, "r2gen build BUNDLE --parts vision")
    ]
    with pytest.raises(R2GenError, match="SHA-256") as caught:
        verify_plan(folder, EngineIdentity(**json.loads((folder / "identity.json").read_text())))
    assert caught.value.code == "R2G-ENGINE-HASH"
