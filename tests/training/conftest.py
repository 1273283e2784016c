"""Ten studies and tiny models to train on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from r2gen_export.training.settings import TrainSettings
from tests.helpers.tiny import make_annotation, make_tiny_llm, make_tiny_vision


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tiny matrices: more threads only wait for each other, above all beside other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    torch.set_num_threads(before)


def make_models(folder: Path, *, train: int, val: int) -> Path:
    """Tiny models, and an annotation of so many studies with their images."""
    make_tiny_vision(folder / "vision")
    make_tiny_llm(folder / "llm")
    make_annotation(folder, train=train, val=val)
    return folder


def settings_of(models: Path, out: Path) -> TrainSettings:
    """Two epochs on the CPU, in batches of three."""
    return TrainSettings(
        annotation=models / "annotation.json",
        base_dir=models / "images",
        vision=models / "vision",
        llm=models / "llm",
        out=out,
        dataset="iu_xray",
        max_epochs=2,
        batch_size=3,
        learning_rate=1e-2,
        accelerator="cpu",
        workers=0,
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_models(tmp_path_factory.mktemp("models"), train=10, val=3)


@pytest.fixture
def ten_studies(models: Path, tmp_path: Path, one_thread: None) -> TrainSettings:
    """Ten studies in batches of three: four steps an epoch, the last one of a single study."""
    return settings_of(models, tmp_path / "run")
