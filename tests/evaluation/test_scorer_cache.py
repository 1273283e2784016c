"""Answers of external scorers, kept by command, adapter and texts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from r2gen_export.evaluation.scorer_cache import cached_score
from r2gen_export.evaluation.scorers import Scorer

PROGRAM = """
import json, sys
open(sys.argv[1], "a").write("run\\n")
pairs = [json.loads(line) for line in sys.stdin]
for pair in pairs:
    print(json.dumps({"id": pair["id"], "scores": {"length": len(pair["hypothesis"])}}))
print(json.dumps({"corpus": {"length": 1.5}, "about": {"version": "1"}}))
"""


@pytest.fixture
def scorer(tmp_path: Path) -> Scorer:
    """It counts its runs in `calls`, which must not count as a file that the command names."""
    (tmp_path / "adapter.py").write_text(PROGRAM.replace("sys.argv[1]", repr(str(tmp_path / "calls"))))
    return Scorer("own", (sys.executable, str(tmp_path / "adapter.py")))


def runs(folder: Path) -> int:
    return len((folder / "calls").read_text().splitlines())


def test_the_same_texts_are_scored_once(scorer: Scorer, tmp_path: Path) -> None:
    first = cached_score(scorer, ["a", "bcd"], ["x", "y"], tmp_path / "scorers")
    again = cached_score(scorer, ["a", "bcd"], ["x", "y"], tmp_path / "scorers")
    assert again.about == {**first.about, "from_cache": True}
    assert again.studies["length"].tolist() == first.studies["length"].tolist() == [1.0, 3.0]
    assert again.corpus == first.corpus
    assert runs(tmp_path) == 1


@pytest.mark.parametrize("change", ["text", "reference", "adapter", "command", "damage"])
def test_what_changed_is_scored_again(change: str, scorer: Scorer, tmp_path: Path) -> None:
    cache = tmp_path / "scorers"
    texts, references, command = ["a", "bcd"], ["x", "y"], scorer.command
    cached_score(scorer, texts, references, cache)
    if change == "text":
        texts = ["a", "bc"]
    elif change == "reference":
        references = ["x", "z"]
    elif change == "adapter":
        adapter = tmp_path / "adapter.py"
        adapter.write_text(adapter.read_text() + "# another version\n")
    elif change == "command":
        command = (*command, "more")
    else:
        (file,) = cache.iterdir()
        file.write_text(file.read_text()[:20])
    result = cached_score(Scorer("own", command), texts, references, cache)
    assert "from_cache" not in result.about
    assert runs(tmp_path) == 2


def test_nothing_is_kept_without_a_folder(scorer: Scorer, tmp_path: Path) -> None:
    cached_score(scorer, ["a"], ["x"], None)
    cached_score(scorer, ["a"], ["x"], None)
    assert runs(tmp_path) == 2
