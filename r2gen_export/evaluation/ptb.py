"""Words as coco-caption's `PTBTokenizer` gives them, without Java: Penn Treebank splitting, lower case, no punctuation.

Own rules, written from what the Stanford tokenizer 3.4.1 (`-preserveLines -lowerCase`) answers to radiology text, and
compared with it by a test where Java is there. Not covered: telephone numbers, smileys, web addresses, Unicode
fractions. Two properties of coco-caption stay: brackets come out as `-lrb-` and are kept, because its list of
punctuation has them in capitals, and `?!` is no punctuation.
"""

from __future__ import annotations

import re
from typing import Final

PUNCTUATION: Final = frozenset({"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"})

BRACKETS: Final = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}

ENTITIES: Final = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&apos;": "'", "&nbsp;": "\xa0"}

SPLIT_WORDS: Final = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "wanna": ("wan", "na"),
    "gotta": ("got", "ta"),
    "gimme": ("gim", "me"),
    "lemme": ("lem", "me"),
}

TITLES: Final = (
    "Mr|Mrs|Ms|Dr|Drs|St|Prof|Rev|Gen|Rep|Sen|Lt|Col|Capt|Sgt|Maj|Hon|Messrs|Ft|Ave|Mt|vs|cf|Cf|ft|al|v|Me|tel"
)
"""Abbreviations that keep their full stop, whatever follows."""

ENDING: Final = (
    "etc|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sep|Sept|Oct|Nov|Dec|Mon|Tue|Tues|Wed|Thu|Thurs|Fri|Inc|Co|Cos|Corp|Ltd|Jr|Sr|jr|sr|"
    "Assn|Dept|dept|Bros|Univ|Est|est|Blvd|Rd|Sq|Ct|Ph\\.D|Calif|Mass|Pa|Md|Mo|La|Va|Wash|Ill|Ind|Ariz|Conn|Fla|Ga|Mich|"
    "Minn|Tenn|Tex|Wis|Pp|CT"
)
"""Abbreviations that keep their full stop, and give another where a capital follows: the end of a sentence."""

NUMBERED: Final = "No|no|Nos|nos|Art|art|Nr|pp|Fig|fig|p"
"""Abbreviations that keep their full stop in front of a number only."""

_NUMBER = r"(?:\d+(?:[.:,]\d+)*|(?:[.:,]\d+)+)"
_WORD = r"[^\W_]+"

STARTERS: Final = (
    "The|There|This|That|These|A|An|If|In|Some|However|It|But|He|She|We|They|Her|What|When|So|Since|Such|While|Yet|You|At|"
    "As|Last|More|One|Other|Our|Then"
)
"""Words before which `a.m.` or `L.` ends a sentence."""

TOKEN: Final = re.compile(
    "|".join(
        f"(?P<{name}>{pattern})"
        for name, pattern in (
            ("space", r"\s+"),
            ("dots", r"\.{3,5}|(?:\.[ \xa0]){2,4}\.|…"),
            ("marks", r"[?!]+"),
            ("negated", r"(?<![^\W_])[^\W\d_]+?(?=n['’]t(?![^\W_]))|n['’]t(?![^\W_])"),
            ("clitic", r"['’](?:[msdMSD]|re|ve|ll|RE|VE|LL)(?![^\W_])"),
            ("ending", rf"(?:{ENDING})\.(?![^\W_])"),
            ("title", rf"(?:{TITLES})\.(?![^\W_])"),
            ("numbered", rf"(?:{NUMBERED})\.(?=\s*\d)"),
            ("acronym", r"[A-Za-z](?:\.[A-Za-z])+\.(?![^\W_])"),
            ("initial", rf"[A-Za-z]\.(?=\s+(?!(?:{STARTERS})\s)\S)|[A-Za-z]\.(?=\s*$)"),
            ("dotted", r"[A-Za-z]+(?:\.[A-Za-z]+)+"),
            ("fraction", r"(?<![^\W_])(?:\d{1,4}[- \xa0])?\d{1,4}/\d{1,4}(?![^\W_]|/)"),
            ("date", r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}(?![\d/])|\d{4}-\d{1,2}-\d{1,2}"),
            ("apostrophe", r"[oO]['’]clock|[mM]a['’]am|[A-HJ-XZ]['’][^\W\d_]{3,}"),
            ("ampersand", r"[A-Z]+(?:&[A-Z]+)+"),
            ("slashed", rf"{_WORD}(?:-[^\W\d_]+){{0,2}}(?:/{_WORD}(?:-[^\W\d_]+){{0,2}}){{1,2}}"),
            ("hyphened", rf"(?:[+-]?{_NUMBER}|{_WORD})(?:-{_WORD})+"),
            ("underscored", rf"{_WORD}(?:_{_WORD})+"),
            ("alphanumeric", r"\d*[^\W\d_][^\W_]*"),
            ("number", rf"[+-]?{_NUMBER}"),
            ("line", r"_+"),
            ("dash", r"-{2,}|[–—]"),
            ("quote", r"''|``|[\"“”]|['‘’`]"),
            ("stars", r"\*+"),
            ("hashtag", r"#[A-Za-z_]\w*"),
            ("entity", r"&(?:amp|lt|gt|quot|apos|nbsp);"),
            ("tag", r"</?[A-Za-z][^<>\n]*>"),
            ("other", r"."),
        )
    ),
    re.DOTALL,
)


def ptb_words(text: str) -> str:
    """The words of a text, lower-case, separated by blanks, without what coco-caption takes for punctuation."""
    return " ".join(token for token in split(text) if token not in PUNCTUATION)


def split(text: str) -> list[str]:
    """All tokens, lower-case; quotation marks are `''` whichever side they are of."""
    tokens: list[str] = []
    for match in TOKEN.finditer(text):
        tokens += _tokens(match.lastgroup or "", match[0].lower(), text, match.end())
    return tokens


def _tokens(kind: str, token: str, text: str, end: int) -> tuple[str, ...]:
    if kind == "space":
        return ()
    if kind == "dots":
        return ("...",)
    if kind in ("negated", "clitic"):
        return (token.replace("’", "'"),)
    if kind == "ending" and re.match(r"\s+[A-Z]", text[end : end + 8]):
        return (token, ".")
    if kind == "acronym" and re.match(rf"\s+(?:{STARTERS})\s", text[end : end + 16]):
        return (token, ".")
    if kind == "fraction":
        return (token.replace(" ", "\xa0"),)
    if kind == "entity":
        return (ENTITIES[token],)
    if kind == "dash":
        return ("--",)
    if kind == "quote":
        return ("''",)
    if kind == "other":
        return (BRACKETS.get(token, token),)
    return SPLIT_WORDS.get(token, (token,))
