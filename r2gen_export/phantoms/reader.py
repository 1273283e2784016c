"""Findings read back from a report's text, and the score of what was read.

A reader for the sentences of `grammar.py`, in any order and case: sentence by sentence, a term counts unless a denial
stands before it; the sides named in the sentence are the finding's sides.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from r2gen_export.phantoms.findings import KINDS, Label, Side

TERMS: Final[dict[str, re.Pattern[str]]] = {
    name: re.compile(pattern)
    for name, pattern in {
        "cardiomegaly": r"\bcardiomegaly\b|\b(?:heart|cardiac silhouette)\b.*\benlarge|\benlargement of the heart\b",
        "pleural effusion": r"\beffusions?\b|\bpleural fluid\b",
        "pneumothorax": r"\bpneumothora(?:x|ces)\b",
        "consolidation": r"\bconsolidations?\b|\bairspace opacit",
        "nodule": r"\bnodules?\b|\bnodular\b",
        "atelectasis": r"\batelecta(?:sis|ses|tic)\b",
        "interstitial edema": r"\bo?edema\b",
        "pacemaker": r"\bpacemakers?\b",
    }.items()
}
"""The words each finding is recognised by, in lower-case text."""

_SENTENCE: Final = re.compile(r"[.;\n]+")
_DENIAL: Final = re.compile(r"\b(?:no|not|without|free of)\b")
_BOTH: Final = re.compile(r"\b(?:bilateral|both|bibasilar)\b")
_SIDE: Final = {
    "left": re.compile(r"\bleft\b"),
    # The leads of a device end in the right heart, whichever side the device is on.
    "right": re.compile(r"\bright\b(?! heart\b)"),
}


def read_findings(text: str) -> frozenset[Label]:
    """The labels a report affirms: (finding, side) pairs, side None for findings without one.

    A sided finding whose sentence names no side is dropped: nothing can be scored against it.
    """
    found: set[Label] = set()
    for sentence in _SENTENCE.split(text.lower()):
        denial = _DENIAL.search(sentence)
        for name, term in TERMS.items():
            match = term.search(sentence)
            if match is None or (denial is not None and denial.start() < match.end()):
                continue
            if KINDS[name].sided:
                found.update((name, side) for side in _sides(sentence))
            else:
                found.add((name, None))
    return frozenset(found)


def _sides(sentence: str) -> list[Side]:
    if _BOTH.search(sentence):
        return ["left", "right"]
    sides: tuple[Side, Side] = ("left", "right")
    return [side for side in sides if _SIDE[side].search(sentence)]


@dataclass(frozen=True)
class F1:
    """Micro-averaged over all labels of all studies, each in 0..1; `hits`, `missed` and `extra` are the counts."""

    f1: float
    precision: float
    recall: float
    hits: int
    missed: int
    extra: int


def micro_f1(pairs: Iterable[tuple[frozenset[Label], frozenset[Label]]]) -> F1:
    """Micro-F1 = 2 hits / (2 hits + missed + extra) over (wanted, found) pairs; 0 when there is no label at all."""
    hits = missed = extra = 0
    for wanted, found in pairs:
        hits += len(wanted & found)
        missed += len(wanted - found)
        extra += len(found - wanted)
    return F1(
        f1=2 * hits / max(1, 2 * hits + missed + extra),
        precision=hits / max(1, hits + extra),
        recall=hits / max(1, hits + missed),
        hits=hits,
        missed=missed,
        extra=extra,
    )
