"""A bundle against its unrounded PyTorch model on a user's own studies: export, verify, margins."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from r2gen_export.bundle import open_bundle
from r2gen_export.decoding import FAST
from r2gen_export.errors import R2GenError
from r2gen_export.exporting.export import export_bundle
from r2gen_export.exporting.own_studies import OWN_REPORTS, choose_studies, compare_bundle
from r2gen_export.exporting.settings import ExportSettings, OwnStudies
from tests.command import run_here
from tests.conftest import TinySources
from tests.helpers.tiny import make_annotation


@pytest.fixture(scope="module")
def annotation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_annotation(tmp_path_factory.mktemp("own"), train=1, val=1, test=6)


def settings(sources: TinySources, out: Path, own: OwnStudies, **more: object) -> ExportSettings:
    fields = {"target": "cpu", "parity_max_new_tokens": 8, "default_preset": "fast", "evaluate": own, **more}
    return ExportSettings(sources.checkpoint, sources.vision, sources.llm, out, **fields)  # type: ignore[arg-type]


def test_an_fp32_bundle_writes_what_pytorch_writes(tiny_sources: TinySources, annotation: Path, tmp_path: Path) -> None:
    said: list[str] = []
    own = OwnStudies(annotation, studies=5, max_new_tokens=12)
    manifest = export_bundle(settings(tiny_sources, tmp_path / "bundle", own), say=said.append)
    (check,) = (check for check in manifest.parity if check.name == OWN_REPORTS)
    assert check.metrics["identical"] == check.metrics["studies"] == 5
    assert check.metrics["flipped_share"] == check.observed == 0
    assert open_bundle(tmp_path / "bundle").parity == manifest.parity, "and the manifest on the disk has it"
    assert any("5 of 5 reports are identical (100.0%)" in line for line in said)
    assert not any("test0" in line for line in said), "no ids"


@pytest.mark.slow
def test_a_margin_that_is_not_shown_leaves_no_bundle(
    tiny_sources: TinySources, annotation: Path, tmp_path: Path
) -> None:
    """Six studies show nothing, with whatever weights."""
    own = OwnStudies(annotation, margins={"labels": 0.5}, max_new_tokens=6)
    with pytest.raises(R2GenError) as raised:
        export_bundle(settings(tiny_sources, tmp_path / "bundle", own, precision="int4"))
    assert (raised.value.code, raised.value.exit_status) == ("R2G-EVAL-WORSE", 3)
    assert list(tmp_path.iterdir()) == []


def test_other_tokens_are_seen(tiny_bundle: Path, annotation: Path) -> None:
    own = OwnStudies(annotation, studies=4, max_new_tokens=8)
    chosen = choose_studies(own, {"fast": FAST}, "fast", "hf-current")
    same = compare_bundle(tiny_bundle, chosen, [(5, 6, 2)] * 4, {})
    assert same["identical"] == 0
    assert same["divergence"]["unit"] == "token"
    assert same["divergence"]["reports"] == 4


def test_studies_are_spread_over_the_split(annotation: Path) -> None:
    chosen = choose_studies(OwnStudies(annotation, studies=3), {"fast": FAST}, "fast", "hf-current")
    assert [reference.id for reference in chosen.references] == ["test0", "test2", "test4"]
    assert all(path.is_file() for paths in chosen.images for path in paths)
    sampled = dataclasses.replace(FAST, do_sample=True)
    with pytest.raises(R2GenError, match="at random"):
        choose_studies(OwnStudies(annotation), {"fast": sampled}, "fast", "hf-current")


def test_verify_compares_on_own_studies(tiny_sources: TinySources, tiny_bundle: Path, annotation: Path) -> None:
    sources = ("--checkpoint", tiny_sources.checkpoint, "--vision", tiny_sources.vision, "--llm", tiny_sources.llm)
    call = ("verify", tiny_bundle, *sources, "--parity-tokens", "4", "--evaluate", annotation)
    done = run_here(*map(str, call), "--evaluate-studies", "6")
    assert done.returncode == 0, done.stderr
    assert "6 of 6 reports are identical (100.0%)" in done.stdout
    assert "reports of PyTorch on 6 studies" in done.stderr
    done = run_here(*map(str, call), "--fail-below", "labels=1%", "--format", "json")
    assert done.returncode == 3
    assert done.stderr.startswith("R2G-EVAL-WORSE") or "\nR2G-EVAL-WORSE" in done.stderr
    (check,) = (check for check in json.loads(done.stdout) if check["name"] == OWN_REPORTS)
    assert check["passed"] is False


@pytest.mark.parametrize(
    "more", [("--fail-below", "labels=1%"), ("--evaluate", "a.json"), ("--evaluate", "a.json", "--evaluate-split", "x")]
)
def test_options_that_do_not_fit_are_refused(tiny_bundle: Path, more: tuple[str, ...]) -> None:
    done = run_here("verify", str(tiny_bundle), *more)
    assert done.returncode == 2
    assert "R2G-CONFIG-VALUE" in done.stderr
