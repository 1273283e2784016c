"""The choice between ONNX Runtime and OpenVINO on the CPU: measured once, remembered, never in the way."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from r2gen_export.bundle import demo_bundle
from r2gen_export.errors import R2GenError
from r2gen_export.runtime.backends import cpu_timing as engines
from r2gen_export.runtime.backends.cpu_timing import Race
from r2gen_export.runtime.backends.openvino_decoder import OpenVinoDecoder
from r2gen_export.runtime.backends.ort_decoder import DecoderSession
from r2gen_export.runtime.pipeline import Pipeline
from r2gen_export.system.cache_folder import CACHE_VARIABLE

PHANTOM = Path(__file__).parents[2] / "data/phantom.png"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of its own, and a race for models of any size."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(engines, "LARGE", 0)
    return tmp_path / "cache" / "engines"


def test_openvino_writes_the_same_report(tiny_bundle: Path) -> None:
    found = {device: Pipeline.from_bundle(tiny_bundle, device=device) for device in ("cpu", "openvino")}
    for settings in ({"num_beams": 1}, {"num_beams": 3}, {"num_beams": 1, "do_sample": True, "seed": 5}):
        reports = {name: one.generate(PHANTOM, max_new_tokens=30, **settings) for name, one in found.items()}
        assert reports["openvino"].token_ids == reports["cpu"].token_ids
        np.testing.assert_allclose(reports["openvino"].logprobs, reports["cpu"].logprobs, atol=1e-4)
    assert reports["openvino"].execution_provider == "OpenVINO"
    many = list(found["openvino"].generate_many([PHANTOM] * 3, num_beams=3, max_new_tokens=30))
    beam = found["cpu"].generate(PHANTOM, num_beams=3, max_new_tokens=30)
    assert [one.report.token_ids for one in many if one.report] == [beam.token_ids] * 3


def test_the_race_is_run_once_and_decides(tiny_bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Pipeline.from_bundle(tiny_bundle)
    (record,) = cache.glob("*.json")
    race = Race(**json.loads(record.read_text()))
    assert race.onnxruntime > 0
    assert race.openvino > 0
    assert f"{race.ratio:.2f} of ONNX Runtime's time" in pipeline.provider.steps[-1]
    assert ("taken for the decoder" in pipeline.provider.steps[-1]) == (race.ratio < engines.MARGIN)

    monkeypatch.setattr(engines, "run_race", lambda *_: pytest.fail("raced again"))
    for openvino, kind in ((89.0, OpenVinoDecoder), (91.0, DecoderSession)):
        record.write_text(json.dumps({"onnxruntime": 100.0, "openvino": openvino}))
        pipeline = Pipeline.from_bundle(tiny_bundle)
        assert isinstance(pipeline._decoder, kind)
        assert (pipeline.provider.name == "OpenVINO") == (kind is OpenVinoDecoder)
    assert isinstance(Pipeline.from_bundle(tiny_bundle, device="cpu")._decoder, DecoderSession)


@pytest.mark.parametrize("content", ["", "{}", "[1, 2]", '{"onnxruntime": 0, "openvino": 1}', '{"onnxruntime": "a"}'])
def test_a_record_that_is_none_is_measured_anew(tiny_bundle: Path, cache: Path, content: str) -> None:
    Pipeline.from_bundle(tiny_bundle)
    (record,) = cache.glob("*.json")
    record.write_text(content)
    Pipeline.from_bundle(tiny_bundle)
    assert Race(**json.loads(record.read_text())).onnxruntime > 0


def test_a_cache_that_cannot_be_written_stops_nothing(tiny_bundle: Path, cache: Path) -> None:
    cache.parent.write_text("a file in the way")
    assert "OpenVINO: " in Pipeline.from_bundle(tiny_bundle).provider.steps[-1]


def test_why_no_race_is_run(tiny_bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "it cannot run a decoder of dialect standard" in Pipeline.from_bundle(demo_bundle()).provider.steps[-1]
    with pytest.raises(R2GenError, match=r"not of the ort dialect") as caught:
        Pipeline.from_bundle(demo_bundle(), device="openvino")
    assert caught.value.code == "R2G-BUNDLE-GRAPH"
    monkeypatch.setattr(engines, "LARGE", 10**9)
    assert "too small to matter" in Pipeline.from_bundle(tiny_bundle).provider.steps[-1]
    monkeypatch.setattr(engines, "why_not_openvino", lambda: "the package openvino is not installed")
    assert "is not installed" in Pipeline.from_bundle(tiny_bundle).provider.steps[-1]
    assert not list(cache.glob("*"))


def test_without_openvino_asking_for_it_is_a_coded_error(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "r2gen_export.runtime.backends.openvino_decoder.importlib.util.find_spec",
        lambda name: None if name == "openvino" else 1,
    )
    with pytest.raises(R2GenError, match="openvino is not installed") as caught:
        Pipeline.from_bundle(tiny_bundle, device="openvino")
    assert caught.value.code == "R2G-DEVICE-UNAVAILABLE"


def test_an_engine_that_fails_loses(tiny_bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise R2GenError("R2G-BUNDLE-GRAPH", "model.onnx: OpenVINO does not load it", "")

    monkeypatch.setattr(engines, "OpenVinoDecoder", fail)
    pipeline = Pipeline.from_bundle(tiny_bundle)
    assert isinstance(pipeline._decoder, DecoderSession)
    assert pipeline.provider.steps[-1] == "OpenVINO: not taken, model.onnx: OpenVINO does not load it"
