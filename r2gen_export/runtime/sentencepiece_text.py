"""Tokens to text as the slow LLaMA tokenizer does it: special tokens by hand, runs between them by sentencepiece.

Sources: transformers 4.30.2 and 4.57 `LlamaTokenizer.convert_tokens_to_string` (legacy), sentencepiece 0.2
`SentencePieceProcessor::Decode`. The `tokenizers` library differs in three places: it has no blank before a run that
a special token ends, does not drop the blank a later run begins with, and replaces a whole run of bytes when one is
invalid.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from r2gen_export.decoding import Semantics

BLANK: Final = "\N{LOWER ONE EIGHTH BLOCK}"
BYTE: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")
REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"


def words_to_text(
    tokens: Sequence[str],
    special: frozenset[str],
    pieces: frozenset[str],
    semantics: Semantics,
    added: frozenset[str] = frozenset(),
) -> str:
    """Text of tokens among which there are added words: these stand by themselves, blanks around them.

    Source: `PreTrainedTokenizer._decode` of transformers 4.30.2 and 4.57, which joins the words and the text of the
    runs between them by blanks; today's leaves empty runs out, but for the last one.

    Args:
        tokens: without the dummy BOS.
        special, pieces, semantics: as in `tokens_to_text`.
        added: words added to the vocabulary that are no special tokens.
    """
    parts, run = list[str](), list[str]()
    for token in tokens:
        if token not in added:
            run.append(token)
            continue
        if run:
            text = tokens_to_text(run, special, pieces, semantics)
            parts += [text] if text or semantics == "hf-4.30" else []
            run = []
        parts.append(token)
    if run:
        parts.append(tokens_to_text(run, special, pieces, semantics))
    return " ".join(parts)


def tokens_to_text(tokens: Sequence[str], special: frozenset[str], pieces: frozenset[str], semantics: Semantics) -> str:
    """Text of tokens without added words.

    Args:
        tokens: without the dummy BOS.
        special: tokens that are copied as they are (`<unk>`, `<s>`, `</s>`).
        pieces: all of the vocabulary; other strings are copied as they are.
        semantics: today's tokenizer drops a leading blank mark before sentencepiece sees it, and puts a blank between a
            leading special token and a token without that mark.
    """
    given = list(tokens)
    if semantics == "hf-current" and given and given[0].startswith(BLANK):
        given[0] = given[0][1:]
    text, run, after_special = "", list[str](), False
    for index, token in enumerate(given):
        if token not in special:
            if semantics == "hf-current" and after_special and index == 1 and not token.startswith(BLANK):
                text += " "
            run.append(token)
            after_special = False
            continue
        # The blank stands before the run, not before the token: so written upstream.
        text += (" " if not after_special and index else "") + decode_run(run, pieces) + token
        run, after_special = [], True
    return text + decode_run(run, pieces)


def decode_run(run: Sequence[str], pieces: frozenset[str]) -> str:
    """sentencepiece's text of pieces: the first blank is a dummy prefix and goes; bytes are UTF-8."""
    text, pending, at_start, dropped = "", bytearray(), True, False
    for piece in run:
        if (byte := BYTE.fullmatch(piece)) and piece in pieces:
            pending.append(int(byte[1], 16))
            continue
        text += decode_bytes(pending)
        pending.clear()
        if dropped or text:
            at_start = False
        known = piece in pieces
        dropped = known and at_start and piece.startswith(BLANK)
        if known:
            text += (piece[1:] if dropped else piece).replace(BLANK, " ")
        else:
            text += piece
    return text + decode_bytes(pending)


def decode_bytes(data: bytes | bytearray) -> str:
    """UTF-8 with one replacement character for each byte that begins no valid character."""
    text, at = "", 0
    while at < len(data):
        for length in (1, 2, 3, 4):
            try:
                text += bytes(data[at : at + length]).decode()
            except UnicodeDecodeError:
                continue
            at += min(length, len(data) - at)
            break
        else:
            text += REPLACEMENT
            at += 1
    return text
