"""NaN and infinity in a graph are traced to the node they begin in."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from r2gen_export.bundle import DECODER, VISION, open_bundle, seal
from r2gen_export.exporting.parity import first_nonfinite as nonfinite
from r2gen_export.exporting.parity.first_nonfinite import first_nonfinite
from r2gen_export.exporting.verify import verify_bundle
from tests.conftest import TinySources


def overflow(graph: Path, wanted: str) -> None:
    """Scale the weight whose name holds `wanted` so far that what comes out of its node overflows."""
    model = onnx.load(graph)
    tensor = next(one for one in model.graph.initializer if wanted in one.name)
    value = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(np.full_like(value, 3e38), tensor.name))
    onnx.save(model, graph)


@pytest.mark.parametrize("nodes", [1, 3, 48])
def test_the_first_of_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: int) -> None:
    """log(-1) in the middle; before it an -infinity that a mask may hold, behind it NaN everywhere."""
    made = [
        helper.make_node("Relu", ["x"], ["a"], name="relu"),
        helper.make_node("Log", ["a"], ["b"], name="log of zero"),
        helper.make_node("Exp", ["b"], ["c"], name="exp"),
        helper.make_node("Sub", ["c", "one"], ["d"], name="minus one"),
        helper.make_node("Log", ["d"], ["e"], name="log of minus one"),
        helper.make_node("Exp", ["e"], ["y"], name="behind"),
    ]
    graph = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
        [numpy_helper.from_array(np.ones(1, np.float32), "one")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "model.onnx")
    monkeypatch.setattr(nonfinite, "CHUNK", nodes)
    assert first_nonfinite(tmp_path / "model.onnx", {"x": np.array([0, 5], np.float32)}) == "log of minus one (Log)"
    assert first_nonfinite(tmp_path / "model.onnx", {"x": np.array([4, 5], np.float32)}) is None
    monkeypatch.setattr(nonfinite, "LARGEST", 10)
    assert first_nonfinite(tmp_path / "model.onnx", {"x": np.array([0, 5], np.float32)}) is None


@pytest.mark.parametrize("place", [(VISION, "layer_norm.weight", "encode"), (DECODER, "norm", "prefill")], ids=str)
def test_verify_names_the_node(
    tiny_bundle: Path, tiny_sources: TinySources, tmp_path: Path, place: tuple[str, str, str]
) -> None:
    part, weight, stage = place
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    overflow(bundle / part, weight)
    seal(bundle, open_bundle(tiny_bundle))
    checks = verify_bundle(bundle, tiny_sources.checkpoint, tiny_sources.vision, tiny_sources.llm, max_new_tokens=3)
    failed = next(check for check in checks if not check.passed)
    assert failed.stage == stage
    assert "first in node" in failed.detail
    assert failed.observed == float("inf")
