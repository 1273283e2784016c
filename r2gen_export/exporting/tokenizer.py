"""tokenizer.json and the embedding table: what stands between token ids and the decoder graph."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer

from r2gen_export.bundle import ParityCheck
from r2gen_export.errors import R2GenError
from r2gen_export.exporting.decoder.quantize import quantize
from r2gen_export.runtime.backends.embedding_table import int8_row
from r2gen_export.runtime.detokenizer import Detokenizer, is_sentencepiece

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS: Final = 4096
"""Rows of the embedding table converted together."""

SAMPLE_REPORTS: Final = (
    "The heart is mildly enlarged. There is a small left pleural effusion with adjacent atelectasis.",
    "no focal consolidation , pneumothorax or large effusion is seen . degenerative changes of the spine .",
    "ET tube ends 3.5 cm above the carina; PICC line tip in the mid SVC. Right-sided pacemaker (2 leads).",
    "As compared to ___, interval improvement of the right lower lobe opacity. No free air below the diaphragm.",
    "1. Cardiomegaly.\n2. Mild interstitial edema, 20% pneumothorax at the apex.",
)
"""Report text of our own, with what tokenizers stumble over: numbers, new lines, spaced punctuation, `___`."""


ADDED_WORDS: Final = 64
"""Added words that are compared."""


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Write `tokenizer.json`; a slow (sentencepiece) tokenizer is converted.

    The runtime decodes LLaMA's as the slow tokenizer does, which puts blanks around added words. A source that has none
    (no `tokenizer.model`) was trained and is compared with the text of `tokenizers`: its file says that it is.

    Raises:
        R2GenError: `R2G-MODEL-UNSUPPORTED` when transformers cannot convert the slow tokenizer.
        OSError: when the file cannot be written.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        from transformers.convert_slow_tokenizer import convert_slow_tokenizer

        try:
            backend = convert_slow_tokenizer(tokenizer)
        except Exception as error:  # sentencepiece, protobuf and tokenizers raise their own
            message = f"the LLM's tokenizer ({type(tokenizer).__name__}) has no tokenizer.json form: {error}"
            raise R2GenError("R2G-MODEL-UNSUPPORTED", message, "put a tokenizer.json into the LLM's folder") from error
        _add_words(tokenizer, backend)
    # Padding or truncation left on by a training run would cut prompts and reports.
    backend.no_padding()
    backend.no_truncation()
    text = backend.to_str(pretty=True)
    if getattr(tokenizer, "backend_tokenizer", None) is not None and _own_words(tokenizer):
        text = _decoded_by_tokenizers(text)
    path.write_text(text, encoding="utf-8")


def _decoded_by_tokenizers(text: str) -> str:
    """A `tokenizer.json` that `Detokenizer` does not take for LLaMA's: what is fused already is fused once more."""
    record = json.loads(text)
    decoder = record["decoder"]
    if decoder is None or not is_sentencepiece(decoder):
        return text
    decoder["decoders"].append({"type": "Fuse"})
    return json.dumps(record, indent=2, ensure_ascii=False)


def _add_words(tokenizer: PreTrainedTokenizerBase, backend: Tokenizer) -> None:
    """Put the special tokens and added words, which the conversion leaves out, into a converted slow tokenizer.

    Raises:
        R2GenError: `R2G-MODEL-UNSUPPORTED` when one does not get its id: `tokenizers` numbers them one behind another.
    """
    # Without `<unk>` among them, "<unk>" in a text is spelt, in ids is a word.
    tokens = (tokenizer.unk_token, tokenizer.bos_token, tokenizer.eos_token)
    backend.add_special_tokens([AddedToken(str(token), normalized=False, special=True) for token in tokens if token])
    # `transformers` decodes a special token that is not in the sentencepiece model as any other added word.
    for number, word in sorted(tokenizer.added_tokens_decoder.items()):
        if word.content not in tokens:
            flags = {name: getattr(word, name) for name in ("lstrip", "rstrip", "single_word")}
            backend.add_tokens([AddedToken(word.content, normalized=False, special=False, **flags)])
        if backend.token_to_id(word.content) != number or backend.id_to_token(number) != word.content:
            message = (
                f"the LLM's tokenizer has the added word {word.content!r} with id {number}; in a tokenizer.json it "
                f"would have id {backend.token_to_id(word.content)}"
            )
            fix = "number added words one behind another, from the number of pieces of tokenizer.model on"
            raise R2GenError("R2G-MODEL-UNSUPPORTED", message, fix)


def write_embeddings(table: torch.nn.Embedding, path: Path, precision: str = "fp32") -> None:
    """Write the token embedding table as the `.npy` that `EmbeddingTable` reads, `ROWS` rows at a time.

    Args:
        table: of any float type, possibly mapped from a file.
        path: of the bundle's `embed_tokens.npy`.
        precision: `fp32`, `fp16` or `int8`.

    Raises:
        OSError: when it cannot be written.
    """
    weight = table.weight.detach()
    first = stored_rows(weight[:1], precision)
    header = {
        "descr": np.lib.format.dtype_to_descr(first.dtype),
        "fortran_order": False,
        "shape": (len(weight), *first.shape[1:]),
    }
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(weight), ROWS):
            # np.save reports a full disk without saying that it is one
            file.write(stored_rows(weight[start : start + ROWS], precision).data)


def stored_rows(rows: torch.Tensor, precision: str) -> NDArray[Any]:
    """Rows [n, d] as the table keeps them: float32 or float16 [n, d], or `int8_row(d)` [n].

    One scale for 32 values, as in the layers: on the demo a row's error is 0.53 % of it, 0.61 % with one scale for the
    row (of 4,096 normal values 0.53 and 0.86), for 12 % more bytes, which are mapped and hardly read.
    """
    if precision != "int8":
        found: NDArray[Any] = rows.to(torch.float16 if precision == "fp16" else torch.float32).contiguous().numpy()
        return found
    width = rows.shape[1]
    blocks = quantize(rows, 8)
    stored = np.empty(len(rows), int8_row(width))
    stored["codes"] = (blocks.codes.reshape(len(rows), -1)[:, :width] ^ 0x80).view(np.int8)  # zero at 128 to zero at 0
    stored["scales"] = blocks.scales
    return stored


def added_word_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Texts that hold the tokenizer's own added words, in a sentence and inside of words; at most `ADDED_WORDS`."""
    words = _own_words(tokenizer)
    chosen = words[:: -(-len(words) // ADDED_WORDS) or 1]
    return [text for word in chosen for text in (f"no {word} is seen", f"{word}x{word} .", f"The{word}")]


def _own_words(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Added words that are not LLaMA's special tokens."""
    special = {tokenizer.unk_token, tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token}
    return [word for word in sorted(tokenizer.get_added_vocab()) if word not in special]


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase, path: Path, halves: Sequence[tuple[str, Sequence[int]]]
) -> tuple[ParityCheck, ...]:
    """Compare `tokenizer.json`, read by the `tokenizers` library, with the source tokenizer.

    Args:
        tokenizer: the source.
        path: the written file.
        halves: text and ids of the prompt's two halves.

    Returns:
        Two checks, counting texts whose ids differ and reports whose decoded text differs.
    """
    from r2gen_export.training.model import report_text

    written = Tokenizer.from_file(str(path))
    samples = (*SAMPLE_REPORTS, *added_word_texts(tokenizer))
    wanted = [(text, list(ids)) for text, ids in halves]
    wanted += [(text, list(tokenizer(text, add_special_tokens=False).input_ids)) for text in samples]
    wrong_ids = [text for text, ids in wanted if written.encode(text, add_special_tokens=False).ids != ids]

    unk, bos = tokenizer.unk_token_id, tokenizer.bos_token_id
    detokenizer = Detokenizer(path, unk_token_id=0 if unk is None else unk, bos_token_id=bos)
    reports = [ids for _, ids in wanted[len(halves) :]]
    wrong_text = [ids for ids in reports if detokenizer.text(ids) != report_text(tokenizer, ids)]
    detail = f"{len(wanted)} texts" + (f", first that differs: {wrong_ids[0]!r}" if wrong_ids else "")
    return (
        ParityCheck("tokenizer ids", not wrong_ids, float(len(wrong_ids)), 0.0, detail),
        ParityCheck("report text", not wrong_text, float(len(wrong_text)), 0.0, f"{len(reports)} reports"),
    )
