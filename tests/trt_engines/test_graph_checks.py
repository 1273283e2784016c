"""Graphs a backend does not take: our error names the node and the mend, before the parser and behind it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from r2gen_export.errors import R2GenError
from r2gen_export.exporting.decoder.export import write_decoder
from tests.helpers.llama import make_llama
from tests.trt_engines.graphs import CAPABILITY, attention_model, model_of, needs_rtx
from trt_engines.backends import load_backend
from trt_engines.builder import Order, Toolchain
from trt_engines.graph import Graph
from trt_engines.graph_checks import find_problems, require_clean
from trt_engines.worker import BuildOutcome, build_apart

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def norm_model() -> onnx.ModelProto:
    node = helper.make_node("LayerNormalization", ["x", "scale"], ["y"], name="norm")
    return model_of([node], {"x": (HALF, [2, 8])}, {"y": (HALF, [2, 8])}, {"scale": np.ones(8, np.float32)})


def mixed_model() -> onnx.ModelProto:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    return model_of([node], {"x": (HALF, [2, 8])}, {"y": (HALF, [2, 8])}, {"w": np.ones((8, 8), np.float32)})


def open_cache_model() -> onnx.ModelProto:
    node = helper.make_node("TensorScatter", ["past", "new", "at"], ["present"], name="cache", axis=2)
    cache = (HALF, [1, 2, "length", 16])
    inputs = {"past": cache, "new": (HALF, [1, 2, 1, 16]), "at": (TensorProto.INT64, [1])}
    return model_of([node], inputs, {"present": cache})


def negative_scales_model() -> onnx.ModelProto:
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scales"], ["w"], name="weight", axis=0, block_size=32),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="product"),
    ]
    constants = {"codes": np.ones((32, 4), np.int8), "scales": np.full((1, 4), -0.5, np.float16)}
    return model_of(nodes, {"x": (HALF, [2, 32])}, {"y": (HALF, [2, 4])}, constants)


def quantised_activations_model() -> onnx.ModelProto:
    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"], name="round")
    return model_of([node], {"x": (FLOAT, [2, 8])}, {"y": (TensorProto.UINT8, [2, 8])})


FAULTS: dict[str, tuple[Any, str, str, str]] = {
    "float32 attention": (attention_model(FLOAT), "attention.0", "no float32 kernel", "--precision fp16"),
    "cache inside attention": (attention_model(HALF, past=True), "attention.0", "inside the operator", "TensorScatter"),
    "softcap": (attention_model(HALF, softcap=30.0), "attention.0", "softcap 30", "soft-capping"),
    "shared boolean mask": (attention_model(HALF, layers=2, boolean_mask=True), "attention.1", "shared", "additive"),
    "norm of two types": (norm_model(), "norm", "float16 and float32", "one type"),
    "product of two types": (mixed_model(), "product", "float16 and float32", "Cast"),
    "cache of open length": (open_cache_model(), "cache", "length is open", "--max-length"),
    "negative scales": (negative_scales_model(), "weight", "negative scales", "--precision fp16"),
    "unknown operator": (quantised_activations_model(), "round", "does not know", "--vision-precision fp32"),
}
"""Graph, its bad node, the reason given and the mend."""


def rtx_supports(operator: str) -> bool:
    return operator != "DynamicQuantizeLinear"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_known_fault_is_named_with_its_mend(tmp_path: Path, fault: str) -> None:
    model, node, why, mend = FAULTS[fault]
    problems = find_problems(Graph(model, tmp_path), rtx_supports)
    assert node in {one.node for one in problems}
    with pytest.raises(R2GenError) as caught:
        require_clean(problems, "TensorRT-RTX 1.7", "the graph")
    assert caught.value.code == "R2G-ENGINE-NODE"
    assert node in caught.value.message and why in caught.value.message
    assert mend in caught.value.fix


@needs_rtx
@pytest.mark.parametrize("fault", FAULTS)
def test_the_backend_really_refuses_it(tmp_path: Path, fault: str) -> None:
    """Each verdict of the static check is the parser's or the builder's own, and their errors are ours as well.

    The builder of 1.7.1 dies of the shared boolean mask: that must end its process and not ours.
    """
    model, node, *_ = FAULTS[fault]
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(R2GenError) as caught:
        build(tmp_path)
    assert caught.value.code in ("R2G-ENGINE-PARSE", "R2G-ENGINE-BUILD")
    assert "cudaError" not in caught.value.message, "the missing driver hides the reason"
    if caught.value.code == "R2G-ENGINE-PARSE":
        assert node in caught.value.message


def build(folder: Path) -> BuildOutcome:
    (folder / "timing.cache").write_bytes(b"")
    return build_apart(
        load_backend("tensorrt-rtx"), Order((CAPABILITY,), (), False), folder, lambda fraction, what: None
    )


@needs_rtx
def test_a_sound_graph_builds(tmp_path: Path) -> None:
    model = attention_model(HALF)
    assert find_problems(Graph(model, tmp_path), Toolchain(load_backend("tensorrt-rtx")).supports) == []
    onnx.save(model, tmp_path / "model.onnx")
    outcome = build(tmp_path)
    assert (tmp_path / "engine.plan").stat().st_size > 1000
    assert outcome.flags == ()
    layers = json.loads((tmp_path / "layers.json").read_text())
    assert any("attention" in layer["name"].lower() for layer in layers)


@needs_rtx
def test_every_error_of_the_parser_is_reported(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Det", ["x"], ["a"], name="first"),
        helper.make_node("Relu", ["x"], ["b"], name="sound"),
        helper.make_node("Unheard", ["b"], ["c"], name="second", domain="com.acme"),
        helper.make_node("BitwiseNot", ["i"], ["d"], name="third"),
    ]
    inputs = {"x": (FLOAT, [2, 2]), "i": (TensorProto.INT32, [2])}
    outputs = {"a": (FLOAT, []), "c": (FLOAT, [2, 2]), "d": (TensorProto.INT32, [2])}
    onnx.save(model_of(nodes, inputs, outputs, opset=18), tmp_path / "model.onnx")
    with pytest.raises(R2GenError) as caught:
        build(tmp_path)
    assert caught.value.code == "R2G-ENGINE-PARSE"
    assert all(name in caught.value.message for name in ("Det 'first'", "Unheard 'second'", "BitwiseNot 'third'"))
    assert "sound" not in caught.value.message


def test_operators_of_onnx_runtime_are_refused_in_every_layer(tmp_path: Path) -> None:
    write_decoder(make_llama(), tmp_path, dialect="ort", precision="int4")
    problems = find_problems(Graph.load(tmp_path / "model.onnx"), lambda operator: True)
    assert {one.op for one in problems} == {"GroupQueryAttention", "MatMulNBits"}
    assert len(problems) == 2 * 5 + 1
    with pytest.raises(R2GenError, match="and 6 more") as caught:
        require_clean(problems, "TensorRT", "the decoder")
    assert caught.value.fix == "export the bundle again with --dialect trt"
