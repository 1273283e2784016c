"""What a vision encoder, a decoder and its state must offer, and what the states of all backends share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from r2gen_export.errors import InternalError, R2GenError

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]

NO_PROMPT: Final = -1
"""Group of a row whose cache holds nothing that is used again."""


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


class RowState(DecoderState, Protocol):
    """A state whose rows have lengths of their own: they enter and leave between any two passes.

    A row's logits depend on nothing that is in the cache behind the row's own length, nor in another row.
    """

    def join(self, prompts: Floats, row: int) -> Floats:
        """Read prompts [K, S, d] float32 into the rows from `row` on, in the place of what they held.

        Rows between the last one and `row` become rows too, and hold nothing until `reorder` puts something there.

        Returns:
            Logits [K, vocab] float32 of each prompt's last position, not checked: of a row that is not finite, nothing
            is left in the cache. Valid until the next pass.
        """

    def advance(self, embeds: Floats) -> Floats:
        """Append n positions, embeds [B, n, d] float32, to every row, each at its own length.

        More than one to more than one row is for decoders with `wide_rows`.

        Returns:
            Logits [B, n, vocab] float32 behind each of them, as `join` does. `logits` is not set.
        """

    def take_back(self, counts: Integers) -> None:
        """Forget the last `counts[i]` positions of row i, counts [B], none of them a prompt's."""


class PassingState(ABC):
    """What every engine's `DecoderState` does alike: it counts positions and keeps the last logits.

    Args:
        rows: B.
        prompt: positions of their prompts; rolling back ends there.
        cached: those already in the cache.
    """

    def __init__(self, rows: int, prompt: int, cached: int) -> None:
        self._logits: Floats | None = None
        self._prompts = np.full(rows, prompt)
        self._lengths = np.full(rows, cached)

    @abstractmethod
    def _pass(self, embeds: Floats, keep: int) -> Floats:
        """Logits [B, keep, vocab] of the last `keep` positions of embeds [B, n, d], behind each row's `_lengths`."""

    def _forget(self, rows: Integers) -> None:  # noqa: B027 -- a cache that goes with its state has nothing to do
        """Leave nothing of these rows in the cache: masked positions are multiplied by 0, which keeps NaN."""

    @property
    def logits(self) -> Floats:
        """See `DecoderState`, here and below."""
        if self._logits is None:
            raise InternalError("logits are asked of a state whose rows have joined one by one")
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
        self._take_back(np.full(len(self._lengths), count))

    def _take_back(self, counts: Integers) -> None:
        written = self._lengths - self._prompts
        if ((counts < 0) | (counts > written)).any():
            raise InternalError(f"rolling back {counts.tolist()} positions of {written.tolist()}")
        self._lengths -= counts

    def _append(self, embeds: Floats, keep: int) -> Floats:
        logits = self._pass(embeds, keep)
        try:
            require_finite(logits, "logits")
        except R2GenError:
            self._forget(np.arange(len(embeds)))
            raise
        self._lengths += embeds.shape[1]
        self._logits = logits[:, -1]
        return logits

    def _take_rows(self, rows: Integers) -> None:
        """What `reorder` does with everything but the cache."""
        if self._logits is not None:
            self._logits = self._logits[rows]
        self._prompts, self._lengths = self._prompts[rows], self._lengths[rows]


class JoiningState(PassingState):
    """What every engine's `RowState` does alike. It begins without rows."""

    def __init__(self) -> None:
        super().__init__(0, 0, 0)
        self._groups = np.zeros(0, np.int64)
        """The prompt each row began with, by a number: rows of one prompt have its cache in common."""
        self._joined = 0

    @abstractmethod
    def _read(self, prompts: Floats, row: int) -> Floats:
        """Logits [K, vocab] behind prompts [K, S, d], read into the rows from `row` on."""

    @abstractmethod
    def _move(self, rows: Integers, same: Flags, prompt: int, length: int) -> None:
        """Make row i of the cache the row `rows[i]` was, up to `length` positions.

        Where `same[i]`, the two rows have their first `prompt` positions in common.
        """

    def fill(self, prompts: Floats) -> None:
        """Read prompts [B, S, d], the only ones of this state.

        Raises:
            R2GenError: `R2G-GENERATE-NONFINITE`.
        """
        logits = self.join(prompts, 0)
        require_finite(logits, "logits")
        self._logits = logits

    def join(self, prompts: Floats, row: int) -> Floats:
        """See `RowState`, here and below."""
        count, size = prompts.shape[:2]
        added = np.zeros(max(0, row + count - len(self._lengths)), np.int64)
        self._lengths, self._prompts = (np.append(old, added) for old in (self._lengths, self._prompts))
        self._groups = np.append(self._groups, added + NO_PROMPT)
        self._logits = None
        places = slice(row, row + count)
        logits = self._read(prompts, row)
        self._lengths[places] = self._prompts[places] = size
        self._groups[places] = np.arange(self._joined, self._joined + count)
        self._joined += count
        self._forget_spoiled(logits, row)
        return logits

    def advance(self, embeds: Floats) -> Floats:
        """Append positions, each row at its own length."""
        size = embeds.shape[1]
        logits = self._pass(embeds, size)
        self._lengths += size
        self._logits = None
        self._forget_spoiled(logits, 0)
        return logits

    def take_back(self, counts: Integers) -> None:
        """Forget the last positions of each row."""
        self._take_back(counts)

    def reorder(self, rows: Integers) -> None:
        """Take rows, repeat and leave them out."""
        prompt, length = int(self._prompts[rows].min()), int(self._lengths[rows].max())
        self._move(rows, common_prompts(self._groups, rows), prompt, length)
        self._groups = self._groups[rows]
        self._take_rows(rows)

    def _forget_spoiled(self, logits: Floats, row: int) -> None:
        spoiled = row + np.flatnonzero(~finite_rows(logits))
        if len(spoiled):
            self._forget(spoiled)
            self._groups[spoiled] = NO_PROMPT


def common_prompts(groups: Integers, rows: Integers) -> Flags:
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


class RowDecoder(Decoder, Protocol):
    """A decoder that can keep a length for each row.

    Attributes:
        row_lengths: whether it can, on this device and with this graph; if not, `open_rows` must not be called.
        wide_rows: whether one pass may append several positions to several such rows; to one row it always may.
    """

    row_lengths: bool
    wide_rows: bool

    def open_rows(self, rows: int, positions: int) -> RowState:
        """A state without rows, with room for so many rows of so many positions each, prompt included.

        Raises:
            R2GenError: `R2G-CONFIG-VALUE` when the model has fewer positions; `R2G-RESOURCE-MEMORY`.
        """


class PrefixDecoder(RowDecoder, Protocol):
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


def check_room(positions: int, most: int) -> None:
    """Whether a prompt and what may follow fit the model's `most` positions.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE`.
    """
    if positions > most:
        message = f"{positions} positions, but this model has {most}"
        raise R2GenError("R2G-CONFIG-VALUE", message, "--max-new-tokens with a smaller number")


def finite_rows(logits: Floats) -> Flags:
    """Which rows of logits [B, ...] are finite, [B]."""
    return np.asarray(np.isfinite(logits).reshape(len(logits), -1).all(axis=1), bool)


def require_finite(values: Floats, what: str) -> None:
    if not np.isfinite(values).all():
        bad = int(np.count_nonzero(~np.isfinite(values)))
        raise R2GenError(
            "R2G-GENERATE-NONFINITE",
            f"{bad} of {values.size} {what} are NaN or infinity",
            "check the image, then the bundle with r2gen verify",
        )
