"""The GPU check: its plan, its report, its processes. What needs a CUDA runtime is in tests/gpu."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from benchmarks.gpu import plan
from benchmarks.gpu.__main__ import chosen_steps, main, parse
from benchmarks.gpu.imitated import CopyLog
from benchmarks.gpu.imitated.libraries import build
from benchmarks.gpu.measure import COPIES
from benchmarks.gpu.pack import STUB, contents, unpack
from benchmarks.gpu.runner import Machine, run_steps, succeeded
from benchmarks.gpu.steps import STEPS, Context, run
from benchmarks.gpu.steps.machine import RESHAPE
from benchmarks.gpu.table import placement_json, render
from r2gen_export.errors import R2GenError

ROOT = Path(__file__).parents[2]
BUNDLE = {
    "dialect": "ort", "precision": "fp16", "cpu_nodes": ["Squeeze"], "cpu_node_count": 1, "memcpy_nodes": 0,
    **dict.fromkeys(COPIES, 0), "bytes_up_per_step": 264, "refused": None, "seconds": 1.0,
}  # fmt: skip
RESULTS = {
    "device": "cuda",
    "ceilings": {"gpu": "A Card", "copy_gb_s": 3000.0, "read_gb_s": 2500.0, "pageable_h2d_gb_s": 9.0},
    "placement ort-fp16": BUNDLE,
    "placement ort-int4": {"skipped": "not exported: logits differ | too far", "seconds": 0},
    "parity ort-fp16": {
        "walk": {"plain": {"worst": 0.001}, "accelerated": {"error": "RuntimeError: no graph"}},
        "greedy": {"equal": 4, "of": 4}, "beam3": {"equal": 3, "of": 4}, "device_provider": "CUDAExecutionProvider",
    },
    "shape llama-2-7b-ort-fp16": {
        "read_gb": 13.2,
        "variants": {"plain": {"gb_s": 2400.0, "against_torch": {"relative": 0.001, "top1": "9 of 9"}}},
    },
    "vision swin-base-fp16": {"failed": "stopped after 60 s"},
}  # fmt: skip


def rows(text: str, first: str) -> list[list[str]]:
    """Cells of the lines of a table that begin with `first`."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {first} |")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_variant_that_can_be_exported_has_a_placement():
    from r2gen_export.exporting.decoder.export import dialects

    names = {f"{dialect}-{precision}" for dialect, precisions in dialects().items() for precision in precisions}
    assert set(plan.BUNDLES) == names
    for steps in (plan.FULL, plan.WITHOUT_GPU):
        assert {step.argument for step in steps if step.name == "placement"} == names
        assert {step.argument for step in steps if step.name == "parity"} == names - set(plan.REFUSED)
        assert {step.name for step in steps} == set(STEPS)
        assert len({step.key for step in steps}) == len(steps)


def test_a_decoder_is_timed_behind_pytorch_on_its_weights():
    keys = [step.key for step in plan.FULL]
    for step in plan.FULL:
        if step.name == "shape":
            shape = next(name for name in ("llama-2-7b", "tinyllama-1.1b") if step.argument.startswith(name))
            assert keys.index(f"reference {shape}") < keys.index(step.key)
    assert next(step.argument for step in plan.FULL if step.name == "shape") == "llama-2-7b-ort-int4-f16"


def test_imitated_runs_only_what_means_something_unless_told():
    by_default = {step.name for step in chosen_steps([], without_gpu=False, imitated_runtime=True)}
    assert by_default == {"binding", "providers", "placement"}
    assert "placement" not in {step.name for step in chosen_steps([], without_gpu=True, imitated_runtime=False)}
    told = chosen_steps(["ceilings", "vision"], without_gpu=False, imitated_runtime=True)
    assert [step.name for step in told] == ["ceilings", "vision"]


def test_a_report_has_a_row_for_each_answer():
    text = render(RESULTS)
    assert text.startswith("A Card; copy 3000.0 GB/s")
    placement, parity = rows(text, "ort-fp16")
    assert placement == ["ort-fp16", "1 Squeeze", "0", "264", "0", "0", "0", "0", ""]
    assert parity[1:6] == ["0.001", "", "", "4 of 4", "3 of 4"]
    assert parity[-1] == "RuntimeError: no graph"
    (refused,) = rows(text, "ort-int4")
    assert refused[-1] == "not exported: logits differ / too far"
    (times,) = rows(text, "llama-2-7b-ort-fp16")
    assert times[-4:] == ["1.25", "0.001", "9 of 9", ""], "3000 GB/s over 2400"
    assert '- vision swin-base-fp16: {"failed": "stopped after 60 s"}' in text
    heads = {line.count("|") for line in text.splitlines() if line.startswith("| bundle | nodes")}
    assert heads == {len(placement) + 1}


def test_the_json_of_the_placement_has_every_field_for_every_bundle():
    written = placement_json({"binding": {"provider": "x", "seconds": 1}, **RESULTS})
    assert written["binding"] == {"provider": "x"}
    measured, missing = written["bundles"]["ort-fp16"], written["bundles"]["ort-int4"]
    assert measured == {name: value for name, value in BUNDLE.items() if name != "seconds"}
    assert missing.keys() == measured.keys()
    assert (missing["dialect"], missing["precision"], missing["memcpy_nodes"]) == ("ort", "int4", None)
    assert missing["refused"].startswith("not exported")


def test_the_readme_names_every_field_of_a_bundle_and_every_step():
    text = (ROOT / "benchmarks/gpu/README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in BUNDLE.keys() - {"seconds"})
    assert all(f"`{name}`" in text or f"`{name} " in text for name in STEPS)


def test_the_check_runs_without_a_gpu(tmp_path, capsys):
    """One step in a process of its own, its answer in all three files."""
    out, file = tmp_path / "out", tmp_path / "placement.json"
    main(["--cpu", "--only", "binding", "--out", str(out), "--json", str(file), "--work", str(tmp_path / "work")])
    answer = json.loads((out / "gpu.json").read_text(encoding="utf-8"))["binding"]
    assert answer["device_value_updated_after_bind"] == answer["host_array_written_after_bind"] == answer["expected"]
    assert json.loads(file.read_text(encoding="utf-8"))["binding"]["provider"] == "CPUExecutionProvider"
    assert (out / "table.md").read_text(encoding="utf-8") in capsys.readouterr().out


def test_a_step_that_fails_leaves_its_reason_and_the_next_one_runs(tmp_path):
    machine = Machine("cpu", tmp_path / "no work")
    steps = [plan.Step("parity", "ort-fp16"), plan.Step("engine_memory")]
    lines: list[str] = []
    results = run_steps(machine, steps, tmp_path, deadline=time.monotonic() + 60, earlier={}, report=lines.append)
    assert "R2G-BUNDLE-MISSING" in results["parity ort-fp16"]["failed"]
    assert results["engine_memory"]["skipped"] == "needs a GPU"
    assert [line.partition(":")[0] for line in lines] == ["1/2 parity ort-fp16", "2/2 engine_memory"]
    assert not succeeded(results)
    late = run_steps(machine, steps[:1], tmp_path, deadline=time.monotonic(), earlier={}, report=lines.append)
    assert late["parity ort-fp16"] == {"failed": "no time left"}
    again = run_steps(
        machine, steps[1:], tmp_path, deadline=0, earlier={"engine_memory": {"right": True}}, report=lines.append
    )
    assert again["engine_memory"] == {"right": True}


def test_a_bundle_that_was_not_exported_is_named(tmp_path):
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles/not-exported.json").write_text('{"ort-int4": "not exported: too far"}', encoding="utf-8")
    steps = [plan.Step("placement", "ort-int4")]
    results = run_steps(Machine("cpu", tmp_path), steps, tmp_path, deadline=0, earlier={}, report=print)
    assert results["placement ort-int4"] == {"skipped": "not exported: too far"}


def test_unknown_steps_and_no_output_are_refused(capsys):
    for arguments in (["--cpu"], ["--out", "x", "--only", "nothing"]):
        with pytest.raises(SystemExit):
            parse(arguments)
    assert "no step is called nothing" in capsys.readouterr().err


def test_the_graph_of_the_binding_step_is_the_one_it_says():
    from onnx import TensorProto, helper

    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in (("x", [4]), ("y", [2, 2]))
    ]
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [2, 2])
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    graph = helper.make_graph([node], "g", values[:1], values[1:], [shape])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    assert model.SerializeToString() == RESHAPE


def test_without_a_compiler_the_imitated_runtime_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(R2GenError) as raised:
        build(tmp_path / "cuda")
    assert raised.value.code == "R2G-DEPENDENCY-MISSING"
    assert "C compiler" in raised.value.message
    assert not (tmp_path / "cuda").exists()


def test_no_copies_are_known_without_the_imitated_runtime():
    with pytest.raises(R2GenError) as raised:
        CopyLog()
    assert raised.value.code == "R2G-DEVICE-UNAVAILABLE"


def test_steps_without_a_gpu_say_so(tmp_path):
    context = Context("cpu", tmp_path, tmp_path)
    assert run("engine_memory", "", context) == {"skipped": "needs a GPU"}
    assert run("placement", "ort-fp16", context) == {"skipped": "both sides are the CPU"}


def test_what_is_packed_is_unpacked(tmp_path, monkeypatch):
    """ONNX Runtime always, wheels where the machine has none: its transformers goes with its own tokenizers."""
    folder, packages = tmp_path / ".gpu", tmp_path / "packages"
    (folder / "wheels").mkdir(parents=True)
    (tmp_path / "module.py").write_text("", encoding="utf-8")
    with tarfile.open(folder / "ort.tar.xz", "w:xz") as archive:
        archive.add(tmp_path / "module.py", "onnxruntime/__init__.py")
    wheels = {"tokenizers": "tokenizers/__init__.py", "rich": "rich/__init__.py", "absent": "absent_1.py"}
    for name, module in wheels.items():
        with zipfile.ZipFile(folder / "wheels" / f"{name}-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}-1.dist-info/METADATA", "")
            wheel.writestr(module, "")
    unpack(folder, packages)
    unpacked = {path.name for path in packages.iterdir() if not path.name.endswith(".dist-info")}
    assert unpacked - {"nvidia"} == {"onnxruntime", "absent_1.py"}
    assert contents(folder).keys() == {"ort.tar.xz", "wheels"}


def test_the_packed_check_runs_from_the_root_of_the_project(tmp_path):
    folder = tmp_path / ".gpu"
    folder.mkdir()
    (folder / "check.py").write_text(STUB, encoding="utf-8")
    command = [
        sys.executable,
        str(folder / "check.py"),
        "--cpu",
        "--only",
        "engine_memory",
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1/1 engine_memory: needs a GPU" in done.stdout
    assert json.loads((tmp_path / "out/gpu.json").read_text(encoding="utf-8"))["device"] == "cpu"
