"""`r2gen tune`: its table and object, what `doctor` and `infer` make of the record, and Ctrl-C."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cli import app
from r2gen_export.runtime.backends import cpu_timing
from r2gen_export.system.cache_folder import CACHE_VARIABLE

PHANTOM = Path(__file__).parents[1] / "data/phantom.png"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of its own, and few passes."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(cpu_timing, "PASSES", 2)
    return tmp_path / "cache"


def r2gen(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def doctor(bundle: Path) -> dict[str, dict[str, str]]:
    shown = r2gen("doctor", "--bundle", bundle, "--format", "json")
    return {check["name"]: check for check in json.loads(shown.stdout)["checks"]}


def test_doctor_names_the_command_until_the_bundle_was_tuned(tiny_bundle: Path, cache: Path) -> None:
    missing = doctor(tiny_bundle)["tuning record"]
    assert (missing["status"], missing["fix"]) == ("info", "r2gen tune BUNDLE")

    shown = r2gen("tune", tiny_bundle)
    assert shown.exit_code == 0, shown.stderr
    head, *rows = shown.stdout.splitlines()
    assert head.split()[:3] == ["workload", "backend", "threads"]
    assert {row.split("  ")[0] for row in rows} == {"single reports", "single reports with beam 3", "batches of 8"}
    assert sum(row.endswith("  yes") for row in rows) == 3
    assert "measuring ONNX Runtime" in shown.stderr
    assert len(list(cache.rglob("*.json"))) == 1

    assert doctor(tiny_bundle)["tuning record"]["status"] == "ok"
    table = r2gen("doctor", "--bundle", tiny_bundle).stdout
    assert "fastest setting measured for single reports" in table
    report = json.loads(r2gen("infer", PHANTOM, "--bundle", tiny_bundle, "--format", "json").stdout)
    taken = [one for one in report["backends"] if one["part"] == "decoder" and one["taken"]]
    assert [one["reason"] for one in taken] == ["measured-faster"]
    assert any("fastest setting measured for single reports" in step for step in report["provider_steps"])


def test_the_object_has_every_timing_and_the_choices(tiny_bundle: Path) -> None:
    shown = r2gen("tune", tiny_bundle, "--format", "json")
    assert shown.exit_code == 0, shown.stderr
    record = json.loads(shown.stdout)
    assert record["schema"] == "r2gen-tuning/2"
    assert set(record["choices"]) == {"single", "beam", "batch"}
    assert {timing["backend"] for timing in record["timings"]} == {"ONNX Runtime", "OpenVINO"}


def test_ctrl_c_leaves_no_record(tiny_bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cpu_timing, "_time_workload", interrupt)
    assert r2gen("tune", tiny_bundle).exit_code == 130
    assert not cache.exists()
