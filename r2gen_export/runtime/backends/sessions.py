"""Sessions of ONNX Runtime: encode (vision) and embedding lookup; what a decoder must be able to do.

The decoder itself is in `decoder.py`.

`import onnxruntime` happens when the first session is made, so importing this module costs nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from r2gen_export.bundle import EMBED_TOKENS, Dims
from r2gen_export.errors import InternalError, R2GenError
from r2gen_export.runtime.backends.ort_providers import ProviderChoice, choose_providers
from r2gen_export.runtime.backends.ort_session import bad_graph, check_names, coded_failures, first_line, open_session

if TYPE_CHECKING:
    from r2gen_export.runtime.backends.ort_tensorrt import Tuning

__all__ = [
    "Decoder",
    "DecoderState",
    "EmbeddingTable",
    "Embeddings",
    "ProviderChoice",
    "VisionSession",
    "choose_providers",
]

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

FLOAT_TYPES: Final = {"tensor(float)": np.float32, "tensor(float16)": np.float16}

BLOCK: Final = 32
"""Values of an int8 embedding that share a scale."""


class DecoderState(Protocol):
    """A prompt in the KV cache, and what was generated behind it. B rows advance together."""

    @property
    def logits(self) -> Floats:
        """Logits [B, vocab] float32 of each row's last position, all finite; valid until the next pass."""

    def decode(self, embeds: Floats) -> None:
        """Append one position, embeds [B, 1, d] float32, to every row.

        Raises:
            R2GenError: `R2G-GENERATE-NONFINITE` when the logits are not finite.
        """

    def extend(self, embeds: Floats) -> Floats:
        """Append n positions, embeds [B, n, d] float32, in one pass; logits [B, n, vocab] behind each of them.

        Raises:
            R2GenError: `R2G-GENERATE-NONFINITE` when the logits are not finite.
        """

    def rollback(self, count: int) -> None:
        """Forget the last `count` positions, none of them the prompt's. `logits` are then those of no position."""

    def reorder(self, rows: Integers) -> None:
        """Make row i the row `rows[i]` was. `rows` [B'] may repeat rows (beams) and leave some out (finished ones)."""


class PassingState(ABC):
    """What every engine's `DecoderState` does alike: it counts positions and keeps the last logits.

    Args:
        prompt: positions of the prompt; rolling back ends there.
        cached: those already in the cache.
    """

    _logits: Floats

    def __init__(self, prompt: int, cached: int) -> None:
        self._prompt, self._length = prompt, cached

    @abstractmethod
    def _pass(self, embeds: Floats, keep: int) -> Floats:
        """Logits [B, keep, vocab] of the last `keep` positions of embeds [B, n, d], behind `_length` cached ones."""

    @property
    def logits(self) -> Floats:
        """See `DecoderState`, here and below."""
        return self._logits

    def decode(self, embeds: Floats) -> None:
        """Append one position."""
        self._append(embeds, 1)

    def extend(self, embeds: Floats) -> Floats:
        """Append n positions, with logits behind each."""
        return self._append(embeds, embeds.shape[1])

    def rollback(self, count: int) -> None:
        """Forget the last `count` positions.

        Raises:
            InternalError: when some of them are the prompt's.
        """
        if not 0 <= count <= self._length - self._prompt:
            raise InternalError(f"rolling back {count} positions of {self._length - self._prompt}")
        self._length -= count

    def _append(self, embeds: Floats, keep: int) -> Floats:
        logits = self._pass(embeds, keep)
        self._length += embeds.shape[1]
        self._logits = logits[:, -1]
        return logits


def common_prompts(groups: Integers, rows: Integers) -> NDArray[np.bool_]:
    """For a reorder to `rows` [B']: which rows stay on their prompt. `groups` [B]: the prompt each row began with.

    Such a row has its prompt's part of the cache already.
    """
    same = np.zeros(len(rows), bool)
    known = min(len(rows), len(groups))
    same[:known] = groups[rows][:known] == groups[:known]
    return same


class Decoder(Protocol):
    """What `generate` needs of a language model."""

    def prefill(self, inputs_embeds: Floats, room: int) -> DecoderState:
        """Read the prompts [B, S, d] float32, all of one length, behind which at most `room` positions follow."""


class PrefixDecoder(Decoder, Protocol):
    """What a pipeline needs of one."""

    def share_prefix(self, inputs_embeds: Floats) -> None:
        """Embeddings [1, P, d] float32 that prompts begin with: what can be computed of them once is."""


class Encoder(Protocol):
    """What a pipeline needs of a vision encoder."""

    def encode(self, pixel_values: Floats) -> Floats:
        """Image tokens [1, T, d] float32 of the views [V, 3, H, W] float32 of one study."""


class Embeddings(Protocol):
    """What `generate` needs of the token embeddings."""

    def lookup(self, ids: Integers) -> Floats:
        """Embeddings [..., d] float32 of ids [...]."""


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


class VisionSession:
    """`vision.onnx`: the views of one study to its image tokens.

    Args:
        path: the graph.
        providers: names of ONNX Runtime's execution providers, best first.
        threads: CPU threads, None: the cores this process may use.
        tuning: for providers that build engines.
        gpu: index of the GPU.

    Raises:
        R2GenError: what `open_session` raises; `R2G-BUNDLE-GRAPH` when it has other inputs and outputs.
    """

    def __init__(
        self,
        path: Path,
        *,
        providers: Sequence[str],
        threads: int | None = None,
        tuning: Tuning | None = None,
        gpu: int = 0,
    ) -> None:
        self._session = open_session(path, providers=providers, threads=threads, tuning=tuning, gpu=gpu)
        check_names(path, self._session, {"pixel_values"}, {"image_embeds"})

    def encode(self, pixel_values: Floats) -> Floats:
        """Image tokens [1, T, d] float32 of the views [V, 3, H, W] float32 of one study.

        Raises:
            R2GenError: `R2G-GENERATE-NONFINITE`; on a GPU `R2G-RESOURCE-MEMORY`, `R2G-DEVICE-UNAVAILABLE`.
        """
        with coded_failures(self._session, "encode"):
            output = self._session.run(["image_embeds"], {"pixel_values": pixel_values})[0]
        image_embeds: Floats = np.asarray(output, dtype=np.float32)
        require_finite(image_embeds, "image tokens")
        return image_embeds


def check_room(positions: int, most: int) -> None:
    """Whether a prompt and what may follow fit the model's `most` positions.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE`.
    """
    if positions > most:
        message = f"{positions} positions, but this model has {most}"
        raise R2GenError("R2G-CONFIG-VALUE", message, "--max-new-tokens with a smaller number")


def require_finite(values: Floats, what: str) -> None:
    if not np.isfinite(values).all():
        bad = int(np.count_nonzero(~np.isfinite(values)))
        raise R2GenError(
            "R2G-GENERATE-NONFINITE",
            f"{bad} of {values.size} {what} are NaN or infinity",
            "check the image, then the bundle with r2gen verify",
        )
