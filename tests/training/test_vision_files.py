"""Files of a vision encoder: its config, its weights, its preprocessing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import ViTImageProcessor

from r2gen_export.studies.images import preprocess
from r2gen_export.training.hub import load_vision
from r2gen_export.training.source_files.preprocessor import FILTERS, image_spec
from tests.helpers.source_files import change, refusal
from tests.helpers.tiny import make_tiny_vision


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_vision(tmp_path_factory.mktemp("vision_files") / "vision")


@pytest.fixture
def vision(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "vision"))


SWIN_REFUSED: dict[str, dict[str, Any]] = {
    'embed_dim is "8"': {"embed_dim": "8"},
    "depths is [1, -1]": {"depths": [1, -1]},
    "depths is []": {"depths": []},
    "num_heads is [2]": {"num_heads": [2]},
    "num_heads is [3, 2]": {"num_heads": [3, 2]},
    "num_channels is 1": {"num_channels": 1},
    "layer_norm_eps is NaN": {"layer_norm_eps": float("nan")},
    "window_size is 0": {"window_size": 0},
    "mlp_ratio is -2": {"mlp_ratio": -2},
    'qkv_bias is "yes"': {"qkv_bias": "yes"},
    "image_size is [32, 32]": {"image_size": [32, 32]},
    "hidden_act": {"hidden_act": 5},
    "quantization_config": {"quantization_config": {"quant_method": "hqq"}},
    "place: encoder.layers.0.blocks.0.attention.self.key.bias": {"qkv_bias": False},
    "relative_position_bias_table (49, 2), expected (25, 2)": {"window_size": 3},
    "lacks": {"depths": [1, 2]},
}


@pytest.mark.parametrize("named", SWIN_REFUSED)
def test_what_a_vision_encoder_would_do_otherwise_is_refused_by_name(vision: Path, named: str) -> None:
    code = "R2G-MODEL-MISSING" if named == "lacks" else "R2G-MODEL-UNSUPPORTED"
    refusal(lambda: load_vision(change(vision, **SWIN_REFUSED[named])), named, code=code)


def test_the_published_classifier_loads_as_an_encoder(vision: Path) -> None:
    tensors = {name: value.clone() for name, value in load_file(vision / "model.safetensors").items()}
    expected = load_vision(vision).state_dict()
    named = {f"swin.{name}": value for name, value in tensors.items()}
    save_file({**named, "classifier.weight": torch.zeros(3, 16)}, vision / "model.safetensors")
    for name, value in load_vision(vision).state_dict().items():
        assert torch.equal(value, expected[name]), name


# What transformers' processor takes for null: 0.5 for mean and deviation, 224 for the size.
SPECS: dict[str, dict[str, Any]] = {
    "mean-null": {"image_mean": None},
    "std-null": {"image_std": None},
    "size-null": {"size": None},
    "size-number": {"size": 16},
    "size-pair": {"size": [16, 24]},
    "one-mean": {"image_mean": [0.4, 0.4, 0.4], "image_std": [0.2, 0.2, 0.2]},
    "no-rescale": {"do_rescale": False, "image_mean": [120.0] * 3, "image_std": [60.0] * 3, "rescale_factor": None},
    "no-normalize": {"do_normalize": False, "image_mean": None, "image_std": None},
    **{f"filter-{number}": {"resample": number} for number in FILTERS},
}


@pytest.mark.parametrize("name", SPECS)
def test_accepted_preprocessing_is_what_transformers_does(vision: Path, name: str) -> None:
    change(vision, "preprocessor_config.json", **SPECS[name])
    pixels = np.random.default_rng(3).integers(0, 256, (40, 36, 3), dtype=np.uint8)
    mine = preprocess([pixels], image_spec(vision))
    theirs = ViTImageProcessor.from_pretrained(vision)(Image.fromarray(pixels), return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=2e-5)


PROCESSOR_REFUSED: dict[str, dict[str, Any]] = {
    "resample is 9": {"resample": 9},
    "resample is null": {"resample": None},
    'resample is "bicubic"': {"resample": "bicubic"},
    "resample is true": {"resample": True},
    "resample is 2.5": {"resample": 2.5},
    "rescale_factor is null": {"rescale_factor": None},
    "rescale_factor is 0": {"rescale_factor": 0},
    "rescale_factor is -1": {"rescale_factor": -1},
    'rescale_factor is "1/255"': {"rescale_factor": "1/255"},
    "rescale_factor is NaN": {"rescale_factor": float("nan")},
    "rescale_factor 1000000.0": {"rescale_factor": 1e6},
    "image_mean is [0.5, 0.5]": {"image_mean": [0.5, 0.5]},
    "image_mean is [0.5, 0.5, NaN]": {"image_mean": [0.5, 0.5, float("nan")]},
    "image_mean is [true": {"image_mean": [True, False, True]},
    'image_mean is "imagenet"': {"image_mean": "imagenet"},
    "image_std is [0.2, 0, 0.2]": {"image_std": [0.2, 0, 0.2]},
    "image_std is [-0.2, 0.2, 0.2]": {"image_std": [-0.2, 0.2, 0.2]},
    "image_std [1e-50": {"image_std": [1e-50, 1e-50, 1e-50]},
    "size is 0": {"size": 0},
    "size is 100000": {"size": 100000},
    'size is "224"': {"size": "224"},
    "size is [32, 32, 3]": {"size": [32, 32, 3]},
    "shortest_edge": {"size": {"shortest_edge": 32}},
    'size is {"height": 32}': {"size": {"height": 32}},
    "size is {": {"size": {"height": 32.5, "width": 32}},
    "default_to_square": {"size": 32, "default_to_square": False},
    "do_resize is false": {"do_resize": False},
    "do_resize is null": {"do_resize": None},
    'do_normalize is "true"': {"do_normalize": "true"},
    "do_rescale is 1": {"do_rescale": 1},
    "do_center_crop": {"do_center_crop": True},
    "do_pad": {"do_pad": True},
    "crop_pct": {"crop_pct": 0.875},
    "do_flip_channel_order": {"do_flip_channel_order": True},
    "size_divisor": {"size_divisor": 32},
    "image_processor_type": {"image_processor_type": "ConvNextImageProcessor"},
    "data_format": {"data_format": "channels_last"},
}


@pytest.mark.parametrize("named", PROCESSOR_REFUSED)
def test_other_preprocessing_is_refused_by_name(vision: Path, named: str) -> None:
    named_value = "image_std" if named == "image_std [1e-50" else named
    refusal(lambda: image_spec(change(vision, "preprocessor_config.json", **PROCESSOR_REFUSED[named])), named_value)
