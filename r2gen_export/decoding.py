"""Decoding settings with a name, as every bundle carries them."""

from __future__ import annotations

from typing import Final

from r2gen_export.bundle import Decoding

PAPER: Final = {
    "mimic_cxr": Decoding(
        num_beams=3, repetition_penalty=2.0, length_penalty=2.0, min_new_tokens=80, max_new_tokens=120
    ),
    "iu_xray": Decoding(num_beams=3, repetition_penalty=2.0, length_penalty=2.0, min_new_tokens=40, max_new_tokens=100),
}
"""The paper's decoding per data set (published scripts `1-2.shallow_test_iuxray.sh`, `4-2.shallow_test.sh`)."""

FAST: Final = Decoding(num_beams=1, repetition_penalty=1.0, length_penalty=1.0, min_new_tokens=0, max_new_tokens=120)
"""Plain greedy that stops by itself: one decoder pass per token, a third of beam 3's work, and open to drafting."""
