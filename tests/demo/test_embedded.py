"""The demo bundle in the package: small enough, sound, and it says what the phantoms show."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from r2gen_export.bundle import DEMO_NOTICE, NOTICE, bundle_id, demo_bundle, open_bundle
from r2gen_export.evaluation.phantom_findings import FINDINGS, record_findings, score_phantoms, write_held_out
from r2gen_export.runtime.pipeline import Pipeline

MEGABYTE = 1_000_000


def test_it_is_sound_and_small() -> None:
    manifest = open_bundle(demo_bundle())
    assert manifest.synthetic
    assert all(check.passed for check in manifest.parity)
    assert sum(path.stat().st_size for path in demo_bundle().rglob("*") if path.is_file()) <= 5 * MEGABYTE


def test_every_output_says_it_is_a_demo() -> None:
    report = Pipeline.from_bundle().generate([Path(__file__).parents[1] / "data/phantom.png"])
    text = " ".join(report.to_text().replace("\n| ", " ").split())  # the notice is wrapped
    assert NOTICE in text
    assert DEMO_NOTICE in text
    assert DEMO_NOTICE in json.dumps(report.to_dict())


@pytest.mark.parametrize("preset", ["fast"])
def test_findings_of_held_out_phantoms_come_back(preset: str, tmp_path: Path) -> None:
    """The README's number on a tenth of the phantoms; `python -m benchmarks.quality.phantom_f1` gives the whole."""
    write_held_out(tmp_path / "phantoms", 50, progress=False)
    score = score_phantoms(Pipeline.from_bundle(device="cpu"), tmp_path / "phantoms", preset=preset)
    assert score.failed == 0
    assert score.f1.f1 >= 0.85
    assert score.distinct > 25


def test_the_manifest_keeps_what_was_measured(tmp_path: Path) -> None:
    """Measured anew on a few phantoms, only that check changes."""
    recorded = open_bundle(demo_bundle()).parity[-1]
    assert (recorded.name, recorded.stage, recorded.gate) == (FINDINGS, "report", False)
    assert recorded.metrics["studies"] == 500
    assert recorded.metrics["failed"] == 0
    assert recorded.observed == pytest.approx(1 - recorded.metrics["f1"])
    assert 0.97 < recorded.metrics["f1"] < 1
    bundle = Path(shutil.copytree(demo_bundle(), tmp_path / "bundle"))
    before = open_bundle(bundle)
    steps: list[None] = []
    record_findings(bundle, before, 6, advance=lambda: steps.append(None))
    after = open_bundle(bundle)
    assert len(steps) == 6
    assert [check.name for check in after.parity] == [check.name for check in before.parity]
    assert after.parity[:-1] == before.parity[:-1]
    assert after.parity[-1].metrics["studies"] == 6
    assert (bundle_id(after), after.files) == (bundle_id(before), before.files)
