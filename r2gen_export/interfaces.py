"""What a vision encoder, a decoder and its state must offer, and what the states of all backends share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from r2gen_export.errors import InternalError, R2GenError

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


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
