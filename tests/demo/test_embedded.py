"""The demo bundle in the package: small enough, sound, and it says what the phantoms show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from r2gen_export.bundle import DEMO_NOTICE, NOTICE, demo_bundle, open_bundle
from r2gen_export.demo.score import score_phantoms, write_held_out
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
    """The README's number on a tenth of the phantoms; `python -m benchmarks.phantom_f1` gives the whole."""
    write_held_out(tmp_path / "phantoms", 50, progress=False)
    score = score_phantoms(Pipeline.from_bundle(device="cpu"), tmp_path / "phantoms", preset=preset)
    assert score.failed == 0
    assert score.f1.f1 >= 0.85
    assert score.distinct > 25
