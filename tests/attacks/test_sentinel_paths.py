"""A name in the path of a bundle, checkpoint, report or output is in no message: the option or its own files say which.

As `test_sentinel_names.py`, of what an engineer names and not of images.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from r2gen_export.bundle import demo_bundle
from tests.conftest import TinySources
from tests.helpers.sentinel import FAULTS, NAME, PHANTOM, assert_nameless, failing, run

SHORT = ("--preset", "fast", "--min-new-tokens", "3", "--max-new-tokens", "4", "--device", "cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / f"site-{NAME}"
    made.mkdir()
    return made


def refused(*arguments: object, says: str, status: int = 2) -> None:
    """The command fails, says which thing it is about, and nothing of its path."""
    actual, text = run(*arguments)
    assert actual == status, text
    assert_nameless(text)
    assert says in text, text


def damaged_bundles(folder: Path) -> dict[str, Callable[[], object]]:
    """What the message has to name, and how the bundle below `folder` becomes like that."""
    bundle = folder / f"bundle-{NAME}"
    manifest, decoder, vision = bundle / "manifest.json", bundle / "decoder/model.onnx", bundle / "vision.onnx"
    return {
        "the bundle's folder is not there": lambda: None,
        "the bundle's folder holds no manifest.json": bundle.mkdir,
        "manifest.json is not JSON": lambda: manifest.write_text(f'{{"{NAME}'),
        "manifest.json of the bundle cannot be read": lambda: (manifest.unlink(), manifest.mkdir()),
        "vision.onnx has ": lambda: (
            shutil.rmtree(bundle),
            shutil.copytree(demo_bundle(), bundle),
            vision.write_bytes(vision.read_bytes() + b"x"),
        ),
        "vision.onnx has SHA-256": lambda: vision.write_bytes(vision.read_bytes()[:-1][::-1]),
        "decoder/model.onnx cannot be read": lambda: (
            shutil.copy(demo_bundle() / "vision.onnx", vision),
            decoder.unlink(),
        ),
    }


def test_bundles(folder: Path) -> None:
    bundle = folder / f"bundle-{NAME}"
    for says, damage in damaged_bundles(folder).items():
        damage()
        refused("infer", PHANTOM, "--bundle", bundle, *SHORT, says=says)
        refused("bench", bundle, "--out", folder / "report", says=says)
        refused("drafts", "show", bundle, says=says)
        if "manifest" in says or "folder" in says:
            refused("engines", "list", bundle, says=says)
    shutil.copy(demo_bundle() / "decoder/model.onnx", bundle / "decoder")
    refused("engines", "inspect", bundle, "target", says="the bundle has no target 'target'")
    refused("engines", "remove", bundle, "target", says="no engine target in the bundle")
    status, text = run("engines", "list", bundle)
    assert status == 0
    assert_nameless(text)
    for command in (("build", bundle, "--reports", _reports(folder)), ("show", bundle), ("wipe", bundle)):
        status, text = run("drafts", *command)
        assert status == 0, text
        assert_nameless(text)


def _reports(folder: Path) -> Path:
    path = folder / "reports.txt"
    path.write_text("The lungs are clear .\n")
    return path


@pytest.mark.parametrize("kind", FAULTS)
def test_reading_a_bundle_fails(folder: Path, kind: str) -> None:
    bundle = folder / "bundle"
    shutil.copytree(demo_bundle(), bundle)
    with failing(FAULTS[kind], ".json", ".onnx", ".npy") as hit:
        status, text = run("infer", PHANTOM, "--bundle", bundle, *SHORT, "--verbose")
    assert hit or status == 0, text
    assert status in (0, 1, 2, 130), text
    assert_nameless(text)


def test_outputs(folder: Path) -> None:
    there, file = folder / f"there-{NAME}", folder / f"{NAME}.jsonl"
    there.mkdir()
    (there / "x").touch()
    file.touch()
    refused("infer", PHANTOM, *SHORT, "--out", file, says="the file of --out is there already")
    refused("infer", PHANTOM, *SHORT, "--out", there, says="the file of --out is not a regular file")
    refused("infer", PHANTOM, *SHORT, "--out", file / "x.txt", says="the file of --out")
    refused("bench", "--runs", 1, "--out", there, says="the folder of --out exists already")
    refused("bench", "--runs", 1, "--out", file / "x", says="the folder of --out: ")
    refused("phantom", "--studies", 1, "--out", there, says="the folder of --out exists already")


def test_latency_reports(folder: Path) -> None:
    report, peers = folder / f"report-{NAME}", folder / f"{NAME}.json"
    for says, content in (
        ("cannot be read: FileNotFoundError", None),
        ("is not JSON", f"{NAME}"),
        ("has schema None", json.dumps([NAME])),
        ("has schema 'x'", json.dumps({"schema": "x"})),
        ("environment is missing", json.dumps({"schema": "r2gen-bench/1", NAME: 1})),
    ):
        if content is not None:
            report.mkdir(exist_ok=True)
            (report / "report.json").write_text(content)
            peers.write_text(content)
        refused("bench", "compare", report, report, says=f"report A{':' if 'missing' in says else ''} {says}")
        refused("bench", "--baseline", report, "--out", folder / "x", says="the report of --baseline")
        if "missing" not in says:
            refused("bench", "--peers", peers, "--out", folder / "x", says=f"the file of --peers {says}"[:30])
    (folder / "runs" / "first").mkdir(parents=True)
    (folder / "runs/first/report.json").write_text("{}")
    refused("bench", "compare", folder / "runs", report, says="report A/first has schema None")


def test_checkpoints(folder: Path, tiny_sources: TinySources) -> None:
    file, own, two = folder / f"{NAME}.pth", folder / f"own-{NAME}", folder / f"two-{NAME}"
    refused("inspect", file, says="the checkpoint is not there")
    sources = ("--vision", tiny_sources.vision, "--llm", tiny_sources.llm, "--out", folder / "bundle")
    refused("export", "--checkpoint", file, *sources, says="the checkpoint is not there")
    two.mkdir()
    refused("inspect", two, says="the checkpoint is a folder without one")
    for content in (b"", b"PK\x03\x04 cut", b"\x80\x02}q\x00", NAME.encode()):
        file.write_bytes(content)
        refused("inspect", file, says="the checkpoint cannot be read")
    torch.save([1], file)
    refused("inspect", file, says="the checkpoint is none of R2GenGPT")
    for name in ("a.pth", "b.pth"):
        shutil.copy(file, two / name)
    refused("inspect", two, says="the folder of the checkpoint holds 2 of them: a.pth, b.pth")
    shutil.copytree(tiny_sources.checkpoint, own)
    weights = own / "adapter.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    refused("export", "--checkpoint", own, *sources, says="adapter.safetensors of the checkpoint is damaged")
    (own / "config.json").write_text(f'{{"{NAME}')
    refused("export", "--checkpoint", own, *sources, says="config.json of the checkpoint is not readable JSON")
    (own / "config.json").unlink()
    refused("export", "--checkpoint", own, *sources, says="the checkpoint lacks config.json")
