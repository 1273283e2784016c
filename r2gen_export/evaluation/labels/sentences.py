"""Reports as sentences in lower case, without headings, numbering and sections that say nothing about the image."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from r2gen_export.evaluation.labels.vocabulary import SPELLED

HEADING: Final = re.compile(
    r"(?:^|(?<=[\n.]))[ \t]*(?P<name>[A-Za-z][A-Za-z /&()-]{2,40}?)[ \t]*:(?=[ \t\n]|$)", re.MULTILINE
)

SKIPPED: Final = re.compile(
    r"indication|history|clinical|reason|comparison|technique|exam(?:ination)?|procedure|study|views?|signed|dictated"
    r"|recommendation|notification|provisional",
    re.IGNORECASE,
)
"""Headings of sections that do not describe the image: a question is no finding."""

READ: Final = re.compile(r"findings?|impressions?|conclusions?|opinion|report|results?|interpretation", re.IGNORECASE)

NUMBERING: Final = re.compile(r"(?:^|(?<=\s))\(?\d{1,2}[.)](?=\s+[A-Za-z])")
BREAK: Final = re.compile(r"(?<!\d)[.!?](?=\s|$)|(?<=\d)[.](?=\s+[a-z]|\s*$)|;|\n\s*\n|\n\s*[-*•]\s")
WORD: Final = re.compile(r"[a-z]{8,}")


def sentences(report: str) -> list[str]:
    """The sentences that describe the image: lower case, single blanks, known words spelled as the rules have them."""
    text = _described(report.replace("\r\n", "\n").replace("\r", "\n"))
    text = NUMBERING.sub(" . ", text.lower())
    text = text.replace("’", "'").replace("–", "-").replace("—", ", ")
    parts = (" ".join(part.split()) for part in BREAK.split(text))
    return [WORD.sub(lambda word: respelled(word[0]), part) for part in parts if part]


def _described(report: str) -> str:
    """A report without the sections of `SKIPPED`; a heading that is read becomes the end of a sentence."""
    headings = [match for match in HEADING.finditer(report) if _is_heading(match["name"])]
    if not headings:
        return report
    parts = [report[: headings[0].start()]]
    ends = [heading.start() for heading in headings[1:]] + [len(report)]
    for heading, end in zip(headings, ends, strict=True):
        if READ.search(heading["name"]) or not SKIPPED.search(heading["name"]):
            parts.append(report[heading.end() : end])
    return "\n\n".join(parts)


def _is_heading(name: str) -> bool:
    return len(name.split()) <= 4 and bool(name.isupper() or READ.search(name) or SKIPPED.search(name))


@lru_cache(maxsize=65536)
def respelled(word: str) -> str:
    """A word as the rules spell it, when one edit away (a letter more, less or other, or two exchanged) from theirs.

    Other words, and those that are one edit from several, stay as they are.
    """
    if word in SPELLED:
        return word
    near = {known for known in SPELLED if abs(len(known) - len(word)) <= 1 and _one_edit(word, known)}
    return near.pop() if len(near) == 1 else word


def _one_edit(left: str, right: str) -> bool:
    start = 0
    while start < min(len(left), len(right)) and left[start] == right[start]:
        start += 1
    a, b = left[start:], right[start:]
    return a[1:] == b[1:] or a[1:] == b or a == b[1:] or (a[:2] == b[:2][::-1] and a[2:] == b[2:])
