"""Decoding settings, and those with a name, as every bundle carries them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Semantics = Literal["hf-current", "hf-4.30"]


@dataclass(frozen=True)
class Decoding:
    """Decoding settings, named as in transformers' `GenerationConfig`; the defaults are the paper's for MIMIC-CXR.

    `do_sample` switches to sampling (then `num_beams` must be 1). `top_k=0` and `top_p=1.0` switch those filters off.
    """

    num_beams: int = 3
    min_new_tokens: int = 80
    max_new_tokens: int = 120
    repetition_penalty: float = 2.0
    length_penalty: float = 2.0
    no_repeat_ngram_size: int = 0
    early_stopping: bool | Literal["never"] = False
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None


PAPER: Final = {
    "mimic_cxr": Decoding(
        num_beams=3, repetition_penalty=2.0, length_penalty=2.0, min_new_tokens=80, max_new_tokens=120
    ),
    "iu_xray": Decoding(num_beams=3, repetition_penalty=2.0, length_penalty=2.0, min_new_tokens=40, max_new_tokens=100),
}
"""The paper's decoding per data set (published scripts `1-2.shallow_test_iuxray.sh`, `4-2.shallow_test.sh`)."""

FAST: Final = Decoding(num_beams=1, repetition_penalty=1.0, length_penalty=1.0, min_new_tokens=0, max_new_tokens=120)
"""Plain greedy that stops by itself: one decoder pass per token, a third of beam 3's work, and open to drafting."""
