"""The demo build from nothing, small: every stage for real, and an interrupted build goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from r2gen_export.bundle import open_bundle
from r2gen_export.errors import R2GenError

pytest.importorskip("lightning")

from r2gen_export.demo.build import DemoSettings, build_demo


@pytest.mark.slow
def test_quick_build_runs_every_stage_and_resumes(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    bundle = build_demo(out, DemoSettings.quick(), device="cpu")
    manifest = open_bundle(bundle)
    assert manifest.synthetic
    assert set(manifest.presets) == {"fast", "paper"}
    score = json.loads((out / "score/stage.json").read_text())
    assert score["studies"] == DemoSettings.quick().held_out
    assert 0 <= score["micro_f1"] <= 1

    weights = out / "llm/model.safetensors"
    before = weights.stat().st_mtime_ns
    (out / "score/stage.json").unlink()
    for path in sorted((out / "score").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert build_demo(out, DemoSettings.quick(), device="cpu") == bundle
    assert weights.stat().st_mtime_ns == before
    assert json.loads((out / "score/stage.json").read_text()) == score

    with pytest.raises(R2GenError, match="R2G-OUTPUT-EXISTS"):
        build_demo(out, DemoSettings.quick(seed=8), device="cpu")
