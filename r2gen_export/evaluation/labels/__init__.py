"""Findings named in a report, by rules and without weights: `r2gen-rules v1`.

CheXpert's 14 findings, each positive, uncertain, negative or blank. The phrases and rules are our own; what the values
mean follows CheXpert (Irvin et al. 2019): of several mentions positive counts before uncertain, uncertain before
negative; "No Finding" is positive when no other finding but support devices is positive or uncertain. Where CheXpert's
labeller and the human coders of the Indiana reports differ, the rules follow the coders: "borderline", "likely" and
"probable" say a finding, "upper limits of normal" denies it, granulomas are lung lesions, vascular congestion is edema,
and interstitial markings and a blunted costophrenic angle by themselves are neither opacity nor effusion.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from r2gen_export.evaluation.labels.context import clause_at, value_at
from r2gen_export.evaluation.labels.sentences import sentences
from r2gen_export.evaluation.labels.vocabulary import COMMON, FINDINGS, PHRASES, Value

__all__ = ["COMMON", "FINDINGS", "RULES", "Mention", "label_report", "labels_of", "mentions"]

RULES: Final = "r2gen-rules v1"

RANK: Final = {"positive": 3, "uncertain": 2, "negative": 1}

SIDES: Final = {
    "both": re.compile(r"\b(?:bilateral(?:ly)?|both|bibasilar|biapical|right and left|left and right)\b"),
    "left": re.compile(r"\b(?:left|left-sided|lingula)\b"),
    "right": re.compile(r"\b(?:right|right-sided|middle lobe)\b"),
}
SEVERITIES: Final = {
    "borderline": re.compile(r"\bborderline\b"),
    "minimal": re.compile(r"\b(?:minimal(?:ly)?|trace|tiny|subtle)\b"),
    "mild": re.compile(r"\b(?:mild(?:ly)?|small|slight(?:ly)?)\b"),
    "moderate": re.compile(r"\bmoderate(?:ly)?\b"),
    "severe": re.compile(r"\b(?:severe(?:ly)?|large|marked(?:ly)?|massive(?:ly)?|extensive|gross(?:ly)?)\b"),
}


@dataclass(frozen=True)
class Mention:
    """A place of a report that names a finding.

    Attributes:
        finding: one of `FINDINGS`. `value`: what is said of it.
        words: the words that name it. `trigger`: those that deny or doubt it, empty when there are none.
        side: `left`, `right`, `both`, or empty when the clause says none. `severity`: `borderline`, `minimal`, `mild`,
            `moderate`, `severe`, or empty. Of several the nearest counts.
        sentence: the sentence in lower case: patient data.
    """

    finding: str
    value: Value
    words: str
    trigger: str
    side: str
    severity: str
    sentence: str


def mentions(report: str) -> Iterator[Mention]:
    """Every mention of a finding in a report, sentence by sentence."""
    for sentence in sentences(report):
        for phrase in PHRASES:
            for match in phrase.pattern.finditer(sentence):
                start, end = match.span("at") if "at" in phrase.pattern.groupindex else match.span()
                value, trigger = (phrase.value, match[0]) if phrase.value else value_at(sentence, start, end)
                if value is None:
                    continue
                first, last = clause_at(sentence, start, end)
                place = (sentence[first:last], match.start() - first, match.end() - first)
                side, severity = _nearest(SIDES, *place), _nearest(SEVERITIES, *place)
                yield Mention(phrase.finding, value, match[0], trigger, side, severity, sentence)


def labels_of(places: Iterable[Mention]) -> dict[str, str]:
    """The value of each of `FINDINGS` from all mentions of a report."""
    labels = dict.fromkeys(FINDINGS, "blank")
    for mention in places:
        if RANK[mention.value] > RANK.get(labels[mention.finding], 0):
            labels[mention.finding] = mention.value
    others = (value for name, value in labels.items() if name not in ("No Finding", "Support Devices"))
    if not any(value in ("positive", "uncertain") for value in others):
        labels["No Finding"] = "positive"
    return labels


def label_report(report: str) -> dict[str, str]:
    """The value of each of `FINDINGS`: `positive`, `uncertain`, `negative`, or `blank` where it is not mentioned."""
    return labels_of(mentions(report))


def _nearest(words: dict[str, re.Pattern[str]], clause: str, start: int, end: int) -> str:
    """The name whose words stand nearest to `start:end` of a clause; words before it count before words behind."""
    distances = {
        (
            start - match.end()
            if match.end() <= start
            else match.start() - end + len(clause)
            if match.start() >= end
            else 0
        ): name
        for name, pattern in words.items()
        for match in pattern.finditer(clause)
    }
    return distances[min(distances)] if distances else ""
