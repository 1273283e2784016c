"""Strings and ids for the tokenizer's trials, the same in any release. Imports the standard library only."""

from __future__ import annotations

import random
from collections.abc import Iterator

WORDS = [
    "the", "heart", "is", "mildly", "enlarged", ".", "there", "is", "a", "small", "left", "pleural",
    "effusion", ";", "no", "pneumothorax", "is", "seen", ",", "lungs", "are", "clear", "Human:", "<Img>",
    "</Img>", "Generate", "a", "comprehensive", "and", "detailed", "diagnosis", "report", "for", "this",
    "chest", "xray", "image.", "Assistant:", "as", "compared", "to", "___", "3.5", "cm", "20%", "(two)",
    "leads", "T10", "naïve", "café", "Ödem", "心臓", "🫁", "œdème", "µg", "≥", "1.", "2.", "ET-tube's", "½",
]  # fmt: skip
BLANKS = (" ", " ", " ", " ", "  ", "   ", "\n", " \n", "\t", "", "\u00a0")
PROMPT_HALVES = (
    "Human: <Img>",
    "</Img> Generate a comprehensive and detailed diagnosis report for this chest xray image. \nAssistant:",
)


def strings(count: int = 300, seed: int = 11) -> Iterator[str]:
    """The prompt's halves, then random mixtures of words, odd characters and blanks, also at the ends."""
    rng = random.Random(seed)
    yield from PROMPT_HALVES
    yield from ("", " ", "  ", "\n", "a", " a", "  a", "a ", "▁a", "<s>", "the</s>", "the <unk> heart", "<unk>")
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(1, 12)):
            parts.append(rng.choice(BLANKS))
            odd = chr(rng.choice((rng.randint(33, 126), rng.randint(160, 0x2FFF), rng.randint(0x1F300, 0x1F6FF))))
            parts.append(rng.choice(WORDS) if rng.random() < 0.8 else odd)
        parts.append(rng.choice(("", "", " ", "\n")))
        yield "".join(parts)


def id_rows(size: int, count: int = 300, seed: int = 12) -> Iterator[list[int]]:
    """Rows of generated ids: specials (0 to 2), bytes (3 to 258) and pieces, in random order."""
    rng = random.Random(seed)
    pools = (range(3), range(3, 259), range(259, size), range(259, size), range(259, size))
    for _ in range(count):
        yield [rng.choice(rng.choice(pools)) for _ in range(rng.randint(1, 16))]
