"""Token ids to report text, at once or piece by piece.

Follows the published code, `models/R2GenGPT.py::decode`: a leading `<unk>` (id 0) and then a leading `<s>` (id 1) are
dropped, the rest is decoded with special tokens kept, cut at the first `</s>`, stripped, and cleared of `<unk>`. What
transformers 4.30 generates begins with its dummy `<s>`, so under `hf-4.30` that is what is dropped, and nothing more.
LLaMA's own tokenizers are decoded as the slow tokenizer does it (`sentencepiece_text.py`), others by `tokenizers`.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Generator, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, Final, TypeVar

from tokenizers import Tokenizer

from r2gen_export.decoding import Semantics
from r2gen_export.errors import R2GenError
from r2gen_export.runtime.decoding.sequence import TokenEvent
from r2gen_export.runtime.sentencepiece_text import BLANK, words_to_text

T = TypeVar("T")

END: Final = "</s>"
UNKNOWN: Final = "<unk>"
BYTE_TOKEN: Final = re.compile(r"<0x[0-9A-Fa-f]{2}>")
REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"

STABLE_DECODERS: Final = frozenset({"Replace", "ByteFallback", "Fuse", "Strip", "ByteLevel", "Metaspace"})
"""Decoders whose text only grows while tokens are appended, once unfinished bytes are held back."""


def clean_text(raw: str) -> str:
    """The published code's last steps: cut at the first `</s>`, strip, remove every `<unk>`."""
    return raw.split(END, maxsplit=1)[0].strip().replace(UNKNOWN, "")


def settled(raw: str) -> str:
    """The part of `clean_text(raw + x)` that is the same for every `x`.

    A tail that may become `</s>` or `<unk>` is held back, and so is white space, which `strip` may still remove.
    """
    if END in raw:
        return clean_text(raw)
    text = raw.lstrip()
    for size in range(min(len(text), len(UNKNOWN) - 1), 0, -1):
        if END.startswith(text[-size:]) or UNKNOWN.startswith(text[-size:]):
            text = text[:-size]
            break
    return text.rstrip().replace(UNKNOWN, "")


class Detokenizer:
    """Text of generated token ids.

    Args:
        path: the bundle's `tokenizer.json`.
        unk_token_id, bos_token_id: ids dropped at the beginning (the published code's 0 and 1).

    Raises:
        R2GenError: `R2G-BUNDLE-MANIFEST` when the file is not one the `tokenizers` library reads.
    """

    def __init__(self, path: Path, *, unk_token_id: int, bos_token_id: int) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # `tokenizers` raises plain Exception
            raise R2GenError(
                "R2G-BUNDLE-MANIFEST", f"{path.name} is not a tokenizer ({error})", "export the bundle again"
            ) from error
        self._unk_token_id = unk_token_id
        self._bos_token_id = bos_token_id
        decoder = self._tokenizer.decoder
        steps = json.loads(decoder.__getstate__()) if decoder is not None else None
        self.sentencepiece = steps is not None and is_sentencepiece(steps)
        """Whether it is a LLaMA tokenizer, decoded as its slow form does."""
        added = self._tokenizer.get_added_tokens_decoder().values()
        self._special = frozenset(token.content for token in added if token.special)
        self._added = frozenset(token.content for token in added if not token.special)
        self._pieces = frozenset(self._tokenizer.get_vocab()) if self.sentencepiece else frozenset()
        self._alone: dict[int, str] = {}
        self.grows = steps is not None and _stable(steps)
        """Whether text can be given out before the last token; other decoders give it out at the end."""

    def text(self, token_ids: Sequence[int], semantics: Semantics = "hf-current") -> str:
        """The report of generated ids (no padding, no dummy BOS; a closing EOS is welcome)."""
        return clean_text(self._decode(self._body(token_ids, semantics), semantics))

    def pieces(self, token_ids: Sequence[int], semantics: Semantics = "hf-current") -> tuple[str, ...]:
        """The part of the text that each token gives; together the text as it is before `clean_text`, `</s>` included.

        A token that gives nothing, such as the dropped `<s>` at the beginning or all but the last byte of a character,
        has an empty piece. Blanks belong to the token they stand before.
        """
        body = self._body(token_ids, semantics)
        raw = self._decode(body, semantics)
        pieces = self._pieces_by_token(body, raw, semantics)
        if pieces is None:
            pieces = self._pieces_by_prefix(body, raw, semantics)
        return ("",) * (len(token_ids) - len(body)) + tuple(pieces)

    def piece(self, token_id: int) -> str:
        """What a token by itself shows as, with its leading blank; for a token that was not generated."""
        if token_id not in self._alone:
            token = self._tokenizer.id_to_token(token_id) or ""
            text = str(self._tokenizer.decode([token_id], skip_special_tokens=False))
            self._alone[token_id] = f" {text}" if token.startswith(BLANK) and text[:1] != " " else text
        return self._alone[token_id]

    def _pieces_by_token(self, body: list[int], raw: str, semantics: Semantics) -> list[str] | None:
        """Pieces of `raw` that are what the tokens show as by themselves, None where a token does not."""
        pieces: list[str] = []
        at = 0
        for is_byte, run in groupby(body, self._is_byte):
            ids = list(run)
            # Bytes are text only together: the last of a run has its characters.
            texts = ["" for _ in ids[1:]] + [self._decode(ids, semantics)] if is_byte else map(self.piece, ids)
            for text in texts:
                forms = (text, f" {text}", text.removeprefix(" "))
                piece = next((form for form in forms if raw.startswith(form, at)), None)
                if piece is None:
                    return None
                pieces.append(piece)
                at += len(piece)
        return pieces if at == len(raw) else None

    def _is_byte(self, token_id: int) -> bool:
        token = self._tokenizer.id_to_token(token_id)
        return token is not None and BYTE_TOKEN.fullmatch(token) is not None

    def _pieces_by_prefix(self, body: list[int], raw: str, semantics: Semantics) -> list[str]:
        """Pieces of `raw` by how far the text of the first tokens agrees with it: one decoding for each token."""
        ends = [0]
        for count in range(1, len(body)):
            text = self._decode(body[:count], semantics)
            ends.append(max(ends[-1], _agreed(text, raw), _agreed(f" {text}", raw)))
        ends.append(len(raw))
        return [raw[first:last] for first, last in pairwise(ends)] if body else []

    def stream(self, semantics: Semantics = "hf-current") -> TextStream:
        """A fresh incremental decoder for one sequence."""
        return TextStream(self, semantics)

    def _body(self, token_ids: Sequence[int], semantics: Semantics) -> list[int]:
        ids = [int(token) for token in token_ids]
        if semantics == "hf-4.30":
            return ids
        for dropped in (self._unk_token_id, self._bos_token_id):
            if ids and ids[0] == dropped:
                del ids[0]
        return ids

    def _decode(self, ids: Sequence[int], semantics: Semantics) -> str:
        if not self.sentencepiece:
            return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))
        tokens = [token for token in map(self._tokenizer.id_to_token, ids) if token is not None]
        return words_to_text(tokens, self._special, self._pieces, semantics, self._added)

    def _settled_raw(self, token_ids: Sequence[int], semantics: Semantics) -> str:
        """Decoded text of the tokens that later tokens cannot change."""
        ids = self._body(token_ids, semantics)
        if self.sentencepiece:
            # A special token puts a blank before the run it ends: behind it, and behind an added word, a run waits for
            # its end.
            ends = self._special | self._added
            special = [at for at, token in enumerate(ids) if self._tokenizer.id_to_token(token) in ends]
            del ids[special[-1] + 1 if special else len(ids) :]
        # `ByteFallback` turns a whole run of bytes into U+FFFD when any of it is invalid: a run waits for its end.
        while ids and self._may_continue_bytes(ids[-1]):
            del ids[-1]
        # `ByteLevel` shows a character whose bytes are not complete as U+FFFD.
        return self._decode(ids, semantics).rstrip(REPLACEMENT)

    def _may_continue_bytes(self, token_id: int) -> bool:
        token = self._tokenizer.id_to_token(token_id)
        return token is None or BYTE_TOKEN.fullmatch(token) is not None  # ids without a token are skipped in decoding


class TextStream:
    """Pieces of one report's text; their concatenation equals `Detokenizer.text` of all its ids.

    No piece ends inside a UTF-8 character, and nothing given out is taken back.
    """

    def __init__(self, detokenizer: Detokenizer, semantics: Semantics) -> None:
        self._detokenizer, self._semantics = detokenizer, semantics
        self._ids: list[int] = []
        self._given = ""

    def push(self, token_id: int) -> str:
        """The text that became certain with this token, often one word, sometimes empty."""
        self._ids.append(token_id)
        if not self._detokenizer.grows:
            return ""
        return self._advance(settled(self._detokenizer._settled_raw(self._ids, self._semantics)))

    def pieces(self, tokens: Generator[TokenEvent, None, T]) -> Generator[str, None, T]:
        """The text of a generation of one study, piece by piece; returns what the generation returns."""
        with contextlib.closing(tokens):
            while True:
                try:
                    event = next(tokens)
                except StopIteration as end:
                    result: T = end.value
                    return result
                if piece := self.push(event.token_id):
                    yield piece

    def finish(self) -> str:
        """The rest of the text, once the last token has been pushed."""
        return self._advance(self._detokenizer.text(self._ids, self._semantics))

    def _advance(self, text: str) -> str:
        piece = text[len(self._given) :]
        self._given += piece
        return piece


def _agreed(first: str, second: str) -> int:
    """How many characters two texts begin with in common."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (left, right) in pairs if left != right), min(len(first), len(second)))


def is_sentencepiece(decoder: dict[str, Any]) -> bool:
    """Whether a decoder is the one that LLaMA's sentencepiece model is converted to.

    `exporting/tokenizer.py` adds a step to those that `tokenizers` is to decode all the same.
    """
    return [step["type"] for step in decoder.get("decoders", ())] == ["Replace", "ByteFallback", "Fuse", "Strip"]


def _stable(decoder: dict[str, Any]) -> bool:
    kind = decoder["type"]
    if kind != "Sequence":
        return kind in STABLE_DECODERS and (kind != "Strip" or decoder["stop"] == 0)
    steps = decoder["decoders"]
    kinds = [step["type"] for step in steps]
    # Once the tokens are fused, a replacement could reach across them.
    fused = kinds[kinds.index("Fuse") :] if "Fuse" in kinds else []
    return "Replace" not in fused and all(_stable(step) for step in steps)
