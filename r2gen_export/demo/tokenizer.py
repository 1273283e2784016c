"""A small byte-pair tokenizer with LLaMA's conventions, trained on phantom reports."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SPECIALS = ("<unk>", "<s>", "</s>")
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))


def _skeleton(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train the demo's tokenizer.

    Ids follow LLaMA: `<unk>` 0, `<s>` 1, `</s>` 2, the 256 byte tokens 3 to 258, then the learned pieces. A character
    that no piece covers falls back to its UTF-8 bytes.

    Args:
        texts: report texts, and the two halves of the prompt.
        vocab_size: total number of ids, bytes and specials included.
    """
    learner = _skeleton(models.BPE(unk_token="<unk>"))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(BYTE_TOKENS), special_tokens=list(SPECIALS), show_progress=False, min_frequency=2
    )
    learner.train_from_iterator(texts, trainer)
    learned = json.loads(learner.to_str())["model"]

    # The trainer would treat byte tokens as specials and match them in text, so they are put in afterwards.
    pieces = sorted(learned["vocab"], key=learned["vocab"].__getitem__)[len(SPECIALS) :]
    vocab = {piece: index for index, piece in enumerate([*SPECIALS, *BYTE_TOKENS, *pieces])}
    merges = [tuple(merge) for merge in learned["merges"]]
    tokenizer = _skeleton(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIALS])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `tokenizer.json` and the `tokenizer_config.json` with which transformers finds it."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<unk>",
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
