"""Bytes and operations against what the onnx package and the arithmetic say; floors from known rates."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.latency.graph import read_graph
from benchmarks.latency.roofline import count_work, encode_ops, floors
from benchmarks.machine_rates import Machine, Rates, gemm_rate, read_bandwidth, scalar_rate
from benchmarks.onnx_bytes import matmul_model
from r2gen_export.bundle import demo_bundle, load_manifest
from r2gen_export.errors import R2GenError
from tests.conftest import TinySources

MACHINE = Machine(2, (Rates(50.0, 100.0, 800.0, 30.0), Rates(100.0, 80.0, 800.0, 30.0)))


@pytest.mark.parametrize("name", ["vision.onnx", "decoder/model.onnx"])
def test_the_reader_agrees_with_onnx(name):
    path = demo_bundle() / name
    found, wanted = read_graph(path), onnx.load(path).graph
    assert {key: weight.shape for key, weight in found.weights.items()} == {
        one.name: tuple(one.dims) for one in wanted.initializer
    }
    assert [(node.op, node.inputs, node.outputs) for node in found.nodes] == [
        (node.op_type, tuple(node.input), tuple(node.output)) for node in wanted.node
    ]
    size = sum(onnx.numpy_helper.to_array(one).nbytes for one in wanted.initializer)
    assert sum(weight.size for weight in found.weights.values()) == size


def test_a_file_that_is_no_graph(tmp_path):
    path = tmp_path / "x.onnx"
    path.write_bytes(b"no graph")
    with pytest.raises(R2GenError, match="R2G-BUNDLE-GRAPH"):
        read_graph(path)


@pytest.mark.parametrize(("dialect", "precision"), [("ort", "fp32"), ("ort", "int8"), ("ort", "int4"), ("trt", "int4")])
def test_products_of_every_dialect(tiny_sources: TinySources, tmp_path: Path, dialect: str, precision: str) -> None:
    """As many parameters as the LLM's matrices have, whatever they are written as; an int4 weight takes 5/8 byte."""
    from transformers import LlamaForCausalLM

    from r2gen_export.exporting.decoder.export import write_decoder

    llama = LlamaForCausalLM.from_pretrained(tiny_sources.llm).eval()
    write_decoder(llama, tmp_path / "decoder", dialect=dialect, precision=precision)
    graph = read_graph(tmp_path / "decoder/model.onnx")
    linear = [module for module in llama.modules() if type(module).__name__ == "Linear"]
    parameters = sum(k * n for k, n in graph.products())
    assert parameters == sum(module.weight.numel() for module in linear)
    each = {"fp32": 4.0, "int8": 1.125, "int4": 0.625}[precision]
    assert graph.bytes_per_pass() == pytest.approx(parameters * each, rel=0.1)


def test_work_of_the_demo_bundle():
    manifest = load_manifest(demo_bundle())
    work = count_work(demo_bundle(), manifest)
    dims, width = manifest.dims, 96
    inner = 256
    layer = 4 * width * width + 3 * width * inner
    assert work.weights == 4 * layer + width * dims.vocab_size
    assert work.head == width * dims.vocab_size
    assert work.positions == 126
    assert work.shared == 0, "the standard dialect computes the whole prompt"
    assert work.prefill_ops() == pytest.approx(126 * 2 * work.weights + 4 * 4 * width * 126 * 127 / 2)
    assert work.token_bytes(100, 3) - work.token_bytes(100) == 2 * 2 * 4 * 4 * 24 * 101 * 4
    assert work.encode_ops == pytest.approx(vision_ops(), rel=1e-6)


def test_an_encoder_that_does_not_run_is_the_bundles_fault(tmp_path):
    path = tmp_path / "vision.onnx"
    path.write_bytes(b"no graph")
    with pytest.raises(R2GenError, match="does not run it") as caught:
        encode_ops(path, 8, 8)
    assert caught.value.code == "R2G-BUNDLE-GRAPH"
    path.write_bytes(matmul_model((3, 8), np.dtype(np.float32), np.zeros((8, 5), np.float32)))
    with pytest.raises(R2GenError, match="does not run it") as caught:
        encode_ops(path, 8, 8)
    assert caught.value.code == "R2G-BUNDLE-GRAPH"
    assert str(tmp_path) not in caught.value.message


def vision_ops() -> float:
    """Of the demo's Swin, by hand: widths 32, 64, 128, a block in each of three stages, two in each."""
    total = 2.0 * 28 * 28 * 32 * 3 * 8 * 8
    for side, width in ((28, 32), (14, 64), (7, 128)):
        positions = side * side
        block = 4 * width * width + 2 * 3 * width * width  # q, k, v, output; an inner width three times as wide
        attention = 2 * 49 * width
        total += 2 * (2.0 * positions * block + 2.0 * positions * attention)
    total += 2.0 * (14 * 14 * 128 * 64 + 7 * 7 * 256 * 128) + 2.0 * 49 * 128 * 96
    return total


def test_floors_take_the_best_rates_and_the_larger_bound(monkeypatch):
    manifest = load_manifest(demo_bundle())
    work = count_work(demo_bundle(), manifest)
    large = type(work)(**{**work.__dict__, "decoder_bytes": 4e9, "encode_bytes": 4e9})
    found = floors(large, MACHINE, tokens=100, views=1, batch=1, beams=1)
    assert found["decode"]["floor_ms"] == pytest.approx(large.token_bytes(176) / 1e6 / 100)
    assert found["decode"]["bound"] == "memory"
    busy = type(work)(**{**large.__dict__, "encode_ops": 1e13})
    found = floors(busy, MACHINE, tokens=100, views=2, batch=3, beams=1)
    assert found["encode"]["floor_ms"] == pytest.approx(6 * 1e13 / 1e6 / 100)
    assert found["encode"]["bound"] == "arithmetic"
    quantised = type(work)(**{**busy.__dict__, "vision_precision": "int8"})
    assert floors(quantised, MACHINE, tokens=1, views=1, batch=1, beams=1)["encode"]["rate_gops"] == 800.0


def test_the_machine_is_described_by_its_moments():
    assert MACHINE.best("read_gb_s") == 100.0
    assert MACHINE.typical("read_gb_s") == 75.0
    assert MACHINE.spread("gemm_fp32_gops") == 1.25


def test_rates_are_measured():
    assert 0.1 < read_bandwidth(1, 1 << 20, 0.01) < 10_000
    assert scalar_rate(1000) > 0
    assert all(gemm_rate(kind, 1, 0.01) > 0.1 for kind in ("fp32", "int8"))


@pytest.mark.parametrize("kind", ["fp32", "int8"])
def test_the_matrix_product_is_one(kind):
    """The model that is timed computes what it should."""
    import onnxruntime

    rng = np.random.default_rng(0)
    if kind == "fp32":
        x, weights = rng.normal(size=(3, 8)).astype(np.float32), rng.normal(size=(8, 5)).astype(np.float32)
    else:
        x, weights = rng.integers(0, 255, (3, 8), dtype=np.uint8), rng.integers(-127, 127, (8, 5), dtype=np.int8)
    model = matmul_model(x.shape, x.dtype, weights)
    onnx.checker.check_model(onnx.load_model_from_string(model))
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    wanted = x.astype(np.float64) @ weights.astype(np.float64)
    assert np.allclose(session.run(None, {"x": x})[0], wanted, rtol=1e-5)
    assert math.prod(wanted.shape) == 15
