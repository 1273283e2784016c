"""The bundle is opened once per call: its manifest is read once, and every file is hashed once."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from r2gen_export.bundle import MANIFEST, Bundle, files, load_manifest
from r2gen_export.runtime.backends import cpu_timing
from r2gen_export.runtime.pipeline import Pipeline
from r2gen_export.system.cache_folder import CACHE_VARIABLE
from tests.command import run_here

PHANTOM = Path(__file__).parents[1] / "data/phantom.png"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was read to be checked, by its name."""
    counted: Counter[str] = Counter()
    hash_file, read = files.size_and_sha256, files.open_regular

    def counted_hash(path: Path, size: int) -> tuple[int, str | None]:
        counted[path.name] += 1
        return hash_file(path, size)

    def counted_read(path: Path) -> object:
        counted[path.name] += 1
        return read(path)

    monkeypatch.setattr(files, "size_and_sha256", counted_hash)
    monkeypatch.setattr(files, "open_regular", counted_read)
    return counted


@pytest.mark.parametrize(
    "command",
    [
        ("infer", PHANTOM, "--device", "cpu", "--max-new-tokens", 3, "--min-new-tokens", 1, "--quiet", "--bundle"),
        ("doctor", "--bundle"),
        ("tune",),
    ],
    ids=lambda command: command[0],
)
def test_a_command_reads_and_hashes_every_file_once(
    command: tuple[object, ...], tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: Counter[str]
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(cpu_timing, "PASSES", 2)
    done = run_here(*command, tiny_bundle)
    assert done.returncode == 0, done.stderr
    listed = {Path(name).name for name in load_manifest(tiny_bundle).files}
    reads[MANIFEST] -= 1  # by this test
    assert reads == dict.fromkeys({*listed, MANIFEST}, 1)


def test_a_pipeline_takes_a_bundle_that_is_open(tiny_bundle: Path, reads: Counter[str]) -> None:
    bundle = Bundle(tiny_bundle)
    assert not reads
    assert Pipeline.from_bundle(bundle, device="cpu").manifest is bundle.manifest is bundle.verified()
    assert set(reads.values()) == {1}
    Pipeline.from_bundle(tiny_bundle, device="cpu")
    assert set(reads.values()) == {2}


def test_evaluate_opens_its_bundle_once(tiny_bundle: Path, tmp_path: Path, reads: Counter[str]) -> None:
    """For the tokenizer, which cuts references, and for the pipeline."""
    study = {"id": "1", "report": "The heart is enlarged.", "image_path": [str(PHANTOM)]}
    annotation = tmp_path / "annotation.json"
    annotation.write_text(json.dumps({"test": [study]}))
    limits = ("--max-new-tokens", 100, "--device", "cpu", "--no-meteor", "--quiet")
    done = run_here("evaluate", tiny_bundle, "--annotation", annotation, "--out", tmp_path / "out", *limits)
    assert done.returncode == 0, done.stderr
    listed = {Path(name).name for name in load_manifest(tiny_bundle).files}
    reads[MANIFEST] -= 1  # by this test
    assert {name: reads[name] for name in {*listed, MANIFEST}} == dict.fromkeys({*listed, MANIFEST}, 1)
