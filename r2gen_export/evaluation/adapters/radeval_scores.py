"""Scores of RadEval for `r2gen evaluate --scorer "radeval=PYTHON radeval_scores.py bertscore radgraph"`.

Run it with the Python of an environment that has the package `radeval` (written for 2.2.1); it imports nothing of
r2gen. The arguments name RadEval's metrics (default: bertscore radgraph chexbert). Models come from the local caches:
HF_HUB_OFFLINE is set. Reads JSON lines `{id, reference, hypothesis}`, writes `{id, scores}` lines and a last
`{corpus, about}`.
"""

import contextlib
import hashlib
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

DEFAULT = ("bertscore", "radgraph", "chexbert")


def weights_sha256(cache):
    """SHA-256 over names and sizes of the files of a model cache; None where there is none."""
    folder = Path(cache)
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
    return digest.hexdigest()


def numbers(values, prefix=""):
    """Numbers of nested results by joined names."""
    flat = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat.update(numbers(value, f"{prefix}{name}."))
        elif hasattr(value, "item") and getattr(value, "size", 1) == 1:
            flat[prefix + name] = float(value.item())
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            flat[prefix + name] = float(value)
    return flat


def per_study(values, count, prefix=""):
    """Lists of one number a study, by joined names."""
    flat = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat.update(per_study(value, count, f"{prefix}{name}."))
        elif hasattr(value, "__len__") and not isinstance(value, str) and len(value) == count:
            flat[prefix + name] = [float(part) for part in value]
    return flat


def answer(fields):
    """A line of the answer."""
    sys.stdout.write(json.dumps(fields) + "\n")


def main():
    """Read pairs, score them, write scores."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    pairs = [json.loads(line) for line in sys.stdin if line.strip()]
    references = [pair["reference"] for pair in pairs]
    hypotheses = [pair["hypothesis"] for pair in pairs]
    chosen = sys.argv[1:] or list(DEFAULT)
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the answers
        from radeval import RadEval

        corpus = RadEval(metrics=chosen, show_progress=False)(refs=references, hyps=hypotheses)
        single = RadEval(metrics=chosen, per_sample=True, show_progress=False)(refs=references, hyps=hypotheses)
    scores = per_study(single, len(pairs))
    for at, pair in enumerate(pairs):
        answer({"id": pair["id"], "scores": {name: values[at] for name, values in scores.items()}})
    home = os.environ.get("HF_HOME") or Path.home() / ".cache/huggingface"
    about = {"package": "radeval", "version": version("radeval"), "weights_sha256": weights_sha256(home)}
    answer({"corpus": numbers(corpus), "about": about})


if __name__ == "__main__":
    main()
