"""The demo build from nothing, small: every stage for real, and an interrupted build goes on where it stopped."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from r2gen_export.bundle import open_bundle
from r2gen_export.errors import R2GenError

pytest.importorskip("lightning")

from r2gen_export.demo.build import DemoSettings, build_demo
from r2gen_export.evaluation.phantom_findings import FINDINGS


@pytest.mark.slow
@pytest.mark.long
def test_quick_build_runs_every_stage_and_resumes(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    bundle = build_demo(out, DemoSettings.quick(), device="cpu")
    manifest = open_bundle(bundle)
    assert manifest.synthetic
    assert set(manifest.presets) == {"fast", "paper"}
    score = manifest.parity[-1]
    assert (score.name, score.stage, score.gate) == (FINDINGS, "report", False)
    assert score.metrics["studies"] == DemoSettings.quick().held_out
    precision, recall = score.metrics["precision"], score.metrics["recall"]
    assert score.metrics["f1"] == pytest.approx(2 * precision * recall / max(precision + recall, 1e-9))
    assert score.metrics["distinct"] >= 1, "the phantoms were reported on"

    weights = out / "llm/model.safetensors"
    before = weights.stat().st_mtime_ns
    shutil.rmtree(bundle)
    assert build_demo(out, DemoSettings.quick(), device="cpu") == bundle
    assert weights.stat().st_mtime_ns == before
    assert open_bundle(bundle).parity[-1] == score

    with pytest.raises(R2GenError, match="R2G-OUTPUT-EXISTS"):
        build_demo(out, DemoSettings.quick(seed=8), device="cpu")
