"""Shared fixtures: one tiny model and its bundle, exported for real, for all processes of a test run."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported: each of several test processes would start a thread for every core.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.helpers.shared import made_once
from tests.helpers.tiny import make_tiny_llm, make_tiny_vision

# Hundreds of tests start a process of r2gen: each would compile all of its modules again, for half a second.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A test run in the background of a shell inherits an ignored Ctrl-C, and so would the commands it interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class TinySources:
    """Folders of a tiny trained model: checkpoint, vision encoder, LLM."""

    checkpoint: Path
    vision: Path
    llm: Path


def sources_in(folder: Path) -> TinySources:
    """The folders that `make_sources` writes."""
    return TinySources(folder / "checkpoint", folder / "vision", folder / "llm")


def make_sources(folder: Path, *, tied: bool = False, **config: object) -> TinySources:
    """Random weights in every trained tensor, so that nothing passes because it is zero.

    `tied`: the LLM's embeddings are its output layer too. `config`: of ModelConfig.
    """
    import torch

    from r2gen_export.training.checkpoint import save_checkpoint
    from r2gen_export.training.model import ModelConfig, R2GenGPT

    sources = sources_in(folder)
    make_tiny_vision(sources.vision)
    make_tiny_llm(sources.llm, tied=tied)
    torch.manual_seed(1)
    settings = ModelConfig(vision=str(sources.vision), llm=str(sources.llm), **config)  # type: ignore[arg-type]
    model = R2GenGPT.from_sources(sources.vision, sources.llm, settings, torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    save_checkpoint(model, sources.checkpoint, {"dataset": "iu_xray"})
    return sources


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run of the tests, which all its processes share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def tiny_sources() -> TinySources:
    """A shallow model; do not write into its folders."""
    return sources_in(made_once("sources", make_sources))


@pytest.fixture(scope="session")
def tiny_bundle(tiny_sources: TinySources) -> Path:
    """A bundle of `tiny_sources` that went through the parity gate; copy it before changing it."""

    def export(out: Path) -> None:
        from r2gen_export.exporting.export import export_bundle
        from r2gen_export.exporting.settings import ExportSettings

        export_bundle(
            ExportSettings(
                checkpoint=tiny_sources.checkpoint, vision=tiny_sources.vision, llm=tiny_sources.llm, out=out,
                default_preset="fast", target="cpu",
            )
        )  # fmt: skip

    return made_once("tiny", export)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones first."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
