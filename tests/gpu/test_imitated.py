"""Every dialect and precision on ONNX Runtime's CUDA provider: where nodes run, what is copied, what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r2gen_export.bundle import Dims
from r2gen_export.precision import PRECISIONS
from tests.gpu.conftest import ROOT, Run, environment
from tests.helpers.shared import made_once
from tests.helpers.tiny import make_tiny_llm, make_tiny_vision

pytestmark = pytest.mark.slow  # ONNX Runtime's GPU package is fetched for it

DIMS = Dims(image_tokens=16, d_llm=32, vocab_size=120, num_layers=2, num_kv_heads=2, head_dim=16, max_positions=256)
SIZES = json.dumps(dataclasses.asdict(DIMS))
STATIC = [(dialect, name) for dialect in ("ort", "trt") for name in PRECISIONS]
PHANTOM = ROOT / "tests/data/phantom.png"

SHAPE_ARITHMETIC = {"Gather", "Add", "Concat", "Unsqueeze", "Reshape", "Equal", "Where", "Div", "Mul", "Squeeze"}


@pytest.fixture(scope="module")
def decoders() -> Path:
    """`DIALECT-PRECISION/model.onnx` of one small LLaMA."""
    return made_once("gpu", write_decoders) / "decoders"


def write_decoders(folder: Path) -> None:
    import torch
    from transformers import LlamaForCausalLM

    from r2gen_export.exporting.decoder.export import write_decoder

    torch.set_num_threads(1)
    llm = LlamaForCausalLM.from_pretrained(make_tiny_llm(folder / "llm")).eval()
    for dialect, precision in [("standard", "fp32"), *STATIC]:
        write_decoder(llm, folder / "decoders" / f"{dialect}-{precision}", dialect=dialect, precision=precision)


@pytest.fixture(scope="module")
def measured(imitated: Path, decoders: Path, run_folder: Path) -> dict[str, Any]:
    """What `program.passes` sees, in this run of the tests."""

    def measure(folder: Path) -> None:
        command = [sys.executable, str(Path(__file__).with_name("program.py")), "passes", str(decoders), SIZES]
        done = subprocess.run(command, env=environment(imitated), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        folder.mkdir()
        (folder / "answer.json").write_text(done.stdout)

    answer: dict[str, Any] = json.loads((made_once("passes", measure, place=run_folder) / "answer.json").read_text())
    return answer


def test_a_pass_reads_what_was_written_after_it_was_bound(imitated: Path, run_program: Run) -> None:
    answer = run_program(imitated, "binding")
    assert answer == {"provider": "CUDAExecutionProvider", "runs": [[1, 2, 3, 4], [5, 6, 7, 8]]}


def test_an_input_in_host_memory_is_read_at_each_run(imitated: Path, run_program: Run) -> None:
    assert run_program(imitated, "host_input") == [[5], [9]]


@pytest.mark.parametrize(("dialect", "precision"), STATIC)
def test_a_cache_of_fixed_length_stays_on_the_gpu(measured: dict[str, Any], dialect: str, precision: str) -> None:
    entry, half = measured[f"{dialect}-{precision}"], PRECISIONS[precision].half
    if dialect == "ort" and not half:
        # GroupQueryAttention has no CUDA kernel for float32.
        assert entry["refused"] == "R2G-DEVICE-UNAVAILABLE"
        assert "2 GroupQueryAttention" in entry["message"]
        return
    assert entry["on_cpu"] == ({} if dialect == "ort" else {"Squeeze": 1})
    assert entry["cuda_graph"]
    width = 2 if half else 4
    # A batch of 5 is decoded in a pass of 6: rows leave one by one, and every count would need a graph of its own.
    for name, rows in (("step", 1), ("beams", 3), ("batch of 5", 6)):
        step = entry[name]
        # Embeddings and positions go up, logits come down, and the whole pass is one launch of a CUDA graph.
        assert (step["up"], step["up_bytes"]) == (2, rows * (DIMS.d_llm * width + 8)), name
        assert (step["down"], step["down_bytes"]) == (1, rows * DIMS.vocab_size * width), name
        assert (step["graphs"], step["launches"], step["captures"], step["cache"]) == (1, 0, 0, 0), name
    assert entry["rollback"] == dict.fromkeys(entry["rollback"], 0)
    # Which rows of which tensors goes up; gather and scatter of all tensors together are two launches.
    assert entry["reorder"]["up_bytes"] == 2 * 3 * 2 * DIMS.num_layers * 8
    assert (entry["reorder"]["down"], entry["reorder"]["cache"], entry["reorder"]["launches"]) == (0, 0, 2)
    # A later report gets an earlier one's cache and passes: only its prompt goes up.
    assert (entry["prefill"]["up"], entry["prefill"]["up_bytes"]) == (2, 40 * (DIMS.d_llm * width + 8))


def test_a_cache_that_grows_stays_on_the_gpu(measured: dict[str, Any]) -> None:
    entry = measured["standard-fp32"]
    assert set(entry["on_cpu"]) <= SHAPE_ARITHMETIC
    assert not entry["cuda_graph"]
    assert entry["step"]["down"] == 1
    assert entry["step"]["up_bytes"] < 3 * DIMS.d_llm * 4 + 64 * 8 + 64
    assert dict.fromkeys(entry["rollback"], 0) | {"launches": 4} == entry["rollback"]
    assert (entry["reorder"]["up"], entry["reorder"]["up_bytes"], entry["reorder"]["down"]) == (1, 24, 0)
    assert entry["reorder"]["cache"] == entry["step"]["cache"] == 0


def test_beams_do_not_use_up_the_gpu(imitated: Path, run_program: Run) -> None:
    """Temporaries of another size at each step would each stay in ONNX Runtime's arena: 15 GB at this shape."""
    taken = run_program(imitated, "moving")
    assert taken[-1] - taken[0] < 600 << 20
    assert taken[-1] == taken[2]


def test_a_thread_for_each_report_captures_nothing_anew(imitated: Path, decoders: Path, run_program: Run) -> None:
    captures = run_program(imitated, "threads", decoders / "ort-fp16/model.onnx", SIZES)
    assert captures[0] > 0
    assert captures[1:] == [0, 0]


def test_an_old_driver_is_named(imitated: Path, run_program: Run) -> None:
    answer = run_program(imitated, "selection", R2G_DRIVER="12040")
    assert answer["auto"] == "CPUExecutionProvider"
    assert answer["steps"][1] == (
        "CUDA: not taken, the NVIDIA driver is for CUDA 12.4, the installed ONNX Runtime needs 13: update the driver"
    )


def test_vision_encoders(imitated: Path, run_program: Run, tmp_path: Path) -> None:
    """The imitated cuDNN refuses their convolution: a coded error, nothing on stdout, and no step to the CPU."""
    from r2gen_export.exporting.vision import export_vision
    from r2gen_export.exporting.vision_precision import lower_precision
    from r2gen_export.training.model import ModelConfig, R2GenGPT

    sources = make_tiny_vision(tmp_path / "vision"), make_tiny_llm(tmp_path / "llm")
    model = R2GenGPT.from_sources(*sources, ModelConfig()).eval()
    errors = {}
    for precision in ("fp32", "fp16", "int8"):
        path = tmp_path / precision / "vision.onnx"
        path.parent.mkdir()
        export_vision(model, path, height=32, width=32)
        lower_precision(path, precision)
        # What the library printed to stdout would not be JSON.
        answer = run_program(imitated, "failing_pass", path)
        errors[precision] = answer["error"]
        assert answer["providers"] == ([] if precision == "int8" else ["CUDAExecutionProvider", "CPUExecutionProvider"])
    for precision in ("fp32", "fp16"):
        assert errors[precision].startswith("R2G-")
        assert "encode" in errors[precision]
    assert errors["int8"].startswith("R2G-DEVICE-UNAVAILABLE: vision.onnx: ONNX Runtime has no kernel for the GPU for ")
    assert "DynamicQuantizeLinear" in errors["int8"]


def test_auto_steps_down_before_the_first_report_and_stdout_is_the_report(imitated: Path) -> None:
    command = [sys.executable, str(ROOT / "cli.py"), "infer", str(PHANTOM), "--format", "json", "--device"]
    done = subprocess.run([*command, "auto"], env=environment(imitated), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["execution_provider"] == "CPUExecutionProvider"
    assert ("CUDA", False, "does-not-load") in [
        (one["name"], one["taken"], one["reason"]) for one in report["backends"]
    ]
    asked = subprocess.run([*command, "cuda"], env=environment(imitated), capture_output=True, text=True, check=False)
    assert (asked.returncode, asked.stdout) == (2, "")
    assert asked.stderr.startswith("R2G-")
    assert "\033" not in asked.stderr


def without(imitated: Path, folder: Path, *names: str) -> Path:
    """A copy of the imitated libraries that lacks some."""
    shutil.copytree(imitated, folder)
    for name in names:
        (folder / name).unlink()
    return folder


def test_a_machine_without_cudnn_does_not_take_cuda(imitated: Path, tmp_path: Path, run_program: Run) -> None:
    answer = run_program(without(imitated, tmp_path / "no-cudnn", "libcudnn.so.9"), "selection")
    assert answer["auto"] == "CPUExecutionProvider"
    assert answer["steps"][1] == "CUDA: not taken, cuDNN 9 is not installed (pip install 'r2gen[cuda]')"
    assert answer["cuda"].startswith("R2G-DEVICE-UNAVAILABLE: CUDA is not usable: cuDNN 9 is not installed")


def test_a_machine_without_a_driver_does_not_take_cuda(imitated: Path, tmp_path: Path, run_program: Run) -> None:
    answer = run_program(without(imitated, tmp_path / "no-driver", "libcuda.so.1"), "selection")
    assert answer["steps"][1] == "CUDA: not taken, no NVIDIA driver on this machine"
    assert run_program(imitated, "selection", R2G_DEVICES="0")["steps"][1] == (
        "CUDA: not taken, the NVIDIA driver shows no GPU"
    )


@pytest.mark.parametrize("library", ["libcublas.so.13", "libcudart.so.13"])
def test_a_broken_library_is_named(imitated: Path, tmp_path: Path, run_program: Run, library: str) -> None:
    folder = without(imitated, tmp_path / "broken", library)
    (folder / library).write_bytes(b"\x7fELF, and no more")
    answer = run_program(folder, "selection")
    assert answer["auto"] == "CPUExecutionProvider"
    assert answer["steps"][1].startswith("CUDA: not taken, its libraries do not load (")
    assert library in answer["steps"][1]
    assert str(tmp_path) not in answer["steps"][1]


def test_a_gpu_without_room_is_an_error_with_a_code(imitated: Path, decoders: Path, run_program: Run) -> None:
    answer = run_program(imitated, "opening", decoders / "trt-fp32/model.onnx", SIZES, R2G_FREE_BYTES="20000")
    assert answer.startswith("R2G-RESOURCE-MEMORY: not enough memory on the GPU: model.onnx does not fit")
    assert run_program(imitated, "opening", decoders / "trt-fp32/model.onnx", SIZES) == ""


def test_a_bundle_that_does_not_fit_is_refused_with_numbers(imitated: Path) -> None:
    command = [sys.executable, str(ROOT / "cli.py"), "infer", str(PHANTOM), "--device", "cuda"]
    small = environment(imitated, R2G_FREE_BYTES=str(1 << 29), R2G_TOTAL_BYTES=str(4 << 30))
    done = subprocess.run(command, env=small, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("R2G-RESOURCE-MEMORY: the bundle needs about 1.0")
    assert "0.50 of 4.00 GiB are free" in done.stderr


def test_devices_are_numbered(imitated: Path) -> None:
    command = [sys.executable, str(ROOT / "cli.py"), "infer", str(PHANTOM), "--device", "cuda:2"]
    done = subprocess.run(
        command, env=environment(imitated, R2G_DEVICES="2"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "GPU 2 is not there, the driver shows 2, numbered from 0" in done.stderr


def test_the_graphs_that_move_rows_compute_what_they_say(tmp_path: Path) -> None:
    """On the CPU, whose kernels do something."""
    import onnx
    import onnxruntime

    from r2gen_export.runtime.backends.onnx_graphs import (
        move_rows_graph,
        take_rows_graph,
        take_slots_graph,
        zeros_graph,
    )

    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float16):
        cache = rng.normal(size=(4, 3, 2, 16, 8)).astype(dtype)
        models = move_rows_graph(dtype), take_rows_graph(dtype, 2), take_slots_graph(dtype, 2), zeros_graph(dtype)
        for model in models:
            onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
        move, take, trim, zeros = (
            onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]) for model in models
        )
        rows, last, flat = np.array([2, 0, 0]), 11, cache.reshape(12, 2, 16, 8)
        chosen, put = np.array([5, 3, 11]), np.array([[3], [4], [0]])
        expected = flat.copy()
        expected[put[:, 0]] = flat[chosen]
        moved = move.run(None, {"source": flat, "target": flat, "take": chosen, "put": put})[0]
        np.testing.assert_array_equal(moved, expected)
        past = {"past.0": cache[0], "past.1": cache[1]}
        for tensor, result in zip(cache, take.run(None, {**past, "rows": rows}), strict=False):
            np.testing.assert_array_equal(result, tensor[rows])
        for tensor, result in zip(cache, trim.run(None, {**past, "last": np.array([last])}), strict=False):
            np.testing.assert_array_equal(result, tensor[:, :, :last])
        filled = zeros.run(None, {"shape": np.array([2, 1, 1, 3, 4])})[0]
        assert filled.dtype == dtype
        assert filled.shape == (2, 1, 1, 3, 4)
        assert not filled.any()
