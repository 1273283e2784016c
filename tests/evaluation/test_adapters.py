"""The adapter scripts with stand-ins for the packages they call, which have the signatures of the real ones.

Weights cannot be had here, so the packages themselves are not run: radeval 2.2.1, f1chexbert 0.0.2, radgraph 0.1.18
were read.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from r2gen_export.errors import R2GenError
from r2gen_export.evaluation import adapters
from r2gen_export.evaluation.scorers import Scorer

RADEVAL = """
class RadEval:
    def __init__(self, metrics=None, per_sample=False, detailed=False, show_progress=True, cache_dir=None):
        print("loading", metrics)
        self.metrics, self.per_sample = metrics, per_sample

    def __call__(self, refs, hyps):
        same = [float(a == b) for a, b in zip(refs, hyps, strict=True)]
        return {name: same if self.per_sample else sum(same) / len(same) for name in self.metrics}
"""

F1CHEXBERT = """
class F1CheXbert:
    def __call__(self, hyps, refs):
        same = [float(a == b) for a, b in zip(refs, hyps, strict=True)]
        report = {f"{name} avg": {"f1-score": 0.5} for name in ("micro", "macro", "weighted")}
        return sum(same) / len(same), same, report, report
"""

RADGRAPH = """
class F1RadGraph:
    def __init__(self, reward_level, model_type=None, model_cache_dir=None):
        assert reward_level == "partial" and model_type == "radgraph-xl"

    def __call__(self, refs, hyps):
        lengths = [len(text) / 10 for text in hyps]
        return sum(lengths) / len(lengths), lengths, [], []
"""


def install(folder: Path, name: str, version: str, source: str) -> None:
    """A package of this name that Python finds in the folder, with its version."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(source)
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def scorer(name: str, *arguments: str) -> Scorer:
    script = Path(adapters.__file__).with_name(f"{name}.py")
    return Scorer.parse(f"own={shlex.join([sys.executable, str(script), *arguments])}")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.delenv("RADGRAPH_CACHE", raising=False)
    return tmp_path


def test_radeval(home: Path) -> None:
    install(home, "radeval", "2.2.1", RADEVAL)
    result = scorer("radeval_scores", "bertscore", "radgraph").score(["a", "b"], ["a", "x"])
    assert {name: values.tolist() for name, values in result.studies.items()} == {
        "bertscore": [1.0, 0.0],
        "radgraph": [1.0, 0.0],
    }
    assert result.corpus == {"bertscore": 0.5, "radgraph": 0.5}
    assert result.about == {"package": "radeval", "version": "2.2.1", "weights_sha256": None}


def test_chexbert_and_radgraph(home: Path) -> None:
    install(home, "f1chexbert", "0.0.2", F1CHEXBERT)
    install(home, "radgraph", "0.1.18", RADGRAPH)
    with pytest.raises(R2GenError, match="status 1"):
        scorer("chexbert_radgraph").score(["a"], ["a"])
    for file in (".cache/chexbert/chexbert.pth", ".cache/radgraph/radgraph-xl/weights.bin"):
        (home / file).parent.mkdir(parents=True)
        (home / file).write_bytes(b"weights")
    result = scorer("chexbert_radgraph").score(["ab", "b"], ["ab", "x"])
    assert result.studies["chexbert-accuracy-5"].tolist() == [1.0, 0.0]
    assert result.studies["radgraph-F1"].tolist() == [0.2, 0.1]
    assert result.corpus["chexbert-F1-macro-14"] == 0.5
    assert result.about["version"] == "0.0.2, 0.1.18"
    assert len(result.about["weights_sha256"].split(", ")[0]) == 64
