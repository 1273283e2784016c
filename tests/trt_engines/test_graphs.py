"""Graphs rewritten for engines compute what the bundle's compute, in ONNX Runtime, at every precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from r2gen_export.bundle import demo_bundle, load_manifest
from r2gen_export.errors import R2GenError
from r2gen_export.exporting.decoder.export import write_decoder
from r2gen_export.exporting.decoder.quantize import dequantize, quantize
from r2gen_export.precision import PRECISIONS
from tests.helpers.llama import make_llama
from tests.trt_engines.graphs import model_of, open_session, run_decoder
from trt_engines import prepare as networks
from trt_engines.graph import Graph
from trt_engines.graph_checks import find_problems
from trt_engines.strong_typing import make_half
from trt_engines.weights import dequantised, filled, quantised

TOLERANCE = {"fp32": 1e-5, "fp16": 1e-2}
"""Per unit of the largest logit."""

START = 300
"""Positions before the first: far enough that rounding angles to float16 would show."""


def written(graph: Graph, folder: Path) -> Path:
    folder.mkdir()
    path = graph.write(folder)
    onnx.checker.check_model(str(path))
    return path


def embeds_of(width: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1, 11, width)).astype(np.float32)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_demo_decoder_with_a_cache_in_place(tmp_path: Path, precision: str) -> None:
    """The `standard` dialect: its growing cache becomes a fixed one, its mask an additive one."""
    bundle = demo_bundle()
    manifest = load_manifest(bundle)
    graph = networks.prepare(bundle, manifest, "decoder", precision, networks.Limits(max_length=384))
    assert {one.name for one in graph.inputs} >= {"inputs_embeds", "position_ids", "logits_to_keep"}
    assert "attention_mask" not in {one.name for one in graph.inputs}
    assert find_problems(graph, lambda operator: True) == []
    embeds = embeds_of(manifest.dims.d_llm)
    feeds = {"length": 384, "start": START, "parts": [5, 1, 3, 2]}
    wanted = run_decoder(bundle / "decoder/model.onnx", embeds, **feeds)
    found = run_decoder(written(graph, tmp_path / "g"), embeds, **feeds)
    assert np.abs(found - wanted).max() <= TOLERANCE[precision] * np.abs(wanted).max()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int4"])
@pytest.mark.parametrize("source", PRECISIONS)
def test_trt_dialect_decoder(tmp_path: Path, source: str, precision: str) -> None:
    """Every precision a bundle may have to every one an engine may have, against the bundle's weights in float32."""
    model = make_llama(max_position_embeddings=384)
    write_decoder(model, tmp_path / "source", dialect="trt", precision=source)
    given = Graph.load(tmp_path / "source/model.onnx")
    dequantised(given)  # weights as they are stored; ONNX Runtime would round activations to int8 beside them
    if precision == "int4" and not source.startswith("int4"):
        quantised(given)
        dequantised(given)
    graph = networks.rewrite_decoder(Graph.load(tmp_path / "source/model.onnx"), "trt", precision, 384)
    assert find_problems(graph, lambda operator: True) == []
    kinds = {node.op_type for node in graph.nodes}
    assert ("DequantizeLinear" in kinds) == (precision == "int4")
    assert ("Attention" in kinds) == (precision != "fp32")
    feeds = {"length": 384, "start": START, "parts": [5, 1, 3, 2]}
    wanted = run_decoder(written(given, tmp_path / "wanted"), embeds_of(64), **feeds)
    found = run_decoder(written(graph, tmp_path / "found"), embeds_of(64), **feeds)
    half = PRECISIONS[source].half
    tolerance = {**TOLERANCE, "int4": 5e-2}["fp16" if half and precision == "fp32" else precision]
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()
    cosine = (found * wanted).sum() / np.linalg.norm(found) / np.linalg.norm(wanted)
    # Beside blocks of 128, ONNX Runtime rounds activations in blocks of 128 too.
    assert cosine > (0.999 if source.startswith("int4-128") else 0.9995)


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_the_count_of_valid_keys_goes_whatever_it_was_computed_of(tmp_path: Path, precision: str) -> None:
    """A `Gather` of the last position, or its maximum in bundles of format version 1."""
    write_decoder(make_llama(max_position_embeddings=384), tmp_path, dialect="trt", precision="int4-f16")
    found = []
    for op, axis in (("Gather", np.array(-1)), ("ReduceMax", np.array([1]))):
        graph = Graph.load(tmp_path / "model.onnx")
        (last,) = (node for node in graph.nodes if node.output[0] == "last_position")
        attributes = {"axis": 1} if op == "Gather" else {"keepdims": 0}
        inputs = ["position_ids", graph.constant(axis, "last")]
        last.CopyFrom(helper.make_node(op, inputs, last.output, name=last.name, **attributes))
        networks.rewrite_decoder(graph, "trt", precision, 384)
        assert find_problems(graph, lambda operator: True) == []
        found.append([node.SerializeToString() for node in graph.nodes])
        assert "last_position" not in graph.producers()
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("source", "head", "hidden", "blocks"),
    [
        ("int4-128", None, 128, {32, 128}),
        ("int4", "int8", 64, {32}),
        ("int4-128", "int8", 80, {32}),
        ("int4-128-f16", "int8-f16", 128, {32, 128}),
    ],
)
def test_an_int4_engine_of_any_bundle_in_blocks_has_no_problem(
    tmp_path: Path, source: str, head: str | None, hidden: int, blocks: set[int]
) -> None:
    """Blocks that do not fill rows of 160 or 80, and an output layer in INT8, whose scales are negative."""
    model = make_llama(hidden_size=hidden, head_dim=16, max_position_embeddings=384)
    write_decoder(model, tmp_path, dialect="trt", precision=source, head_precision=head)
    graph = networks.rewrite_decoder(Graph.load(tmp_path / "model.onnx"), "trt", "int4", 384)
    assert find_problems(graph, lambda operator: True) == []
    quantised_nodes = [node for node in graph.nodes if node.op_type == "DequantizeLinear"]
    assert {helper.get_node_attr_value(node, "block_size") for node in quantised_nodes} == blocks
    assert {graph.tensors[node.input[0]].kind for node in quantised_nodes} == {TensorProto.INT4}
    assert {graph.tensors[node.input[1]].kind for node in quantised_nodes} == {TensorProto.FLOAT16}


@pytest.mark.parametrize(
    ("source", "hidden", "blocks"),
    [("int4-128", 128, {32, 128}), ("int4", 80, {0, 32}), ("int4-128-f16", 128, {32, 128}), ("int4-f16", 80, {0, 32})],
)
def test_blocks_fill_the_rows_of_an_int4_engine(tmp_path: Path, source: str, hidden: int, blocks: set[int]) -> None:
    """Rows of 160 and 80 leave blocks of 128 and of 32 open: the same weights in blocks of 32, or dense."""
    model = make_llama(hidden_size=hidden, head_dim=16, max_position_embeddings=384)
    write_decoder(model, tmp_path / "source", dialect="trt", precision=source)
    given = Graph.load(tmp_path / "source/model.onnx")
    graph = Graph.load(tmp_path / "source/model.onnx")
    filled(graph)
    found = set()
    producers = graph.producers()
    for node in graph.nodes:
        if node.op_type != "MatMul":
            continue
        behind = producers.get(node.input[1])
        block = 0 if behind is None else helper.get_node_attr_value(behind, "block_size")
        found.add(block)
        if behind is not None:
            rows, columns = graph.tensors[behind.input[0]].dims
            assert rows % block == 0
            assert graph.tensors[behind.input[1]].dims == (rows // block, columns)
    assert found == blocks
    for one in (given, graph):
        dequantised(one)
    weights = {node.input[1] for node in given.nodes if node.op_type == "MatMul"}
    for name in weights:
        np.testing.assert_array_equal(given.tensors[name].load(), graph.tensors[name].load())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_demo_vision(tmp_path: Path, precision: str) -> None:
    bundle = demo_bundle()
    graph = networks.prepare(bundle, load_manifest(bundle), "vision", precision, networks.Limits())
    assert find_problems(graph, lambda operator: True) == []
    views = np.random.default_rng(0).standard_normal((3, 3, 224, 224)).astype(np.float32)
    wanted = open_session(bundle / "vision.onnx").run(None, {"pixel_values": views})[0]
    path = written(graph, tmp_path / "g")
    found = open_session(path).run(None, {"pixel_values": views})[0]
    assert found.dtype == np.float32
    assert np.abs(found - wanted).max() <= TOLERANCE[precision] * np.abs(wanted).max()
    if precision == "fp16":
        types = {one.name: one.data_type for one in onnx.load(path).graph.initializer}
        read = {node.op_type: [types.get(name) for name in node.input] for node in graph.nodes}
        assert TensorProto.FLOAT16 in read["Conv"]
        assert set(read["LayerNormalization"][1:]) == {TensorProto.FLOAT}
        projector = [name for name in types if "llama_proj" in name]
        assert projector and all(types[name] == TensorProto.FLOAT for name in projector)


def test_norms_do_not_overflow_in_half_precision(tmp_path: Path) -> None:
    """Values of 1,000 have squares float16 cannot hold; written out as optimum writes them.

    In the reference evaluator: ONNX Runtime's CPU kernels compute float16 in float32.
    """
    nodes = [
        helper.make_node("Mul", ["x", "big"], ["wide"], name="wide"),
        helper.make_node("Pow", ["wide", "two"], ["squares"], name="squares"),
        helper.make_node("ReduceMean", ["squares", "last"], ["mean"], name="mean", keepdims=1),
        helper.make_node("Add", ["mean", "epsilon"], ["safe"], name="safe"),
        helper.make_node("Sqrt", ["safe"], ["root"], name="root"),
        helper.make_node("Div", ["one", "root"], ["inverse"], name="inverse"),
        helper.make_node("Mul", ["wide", "inverse"], ["y"], name="y"),
    ]
    scalars = {"big": 1000, "two": 2, "epsilon": 1e-6, "one": 1}
    constants = {name: np.array(value, np.float32) for name, value in scalars.items()} | {"last": np.array([-1])}
    shapes = (TensorProto.FLOAT, [2, 16])
    graph = Graph(model_of(nodes, {"x": shapes}, {"y": shapes}, constants), tmp_path)
    make_half(graph, ())
    x = np.random.default_rng(0).standard_normal((2, 16)).astype(np.float32)
    found = ReferenceEvaluator(str(written(graph, tmp_path / "g"))).run(None, {"x": x})[0]
    wanted = x / np.sqrt(np.square(x).mean(-1, keepdims=True))
    assert np.abs(found - wanted).max() < 1e-2


def test_a_weight_float16_cannot_hold_is_named(tmp_path: Path) -> None:
    shapes = (TensorProto.FLOAT, [2, 2])
    node = helper.make_node("MatMul", ["x", "weight"], ["y"], name="product")
    graph = Graph(
        model_of([node], {"x": shapes}, {"y": shapes}, {"weight": np.full((2, 2), 1e5, np.float32)}), tmp_path
    )
    make_half(graph, ())
    with pytest.raises(R2GenError, match="weight holds values up to 1e") as caught:
        graph.write(tmp_path)
    assert caught.value.code == "R2G-ENGINE-GRAPH"


def test_four_bits_are_those_of_the_exporter(tmp_path: Path) -> None:
    import torch

    weight = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="y")
    shapes = {"x": (TensorProto.FLOAT, [1, 64])}, {"y": (TensorProto.FLOAT, [1, 48])}
    graph = Graph(model_of([node], *shapes, {"w": weight}), tmp_path)
    quantised(graph)
    (codes,) = (one for one in graph.tensors.values() if one.kind == TensorProto.INT4)
    assert codes.nbytes == 64 * 48 / 2
    dequantised(graph)
    dense = graph.tensors[graph.nodes[0].input[1]].load()
    wanted = dequantize(quantize(torch.from_numpy(weight.T.copy()), 4)).T
    np.testing.assert_allclose(dense, wanted, rtol=1e-6)


def test_weights_stay_on_the_disk_until_they_are_written(tmp_path: Path) -> None:
    write_decoder(make_llama(), tmp_path, dialect="trt", precision="fp32")
    graph = Graph.load(tmp_path / "model.onnx")
    (tmp_path / "model.onnx.data").rename(tmp_path / "elsewhere")
    make_half(graph, ())
    (tmp_path / "out").mkdir()
    with pytest.raises(FileNotFoundError):
        graph.write(tmp_path / "out")
