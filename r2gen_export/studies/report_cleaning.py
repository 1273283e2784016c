"""Report clean-up, character for character as the published code does it (`dataset/data_helper.py`, after R2Gen)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

ENUMERATION: Final = (
    ("1. ", ""),
    *((f". {number}. ", ". ") for number in (2, 3, 4, 5)),
    *((f" {number}. ", ". ") for number in (2, 3, 4, 5)),
)

# The published class holds the range `:-\[`, which takes out `<`, `=`, `>` and `@` too and leaves the hyphen.
IU_XRAY_MARKS: Final = re.compile(r"[.,?;*!%^&_+():-\[\]{}]")
MIMIC_CXR_MARKS: Final = re.compile(r"[.,?;*!%^&_+()\[\]{}]")


def clean_iu_xray(report: str) -> str:
    """Lower case, sentences joined by ` . `, list numbers and punctuation out: the published clean-up for IU X-Ray.

    Its quirks stay: an empty sentence is kept, and `1. ` vanishes inside `11. ` as well.
    """
    return _clean(report, (*((("..", "."),) * 3), *ENUMERATION), IU_XRAY_MARKS)


RUNS: Final = (("\n", " "), *((("__", "_"),) * 7), *((("  ", " "),) * 6), *((("..", "."),) * 8))


def clean_mimic_cxr(report: str) -> str:
    """The published clean-up for MIMIC-CXR: as for IU X-Ray, with line breaks, runs of `_` and blanks, and colons."""
    return _clean(report, (*RUNS, *ENUMERATION, (":", " :")), MIMIC_CXR_MARKS)


def clean_mimic_cxr_r2gen(report: str) -> str:
    """R2Gen's clean-up for MIMIC-CXR, which takes colons out where R2GenGPT's sets them apart."""
    return _clean(report, (*RUNS, *ENUMERATION), IU_XRAY_MARKS)


def clean_none(report: str) -> str:
    """The report as it stands, without white space around it."""
    return report.strip()


CLEANERS: Final[dict[str, Callable[[str], str]]] = {
    "iu_xray": clean_iu_xray,
    "mimic_cxr": clean_mimic_cxr,
    "none": clean_none,
}
"""Clean-up by the name of the data set."""


def _clean(report: str, replacements: tuple[tuple[str, str], ...], marks: re.Pattern[str]) -> str:
    for old, new in replacements:
        report = report.replace(old, new)
    sentences = report.strip().lower().split(". ")
    return " . ".join(_sentence(sentence, marks) for sentence in sentences) + " ."


def _sentence(sentence: str, marks: re.Pattern[str]) -> str:
    for quote in ('"', "/", "\\", "'"):
        sentence = sentence.replace(quote, "")
    return marks.sub("", sentence.strip().lower())
