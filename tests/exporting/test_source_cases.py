"""Sources whose files say something else than transformers reads: the bundle is the one that was meant, or none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from r2gen_export.bundle import load_manifest
from r2gen_export.errors import R2GenError
from r2gen_export.exporting.export import export_bundle
from r2gen_export.exporting.settings import ExportSettings
from tests.conftest import TinySources
from tests.helpers.source_files import POINTER, change
from tests.helpers.tiny import make_tiny_llm


@pytest.fixture
def sources(tiny_sources: TinySources, tmp_path: Path) -> TinySources:
    """A copy to write into. The checkpoint's hash of the LLM does not depend on its config.json."""
    parts = {name: tmp_path / name for name in ("checkpoint", "vision", "llm")}
    for name, folder in parts.items():
        shutil.copytree(getattr(tiny_sources, name), folder)
    return TinySources(**parts)


def export(sources: TinySources, out: Path, say: Callable[[str], None] = lambda line: None) -> Path:
    settings = ExportSettings(
        checkpoint=sources.checkpoint, vision=sources.vision, llm=sources.llm, out=out, target="cpu",
        parity_max_new_tokens=6, dialect="ort", precision="fp32",
    )  # fmt: skip
    export_bundle(settings, say=say)
    return out


def test_a_configuration_of_transformers_5_gives_the_bundle_of_its_twin(sources: TinySources, tmp_path: Path) -> None:
    change(sources.llm, rope_theta=5e5, rope_scaling={"rope_type": "linear", "factor": 2.0})
    old = export(sources, tmp_path / "old")
    parameters = {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}
    change(sources.llm, drop=("rope_theta", "rope_scaling", "torch_dtype"), rope_parameters=parameters, dtype="float32")
    change(sources.llm, "tokenizer_config.json", tokenizer_class="TokenizersBackend", backend="tokenizers")
    new = export(sources, tmp_path / "new")
    before, after = load_manifest(old), load_manifest(new)
    assert {name: entry.sha256 for name, entry in before.files.items()} == {
        name: entry.sha256 for name, entry in after.files.items()
    }
    assert "decoder/model.onnx.data" in before.files or "decoder/model.onnx" in before.files
    assert before.reference == after.reference
    assert any(check.stage == "tokens" and check.passed for check in after.parity)


def adapter(sources: TinySources) -> None:
    other = make_tiny_llm(sources.llm.parent / "other", seed=7)
    record = {"peft_type": "LORA", "r": 4, "base_model_name_or_path": str(other)}
    (sources.llm / "adapter_config.json").write_text(json.dumps(record))


REFUSED: dict[str, tuple[Callable[[TinySources], Any], str, str]] = {
    "adapter": (adapter, "R2G-MODEL-UNSUPPORTED", "adapter_config.json"),
    "dynamic": (
        lambda s: change(s.llm, rope_scaling={"rope_type": "dynamic", "factor": 2.0}),
        "R2G-MODEL-UNSUPPORTED",
        '"dynamic"',
    ),
    "quantized": (lambda s: change(s.llm, quantization_config={"bits": 4}), "R2G-MODEL-UNSUPPORTED", "quantization"),
    "resample": (
        lambda s: change(s.vision, "preprocessor_config.json", resample=9),
        "R2G-MODEL-UNSUPPORTED",
        "resample is 9",
    ),
    "rescale": (
        lambda s: change(s.vision, "preprocessor_config.json", rescale_factor=None),
        "R2G-MODEL-UNSUPPORTED",
        "rescale_factor is null",
    ),
    "depths": (lambda s: change(s.vision, depths="1, 1"), "R2G-MODEL-UNSUPPORTED", "depths"),
    "tokenizer": (
        lambda s: change(s.llm, "tokenizer_config.json", tokenizer_class="X"),
        "R2G-MODEL-UNSUPPORTED",
        "tokenizer_class",
    ),
    "pointer": (
        lambda s: (s.vision / "preprocessor_config.json").write_text(POINTER),
        "R2G-MODEL-MISSING",
        "git-lfs pointer",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_refused_before_any_weight_is_read(
    sources: TinySources, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil, code, named = REFUSED[case]
    spoil(sources)
    monkeypatch.setattr("r2gen_export.training.source_files.weights._read", None)
    monkeypatch.setattr("r2gen_export.training.checkpoint.load_file", None)
    said: list[str] = []
    with pytest.raises(R2GenError) as caught:
        export(sources, tmp_path / "out", said.append)
    assert not said, "nothing was estimated or announced either"
    assert caught.value.code == code
    assert named in caught.value.message
    assert not (tmp_path / "out").exists()
