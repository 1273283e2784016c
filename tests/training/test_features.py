"""The cache of the frozen encoder's output."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import torch

from r2gen_export.bundle import ImageSpec
from r2gen_export.errors import R2GenError
from r2gen_export.training.data import Study, read_view
from r2gen_export.training.features import FeatureCache, cache_key
from tests.helpers.tiny import MEAN, STD, make_annotation

SPEC = ImageSpec(32, 32, 3, 1 / 255, MEAN, STD)


class CountingEncoder:
    """Stands for Swin: two tokens of three channels, a function of the pixels of its own row only."""

    def __init__(self) -> None:
        self.images = 0

    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        self.images += len(pixel_values)
        return torch.stack([pixel_values.mean((2, 3)), pixel_values.std((2, 3))], dim=1)


@pytest.fixture
def studies(tmp_path: Path) -> list[Study]:
    """Four studies of 1, 2, 3 and 1 views."""
    base = make_annotation(tmp_path, train=4, val=0, test=0).parent / "images"
    views = (1, 2, 3, 1)
    return [
        Study(f"train[{n}]", f"train{n}", "", tuple(base / f"train{n}_{v}.png" for v in range(count)))
        for n, count in enumerate(views)
    ]


def cache(tmp_path: Path, encoder: CountingEncoder, key: str = "key") -> FeatureCache:
    return FeatureCache(tmp_path / "cache", key, SPEC, encoder)


def entries(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").rglob("*.f32"))


def wanted(study: Study) -> torch.Tensor:
    views = torch.cat([read_view(study, number, SPEC) for number in range(len(study.images))])
    return CountingEncoder()(views).mean(0)


def test_each_image_is_encoded_once(tmp_path: Path, studies: list[Study]) -> None:
    encoder = CountingEncoder()
    assert cache(tmp_path, encoder).fill(studies, progress=False) == 7
    again = cache(tmp_path, encoder)
    assert again.fill(studies, progress=False) == 0
    for study in studies:
        torch.testing.assert_close(again.study(study), wanted(study))
    assert encoder.images == 7
    assert len(entries(tmp_path)) == 7
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_what_is_not_filled_is_computed_when_asked_for(tmp_path: Path, studies: list[Study]) -> None:
    encoder = CountingEncoder()
    found = cache(tmp_path, encoder).study(studies[2])
    torch.testing.assert_close(found, wanted(studies[2]))
    assert encoder.images == 3


@pytest.mark.parametrize("damage", ["flipped bit", "truncated", "longer", "empty", "text", "removed"])
def test_a_damaged_entry_is_computed_again(tmp_path: Path, studies: list[Study], damage: str) -> None:
    encoder = CountingEncoder()
    store = cache(tmp_path, encoder)
    store.fill(studies[:1], progress=False)
    (entry,) = entries(tmp_path)
    whole = entry.read_bytes()
    flipped = bytearray(whole)
    flipped[-3] ^= 4
    spoiled = {
        "flipped bit": bytes(flipped), "truncated": whole[:-4], "longer": whole + b"0000", "empty": b"",
        "text": b"x" * 99,
    }  # fmt: skip
    if damage == "removed":
        entry.unlink()
    else:
        entry.write_bytes(spoiled[damage])
    torch.testing.assert_close(store.study(studies[0]), wanted(studies[0]))
    assert encoder.images == 2
    assert entry.read_bytes() == whole


def test_content_counts_not_name(tmp_path: Path, studies: list[Study]) -> None:
    encoder = CountingEncoder()
    cache(tmp_path, encoder).fill(studies, progress=False)
    moved = studies[0].images[0].with_name("moved.png")
    studies[0].images[0].rename(moved)
    assert cache(tmp_path, encoder).fill([Study("train[0]", "", "", (moved,))], progress=False) == 0
    # Another picture under a known name, of another time: encoded anew.
    moved.write_bytes(studies[3].images[0].read_bytes())
    Path(studies[3].images[0]).unlink()
    os.utime(moved, ns=(1, 1))
    assert cache(tmp_path, encoder).fill([Study("train[0]", "", "", (moved,))], progress=False) == 0
    changed = cache(tmp_path, encoder).study(Study("train[0]", "", "", (moved,)))
    torch.testing.assert_close(changed, wanted(Study("", "", "", (moved,))))
    assert encoder.images == 7


def test_the_index_carries_no_file_name_and_may_be_lost(tmp_path: Path, studies: list[Study]) -> None:
    encoder = CountingEncoder()
    cache(tmp_path, encoder).fill(studies, progress=False)
    index = tmp_path / "cache/contents.json"
    assert "train" not in index.read_text()
    for text in ("{", "[]", '{"a": 3}'):
        index.write_text(text)
        assert cache(tmp_path, encoder).fill(studies, progress=False) == 0


def test_key_stands_for_weights_and_preprocessing(tmp_path: Path, studies: list[Study]) -> None:
    key = cache_key("a" * 64, SPEC, False)
    others = {
        cache_key("b" * 64, SPEC, False),
        cache_key("a" * 64, dataclasses.replace(SPEC, resample=2), False),
        cache_key("a" * 64, SPEC, True),
    }
    assert len({key, *others}) == 4
    encoder = CountingEncoder()
    for name in (key, *others):
        cache(tmp_path, encoder, name).fill(studies[:1], progress=False)
    assert encoder.images == 4


def test_a_broken_image_is_named_by_its_place(tmp_path: Path, studies: list[Study]) -> None:
    studies[3].images[0].write_text("not an image")
    encoder = CountingEncoder()
    with pytest.raises(R2GenError, match=r"train\[3\]\.image_path\[0\]") as caught:
        cache(tmp_path, encoder).fill(studies, progress=False)
    assert caught.value.code == "R2G-IMAGE-FORMAT"
    assert "train3_0" not in str(caught.value)


def test_nan_from_the_encoder_is_refused(tmp_path: Path, studies: list[Study]) -> None:
    store = FeatureCache(tmp_path / "cache", "key", SPEC, lambda pixels: torch.full((len(pixels), 2, 3), torch.nan))
    with pytest.raises(R2GenError) as caught:
        store.fill(studies, progress=False)
    assert caught.value.code == "R2G-MODEL-NONFINITE"
    assert entries(tmp_path) == []
