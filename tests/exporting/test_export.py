"""Export: every alignment passes the gate, a sabotaged graph does not, nothing half is left."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from r2gen_export.bundle import open_bundle, seal
from r2gen_export.errors import R2GenError
from r2gen_export.exporting import vision
from r2gen_export.exporting.export import ExportSettings, export_bundle
from r2gen_export.exporting.verify import verify_bundle
from r2gen_export.runtime.pipeline import Pipeline
from tests.conftest import TinySources, make_sources
from tests.test_cli import run_cli


def export(sources: TinySources, out: Path, **more: object) -> None:
    settings = {"checkpoint": sources.checkpoint, "vision": sources.vision, "llm": sources.llm, "out": out, **more}
    export_bundle(ExportSettings(parity_max_new_tokens=20, **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "config",
    [{"alignment": "delta"}, {"alignment": "deep"}, {"global_only": True}, {"llm_lora": True}],
    ids=["delta", "deep", "global", "llm-lora"],
)
def test_every_kind_passes_the_gate(tmp_path: Path, config: dict[str, object]) -> None:
    export(make_sources(tmp_path, **config), tmp_path / "bundle")
    manifest = open_bundle(tmp_path / "bundle")
    assert len(manifest.parity) >= 8
    assert all(check.passed for check in manifest.parity)


def test_either_semantics_is_exported_recorded_and_verified(tiny_sources: TinySources, tmp_path: Path) -> None:
    export(tiny_sources, tmp_path / "bundle", semantics="hf-4.30")
    assert open_bundle(tmp_path / "bundle").semantics == "hf-4.30"
    found = {}
    phantom = Path(__file__).parents[1] / "data/phantom.png"
    pipeline = Pipeline.from_bundle(tmp_path / "bundle", device="cpu")
    for semantics in (None, "hf-4.30", "hf-current"):
        checks = verify_bundle(
            tmp_path / "bundle", tiny_sources.checkpoint, tiny_sources.vision, tiny_sources.llm,
            semantics=semantics, max_new_tokens=30,
        )  # fmt: skip
        assert all(check.passed for check in checks)
        found[semantics] = pipeline.generate(phantom, preset="paper", semantics=semantics)
        assert found[semantics].semantics == (semantics or "hf-4.30")
    assert found[None].token_ids == found["hf-4.30"].token_ids
    assert found[None].score != found["hf-current"].score


def test_shallow_bundle_verifies_and_names_no_folder(tiny_bundle: Path, tiny_sources: TinySources) -> None:
    checks = verify_bundle(
        tiny_bundle, tiny_sources.checkpoint, tiny_sources.vision, tiny_sources.llm, max_new_tokens=10
    )
    assert len(checks) > 8
    assert all(check.passed for check in checks)
    for path in tiny_bundle.rglob("*"):
        if path.is_file():
            assert str(tiny_sources.llm.parent).encode() not in path.read_bytes()
            assert str(Path(__file__).parents[2]).encode() not in path.read_bytes()


def test_another_checkpoint_is_noticed(tiny_bundle: Path, tiny_sources: TinySources, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiny_sources.checkpoint, tmp_path / "other"))
    tensors = load_file(other / "adapter.safetensors")
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name] + 0.5}, other / "adapter.safetensors")
    checks = verify_bundle(tiny_bundle, other, tiny_sources.vision, tiny_sources.llm, max_new_tokens=5)
    assert "checkpoint SHA-256" in [check.name for check in checks if not check.passed]
    with pytest.raises(R2GenError, match="R2G-CONFIG-VALUE"):
        verify_bundle(tiny_bundle, other)


def test_sabotage_between_export_and_gate(
    tiny_sources: TinySources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vision graph is written from a model that was changed after PyTorch's reference ran."""
    honest = vision.export_vision

    def sabotaged(model: object, *arguments: object, **options: object) -> object:
        model.layer_norm.bias.data += 0.01  # type: ignore[attr-defined]
        return honest(model, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(vision, "export_vision", sabotaged)
    with pytest.raises(R2GenError) as caught:
        export(tiny_sources, tmp_path / "bundle")
    assert (caught.value.code, caught.value.exit_status) == ("R2G-PARITY-FAILED", 3)
    assert "first in encode: image_embeds, 1 view" in caught.value.message
    assert list(tmp_path.iterdir()) == []


def test_verify_command_says_where_two_runs_part(tiny_bundle: Path, tiny_sources: TinySources, tmp_path: Path) -> None:
    """The bundle's embedding table is changed: the vision encoder still agrees, the prefill does not."""
    changed = Path(shutil.copytree(tiny_bundle, tmp_path / "changed"))
    table = np.load(changed / "embed_tokens.npy")
    np.save(changed / "embed_tokens.npy", table * np.float32(1.02))
    seal(changed, open_bundle(tiny_bundle))
    data = Path(__file__).parents[1] / "data"
    command = ("--checkpoint", tiny_sources.checkpoint, "--vision", tiny_sources.vision, "--llm", tiny_sources.llm,
               "--images", data, "--parity-tokens", 6, "--format", "json")  # fmt: skip
    good = run_cli("verify", tiny_bundle, *command)
    assert good.returncode == 0, good.stderr
    checks = {check["name"]: check for check in json.loads(good.stdout)}
    assert checks["image_embeds, 1 view"]["metrics"]["cosine"] > 0.9999
    assert checks["logits, next 12 steps"]["metrics"]["top1"] == 1.0
    assert 0 <= checks["logits, first step"]["metrics"]["kl_max"] < 1e-6
    assert "3 studies" in checks["tokens, paper"]["detail"]
    bad = run_cli("verify", changed, *command)
    assert bad.returncode == 3
    assert "first in prefill: logits, first step" in bad.stderr
    verdicts = {check["name"]: check["passed"] for check in json.loads(bad.stdout)}
    assert verdicts["image_embeds, 1 view"]
    assert not verdicts["logits, first step"]
    assert run_cli("verify", tiny_bundle, *command[:6], "--images", tmp_path / "none").returncode == 2


def test_missing_and_nan_tensors(tiny_sources: TinySources, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(tiny_sources.checkpoint, tmp_path / "broken"))
    tensors = load_file(broken / "adapter.safetensors")
    gone = sorted(tensors)[:2]
    save_file({name: one for name, one in tensors.items() if name not in gone}, broken / "adapter.safetensors")
    sources = TinySources(broken, tiny_sources.vision, tiny_sources.llm)
    with pytest.raises(R2GenError) as caught:
        export(sources, tmp_path / "bundle")
    assert caught.value.code == "R2G-CHECKPOINT-KEYS"
    assert all(name in caught.value.message for name in gone)
    save_file({**tensors, gone[0]: tensors[gone[0]] * float("nan")}, broken / "adapter.safetensors")
    with pytest.raises(R2GenError, match=r"R2G-(MODEL|CHECKPOINT)"):
        export(sources, tmp_path / "bundle")
    for wrong in ({"dialect": "standard", "precision": "int4"}, {"precision": "int5"}, {"dialect": "coreml"}):
        with pytest.raises(R2GenError, match="R2G-"):
            export(tiny_sources, tmp_path / "bundle", **wrong)
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_export_works_without_the_train_extra(tiny_sources: TinySources, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules.update(lightning=None, tensorboard=None)\n"
        "import cli; cli.app(sys.argv[1:])\n"
    )  # fmt: skip
    command = ["export", "--checkpoint", tiny_sources.checkpoint, "--vision", tiny_sources.vision,
               "--llm", tiny_sources.llm, "--out", tmp_path / "bundle", "--parity-tokens", 3]  # fmt: skip
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, command)], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert open_bundle(tmp_path / "bundle").parity
