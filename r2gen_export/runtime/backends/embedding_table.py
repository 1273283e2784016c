"""The token embeddings of a bundle, memory-mapped."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from r2gen_export.bundle import EMBED_TOKENS, Dims
from r2gen_export.runtime.backends.ort_session import bad_graph, first_line

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

BLOCK: Final = 32
"""Values of an int8 embedding that share a scale."""


def int8_row(width: int) -> np.dtype[np.void]:
    """A row of an int8 table, `codes` [width] and `scales` [blocks] side by side: a lookup reads one place of the file.

    Its value is codes times their block's scale, in float32.
    """
    return np.dtype([("codes", "i1", (width,)), ("scales", "<f4", (-(-width // BLOCK),))])


class EmbeddingTable:
    """Token embeddings [vocab, d] of a `.npy` file, memory-mapped: only rows in use are read.

    The file holds float32 or float16 [vocab, d], or [vocab] rows of `int8_row(d)`.

    Raises:
        R2GenError: `R2G-BUNDLE-GRAPH` when the file is no such table.
    """

    def __init__(self, path: Path) -> None:
        try:
            table = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise bad_graph(path, f"it is not a .npy array ({first_line(error, path)})") from error
        width = _table_width(table)
        if width is None:
            found = f"{table.dtype} {list(table.shape)}"
            raise bad_graph(path, f"it holds {found}, expected float32 or float16 [vocab, d], or rows of int8")
        self._table = table
        self.vocab_size, self.width = int(table.shape[0]), width

    @classmethod
    def of_bundle(cls, folder: Path, dims: Dims) -> EmbeddingTable:
        """A bundle's table.

        Raises:
            R2GenError: `R2G-BUNDLE-GRAPH` when it is none, or not of the manifest's sizes.
        """
        path = folder / EMBED_TOKENS
        table = cls(path)
        if table.width != dims.d_llm or table.vocab_size < dims.vocab_size:
            sizes = f"{table.vocab_size} rows of {table.width}"
            raise bad_graph(path, f"it holds {sizes}, the manifest says {dims.vocab_size} of {dims.d_llm}")
        return table

    def lookup(self, ids: Integers) -> Floats:
        """Embeddings [..., d] float32 of ids [...].

        Raises:
            IndexError: for an id outside the vocabulary.
        """
        rows = self._table[ids]
        if rows.dtype.names is None:
            return np.asarray(rows, dtype=np.float32)
        values: Floats = rows["codes"] * np.repeat(rows["scales"], BLOCK, axis=-1)[..., : self.width]
        return values


def _table_width(table: NDArray[Any]) -> int | None:
    """d of an embedding table, None when it is none."""
    if table.ndim == 2 and table.dtype in (np.float32, np.float16):
        return int(table.shape[1])
    if table.ndim == 1 and table.dtype.names == ("codes", "scales"):
        width = int(np.prod(table.dtype["codes"].shape))
        return width if table.dtype == int8_row(width) else None
    return None
