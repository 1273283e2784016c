"""CheXbert's F1 and RadGraph's F1 for `r2gen evaluate --scorer "clinical=PYTHON chexbert_radgraph.py"`.

Run it with the Python of an environment that has the packages `f1chexbert` (written for 0.0.2) and `radgraph`
(0.1.18); it imports nothing of r2gen. CheXbert's weights must be in its cache (`~/.cache/chexbert/chexbert.pth`);
RADGRAPH_CACHE names the folder that holds RadGraph's model (default `~/.cache/radgraph`). Reads JSON lines
`{id, reference, hypothesis}`, writes `{id, scores}` lines and a last `{corpus, about}`.
"""

import contextlib
import hashlib
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

CHEXBERT = Path.home() / ".cache/chexbert/chexbert.pth"
MODEL = "radgraph-xl"


def sha256(path):
    """SHA-256 of a file, or of the files of a folder in the order of their names."""
    digest = hashlib.sha256()
    files = sorted(part for part in path.rglob("*") if part.is_file()) if path.is_dir() else [path]
    for file in files:
        with file.open("rb") as stream:
            for block in iter(lambda: stream.read(1 << 20), b""):
                digest.update(block)
    return digest.hexdigest()


def chexbert(hypotheses, references):
    """(scores per study, scores of the set): F1 of 14 and 5 findings, and whether the five agree in each study."""
    from f1chexbert import F1CheXbert

    accuracy, per_study, report_14, report_5 = F1CheXbert()(hyps=hypotheses, refs=references)
    corpus = {"chexbert-accuracy-5": float(accuracy)}
    for size, report in ((14, report_14), (5, report_5)):
        for average in ("micro avg", "macro avg", "weighted avg"):
            corpus[f"chexbert-F1-{average.split()[0]}-{size}"] = float(report[average]["f1-score"])
    return [{"chexbert-accuracy-5": float(value)} for value in per_study], corpus


def radgraph(hypotheses, references, cache):
    """(scores per study, scores of the set): RadGraph's partial reward."""
    from radgraph import F1RadGraph

    scorer = F1RadGraph(reward_level="partial", model_type=MODEL, model_cache_dir=str(cache))
    mean, per_study, _, _ = scorer(hyps=hypotheses, refs=references)
    return [{"radgraph-F1": float(value)} for value in per_study], {"radgraph-F1": float(mean)}


def answer(fields):
    """A line of the answer."""
    sys.stdout.write(json.dumps(fields) + "\n")


def main():
    """Read pairs, score them, write scores."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    cache = Path(os.environ.get("RADGRAPH_CACHE") or Path.home() / ".cache/radgraph")
    if not CHEXBERT.is_file() or not cache.is_dir():
        sys.exit("chexbert.pth or RadGraph's model is not in its cache: put them there before, see EVALUATE.md")
    pairs = [json.loads(line) for line in sys.stdin if line.strip()]
    references = [pair["reference"] for pair in pairs]
    hypotheses = [pair["hypothesis"] for pair in pairs]
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the answers
        labels, label_corpus = chexbert(hypotheses, references)
        graphs, graph_corpus = radgraph(hypotheses, references, cache)
    for pair, label, graph in zip(pairs, labels, graphs):  # noqa: B905  those packages run on Python 3.8 too
        answer({"id": pair["id"], "scores": {**label, **graph}})
    about = {
        "package": "f1chexbert, radgraph",
        "version": f"{version('f1chexbert')}, {version('radgraph')}",
        "weights_sha256": f"{sha256(CHEXBERT)}, {sha256(cache)}",
    }
    answer({"corpus": {**label_corpus, **graph_corpus}, "about": about})


if __name__ == "__main__":
    main()
