"""Bundles that are whole and of which no report can be made."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from r2gen_export.bundle import demo_bundle, open_bundle, seal


def nan_bundle(folder: Path) -> Path:
    """A bundle whose hashes are right and whose embeddings of all words are NaN."""
    bundle = Path(shutil.copytree(demo_bundle(), folder / "nan"))
    table = np.load(bundle / "embed_tokens.npy")
    table[5:] = np.nan
    np.save(bundle / "embed_tokens.npy", table)
    seal(bundle, open_bundle(demo_bundle()))
    return bundle
