"""What ONNX Runtime's TensorRT providers are told: names their libraries know, shapes that cover the graphs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest

from r2gen_export import bundle as layout
from r2gen_export.bundle import demo_bundle, load_manifest
from r2gen_export.errors import R2GenError
from r2gen_export.runtime.backends import ort_providers as providers
from r2gen_export.runtime.backends.ort_providers import CPU, TENSORRT, TENSORRT_RTX, choose_providers
from r2gen_export.runtime.backends.ort_tensorrt import ProviderTuning, decoder_tuning, vision_tuning
from r2gen_export.system.cache_folder import CACHE_VARIABLE

LIBRARY = Path(onnxruntime.__file__).parent / "capi/libonnxruntime_providers_tensorrt.so"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def _tunings(bundle: Path) -> dict[str, ProviderTuning]:
    manifest = load_manifest(bundle)
    return {layout.VISION: vision_tuning(manifest), layout.DECODER: decoder_tuning(manifest)}


@pytest.mark.parametrize("dialect", ["standard", "ort"])
def test_shapes_cover_every_input_that_varies(cache: Path, tiny_bundle: Path, dialect: str) -> None:
    bundle = demo_bundle() if dialect == "standard" else tiny_bundle
    assert load_manifest(bundle).dialect == dialect
    for graph, tuning in _tunings(bundle).items():
        session = onnxruntime.InferenceSession(bundle / graph, providers=[CPU])
        inputs = {one.name: one.shape for one in session.get_inputs()}
        varying = {name for name, shape in inputs.items() if any(isinstance(size, str) for size in shape)}
        assert varying <= tuning.shapes.keys() <= inputs.keys()
        for name, sizes in tuning.shapes.items():
            assert {len(size) for size in sizes} == {len(inputs[name])}
            for axis, fixed in enumerate(inputs[name]):
                small, usual, large = (size[axis] for size in sizes)
                assert small <= usual <= large
                assert not isinstance(fixed, int) or small == large == fixed


def test_a_cache_shorter_than_a_step_has_a_profile_all_the_same(cache: Path, tiny_bundle: Path) -> None:
    manifest = load_manifest(tiny_bundle)
    short = replace(manifest, dims=replace(manifest.dims, max_positions=40))
    sizes = decoder_tuning(short).shapes["past_key_values.0.key"]
    assert [size[2] for size in sizes] == [64, 64, 64]


def test_options_are_those_of_the_libraries(cache: Path) -> None:
    tunings = _tunings(demo_bundle())
    found = {graph: tuning.options(TENSORRT) for graph, tuning in tunings.items()}
    assert found[layout.VISION]["trt_profile_max_shapes"] == "pixel_values:8x3x224x224"
    assert found[layout.DECODER]["trt_profile_min_shapes"].startswith("inputs_embeds:1x1x96,attention_mask:1x1,")
    folders = {options["trt_engine_cache_path"] for options in found.values()}
    assert len(folders) == 2
    for folder in map(Path, folders):
        assert folder.is_dir()
        assert cache in folder.parents
    if LIBRARY.is_file():
        known = LIBRARY.read_bytes()
        assert all(name.encode() in known for options in found.values() for name in options)
    rtx = tunings[layout.DECODER].options(TENSORRT_RTX)
    assert rtx.keys() == {
        "nv_runtime_cache_path", "nv_profile_min_shapes", "nv_profile_opt_shapes", "nv_profile_max_shapes",
    }  # fmt: skip
    assert tunings[layout.DECODER].options(CPU) == {}


def test_a_cache_that_cannot_be_made_stops_nothing(cache: Path) -> None:
    cache.write_text("a file in the way")
    assert _tunings(demo_bundle())[layout.VISION].options(TENSORRT)


@pytest.mark.skipif(not providers.why_no_gpu(), reason="this machine has a GPU")
def test_without_a_gpu_tensorrt_says_so() -> None:
    with pytest.raises(R2GenError, match="TensorRT is not usable: no NVIDIA driver on this machine"):
        choose_providers("tensorrt")
