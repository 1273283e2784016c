"""`--for gpu|cpu`: which dialect and precisions follow, with and without a GPU, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import LlamaConfig

from r2gen_export.bundle import open_bundle
from r2gen_export.errors import R2GenError
from r2gen_export.exporting import target
from r2gen_export.exporting.decoder.export import check_variant
from r2gen_export.exporting.export import export_bundle
from r2gen_export.exporting.settings import ExportSettings
from r2gen_export.precision import PRECISIONS, with_half_activations
from tests.command import run_here
from tests.conftest import TinySources

LLAMAS = {
    "heads of 16": LlamaConfig(hidden_size=64, num_attention_heads=4),
    "heads of 24": LlamaConfig(hidden_size=96, num_attention_heads=4),
    "gelu": LlamaConfig(hidden_size=64, num_attention_heads=4, hidden_act="gelu"),
}
"""Written in any dialect, in `trt` and `standard`, in `standard` alone."""

NO_GPU, GPU = "no NVIDIA driver on this machine", ""


def choose(llm: str, missing: str, **given: str) -> target.Choice:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, "why_no_gpu", lambda: missing)
        return target.choose(ExportSettings(Path("c"), "v", "l", Path("o"), **given), LLAMAS[llm])  # type: ignore[arg-type]


@pytest.mark.parametrize("missing", [NO_GPU, GPU])
@pytest.mark.parametrize(
    ("llm", "given", "expected"),
    [
        ("heads of 16", {"target": "cpu"}, "cpu ort fp32 fp32"),
        ("heads of 24", {"target": "cpu"}, "cpu trt fp32 fp32"),
        ("gelu", {"target": "cpu"}, "cpu standard fp32 fp32"),
        ("heads of 16", {"target": "cpu", "precision": "int4"}, "cpu ort int4 fp32"),
        ("heads of 16", {"target": "cpu", "precision": "int4-f16"}, "cpu ort int4-f16 fp32"),
        ("heads of 16", {"target": "gpu"}, "gpu ort fp16 fp16"),
        ("heads of 24", {"target": "gpu"}, "gpu trt fp16 fp16"),
        ("gelu", {"target": "gpu"}, "gpu standard fp32 fp16"),
        ("heads of 16", {"target": "gpu", "dialect": "trt"}, "gpu trt fp16 fp16"),
        ("heads of 16", {"target": "gpu", "dialect": "standard"}, "gpu standard fp32 fp16"),
        ("heads of 16", {"target": "gpu", "precision": "int8-f16"}, "gpu ort int8-f16 fp16"),
        ("heads of 16", {"target": "gpu", "head_precision": "int8-f16"}, "gpu ort fp16 fp16"),
        ("heads of 16", {"target": "gpu", "head_precision": "int8"}, "gpu trt fp32 fp16"),
        ("heads of 16", {"target": "gpu", "precision": "fp32"}, "gpu trt fp32 fp16"),
        ("heads of 16", {"target": "gpu", "precision": "int4-128"}, "gpu trt int4-128 fp16"),
        ("heads of 24", {"target": "gpu", "precision": "int4-128-f16"}, "gpu trt int4-128-f16 fp16"),
        ("heads of 16", {"target": "gpu", "vision_precision": "fp32"}, "gpu ort fp16 fp32"),
    ],
    ids=str,
)
def test_a_given_target_does_not_depend_on_the_machine(
    llm: str, given: dict[str, str], expected: str, missing: str
) -> None:
    choice = choose(llm, missing, **given)
    assert f"{choice.target} {choice.dialect} {choice.precision} {choice.vision_precision}" == expected
    assert choice.head_precision == given.get("head_precision", choice.precision)
    assert choice.reason == (
        f"--for {choice.target}: as given; decoder in dialect {choice.dialect}, {choice.precision}; "
        f"vision encoder in {choice.vision_precision}"
    )


@pytest.mark.parametrize("precision", [name for name, entry in PRECISIONS.items() if not entry.half])
@pytest.mark.parametrize("option", ["precision", "head_precision"])
def test_what_a_gpu_has_no_kernel_for_is_refused_with_what_it_has(precision: str, option: str) -> None:
    given = {"dialect": "ort", option: precision}
    with pytest.raises(R2GenError, match="R2G-CONFIG-VALUE") as caught:
        choose("heads of 16", GPU, target="gpu", **given)
    better = with_half_activations(precision)
    assert precision in caught.value.message
    assert f"--precision {better}" in caught.value.fix
    assert choose("heads of 16", GPU, target="gpu", dialect="ort", precision=better).dialect == "ort"
    # Where the GPU was only detected, the same is exported for the CPU, and said so in one sentence.
    choice = choose("heads of 16", GPU, **given)
    assert (choice.target, choice.dialect, choice.vision_precision) == ("cpu", "ort", "fp32")
    assert f"--precision {better} would run" in choice.reason


def test_without_a_target_the_machine_decides() -> None:
    assert choose("heads of 16", NO_GPU).reason.startswith(f"--for cpu: {NO_GPU}; decoder in dialect ort, fp32;")
    assert choose("heads of 16", GPU).reason.startswith(
        "--for gpu: an NVIDIA GPU is there; decoder in dialect ort, fp16"
    )
    assert choose("heads of 16", GPU, precision="int4").dialect == "trt"
    assert choose("heads of 16", GPU, dialect="standard").precision == "fp32"
    with pytest.raises(R2GenError, match="R2G-CONFIG-VALUE"):
        choose("heads of 16", GPU, precision="int5")


def test_only_precisions_of_the_same_activations_combine() -> None:
    for precision, entry in PRECISIONS.items():
        alike = [name for name, other in PRECISIONS.items() if other.half == entry.half]
        for head in PRECISIONS:
            if head in alike:
                check_variant("ort", precision, head)
                continue
            with pytest.raises(R2GenError, match="R2G-CONFIG-VALUE") as caught:
                check_variant("ort", precision, head)
            assert caught.value.fix == f"give --head-precision one of {', '.join(alike)}"


def test_the_command_hands_the_target_on(tiny_sources: TinySources, tmp_path: Path) -> None:
    sources = ("--checkpoint", tiny_sources.checkpoint, "--vision", tiny_sources.vision, "--llm", tiny_sources.llm)
    command = ("export", *sources, "--out", tmp_path / "bundle", "--for", "gpu")
    refused = run_here(*command, "--dialect", "ort", "--precision", "int4")
    assert refused.returncode == 2
    assert "--precision int4-f16" in refused.stderr


def test_the_target_is_said_and_recorded(
    tiny_sources: TinySources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "why_no_gpu", lambda: GPU)
    said: list[str] = []
    paths = (tiny_sources.checkpoint, tiny_sources.vision, tiny_sources.llm)
    export_bundle(ExportSettings(*paths, tmp_path / "bundle", parity_max_new_tokens=3), say=said.append)
    assert "--for gpu: an NVIDIA GPU is there; decoder in dialect ort, fp16; vision encoder in fp16" in said
    manifest = open_bundle(tmp_path / "bundle")
    assert (manifest.target, manifest.dialect) == ("gpu", "ort")
    precision = {"vision": "fp16", "decoder": "fp16", "lm_head": "fp16", "embed_tokens": "fp16"}
    assert manifest.precision == precision
