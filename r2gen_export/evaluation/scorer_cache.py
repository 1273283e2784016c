"""What scorers of other environments answered, kept by a hash of the command and of all texts.

The key holds the words of the command, the content of every file that it names (an adapter script), and the texts in
their order. It cannot see other packages or weights installed in that environment since: remove the folder then.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from r2gen_export.evaluation.scorers import Scorer, ScorerResult
from r2gen_export.system.files import atomic_file

FOLDER: Final = "scorers"
LARGEST: Final = 1 << 20
"""Bytes of a file whose content counts; an interpreter counts by its path and size."""


def cached_score(scorer: Scorer, texts: Sequence[str], references: Sequence[str], folder: Path | None) -> ScorerResult:
    """The scorer's answer, from `folder` where it has given it for the same texts. `about` then says so.

    Raises:
        R2GenError: as `Scorer.score`; `R2G-OUTPUT-WRITE`.
    """
    if folder is None:
        return scorer.score(texts, references)
    file = folder / f"{_key(scorer, texts, references)}.json"
    if (cached := _read(file, scorer, len(texts))) is not None:
        return dataclasses.replace(cached, about={**cached.about, "from_cache": True})
    result = scorer.score(texts, references)
    studies = {name: values.tolist() for name, values in result.studies.items()}
    with atomic_file(file) as scratch:
        content = {"studies": studies, "corpus": result.corpus, "about": result.about}
        scratch.write_text(json.dumps(content, allow_nan=False) + "\n", encoding="utf-8")
    return result


def _read(file: Path, scorer: Scorer, studies: int) -> ScorerResult | None:
    """None where there is nothing, or nothing whole: then the scorer runs."""
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        values = {name: np.array(part, dtype=np.float64) for name, part in content["studies"].items()}
        if any(part.shape != (studies,) or not np.isfinite(part).all() for part in values.values()):
            return None
        corpus = {name: float(value) for name, value in content["corpus"].items()}
        return ScorerResult(scorer.name, values, corpus, dict(content["about"]))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _key(scorer: Scorer, texts: Sequence[str], references: Sequence[str]) -> str:
    files = []
    for word in scorer.command:
        path = Path(word)
        if path.is_file():
            size = path.stat().st_size
            files.append(hashlib.sha256(path.read_bytes()).hexdigest() if size <= LARGEST else str(size))
    parts = [list(scorer.command), files, list(texts), list(references)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
