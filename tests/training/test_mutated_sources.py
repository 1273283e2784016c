"""A sample of `python -m tests.helpers.mutated_sources`: damaged source files end in a coded error or are read."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.helpers.mutated_sources import TARGETS, make_models, sweep


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_models(tmp_path_factory.mktemp("mutated"))


def test_undamaged_sources_are_read(models: Path) -> None:
    for folder, _, read in TARGETS:
        read(models / folder, models)


def test_no_damage_is_taken_for_a_bug_of_ours(models: Path) -> None:
    done = sweep(models, list(range(3 * len(TARGETS))))
    assert not [entry for entry in done if entry[2].startswith("FAILURE")]
    counts = Counter(result for _, _, result in done)
    assert counts["read"] < len(done) / 2, "most damage is noticed"
