"""What the words around a mention make of it: denied, doubted, in the past, or said.

After NegEx and ConText (Chapman et al. 2001, Harkema et al. 2009): a trigger holds forwards or backwards within its
clause, up to words that end its scope. The triggers are our own.
"""

from __future__ import annotations

import re
from typing import Final

from r2gen_export.evaluation.labels.vocabulary import Value

CLAUSE: Final = re.compile(
    r",? \b(?:but|however|although|though|whereas|while|yet|nevertheless|otherwise|except(?: for)?|aside from"
    r"|apart from"
    r"|other than|with the exception of)\b"
    r"|,? (?:and )?(?=there (?:is|are|has|have|was|were)\b)"
    r"|, (?=with\b|which\b|consistent with\b|compatible with\b|likely\b|probably\b|possibly\b|suggesting\b)"
)
"""Where a clause ends. What stands before `otherwise` or `except` is another statement."""

PRESENT: Final = (
    r"(?:stable|unchanged|persistent|mild|mildly|moderate|small|minimal|trace|tiny|subtle|slight|left|right"
    r"|bilateral|bibasilar|chronic"
    r"|old|healed|status post|again|interval|increased|improved|worsening|new|low|heart|cardiac|cardiomegaly"
    r"|lungs?|the|calcified"
    r"|degenerative|possible|possibly|probable|probably|likely|questionable|suspected|patchy|streaky"
    r"|subsegmental|linear|scattered|residual|mid|there|this)"
)
"""Words that begin a new statement after a comma or `and` in a list that was denied, unless `or` follows."""

LIST_END: Final = re.compile(rf"(?:,|,? and) (?={PRESENT}\b)(?!.*\b(?:or|nor)\b)")

PSEUDO: Final = re.compile(
    r"\b(?:no|not|without)(?: \w+){0,3}? (?:change|changes|changed|increase|increased|decrease|decreased"
    r"|improvement|progression"
    r"|worsening|enlarging|difference)\b(?: in| of| from)?"
    r"|\b(?:has|have|had) not(?: \w+){0,2}? (?:resolved|cleared|improved|disappeared)"
    r"|\b(?:nearly|almost|partly|partially|partial|incomplete|incompletely|near(?: |-)complete|mostly"
    r"|largely)(?: \w+)? ?"
    r"(?:resolved|resolution(?: of)?|cleared|clearing(?: of)?)"
    r"|\bnot only\b|\bno doubt\b|\bnot (?:un)?certain whether\b|\bnot well (?:seen|visualized|evaluated|defined)\b"
)
"""Negations of something else: "no change in the effusion" says that there is one."""

DENIED_FORWARD: Final = re.compile(
    r"\b(?:no longer|no|without|not|never|none|negative for|free (?:of|from)|absence of|absent|lack of|clear of"
    r"|denies|nor"
    r"|neither|rather than|resolution of|resolved|interval removal of|removal of|removed|ruled out for"
    r"|rules? out|excludes?"
    r"|instead of|(?:clearing|clearance) of)\b"
)

DENIED_BACKWARD: Final = re.compile(
    r"\b(?:(?:is|are|was|were|be|been|has|have)? ?(?:not|no longer)(?: \w+){0,2}? (?:seen|identified|present"
    r"|appreciated|evident"
    r"|demonstrated|visuali[sz]ed|visible|noted|detected|apparent|observed|shown|suspected|found|enlarged|increased)"
    r"|absent|(?:is|are) (?:now )?gone"
    r"|(?:has|have|had) (?:\w+ )?(?:resolved|cleared|disappeared)|(?:is|are) (?:\w+ )?(?:resolved"
    r"|excluded|ruled out)"
    r"|resolved|(?:has|have) been (?:\w+ )?(?:removed|ruled out|excluded)|removed|normal|not)\b"
)

DOUBT_FORWARD: Final = re.compile(
    r"\b(?:consider(?:ation of|ing)?|possib(?:le|ly|ility of)|may(?: be| represent| reflect)?|might|could"
    r"|cannot (?:exclude|rule out|be certain)|can ?not"
    r"|can't|(?:is|are) not (?:excluded|ruled out)|question(?:able|ed)?(?: of)?|equivocal|conceivably"
    r"|suspicio(?:us|n)(?: for| of)?|suspected|suspect"
    r"|concern(?:ing|ed)?(?: for)?|worrisome for|versus|vs|differential|potential|presumed|presumably|perhaps"
    r"|indeterminate|more likely(?: \w+){1,4}? than"
    r"|difficult to exclude|not entirely exclude|rule out|developing|suggest(?:s|ed|ion|ive|ing)?)\b"
)

DOUBT_BACKWARD: Final = re.compile(
    r"\b(?:(?:can ?not|could not|can't) (?:\w+ )?be (?:\w+ )?"
    r"(?:excluded|ruled out|assessed|evaluated|determined)|not (?:\w+ )?(?:excluded"
    r"|ruled out)"
    r"|(?:is|are) (?:\w+ )?(?:possible|suspected|questioned|questionable|unlikely|considered)|unlikely|suspected"
    r"|(?:is|are) (?:\w+ )?(?:a consideration|difficult to exclude)|versus|vs|not definite\w*)\b"
)

EARLIER: Final = re.compile(
    r"\b(?:(?:prior|previous|earlier|old|comparison)(?: \w+){0,2} (?:study|exam|examination|radiographs?|films?"
    r"|x-?rays?|ct)"
    r"(?: \w+){0,3}? (?:showed|demonstrated|revealed|described|with)|history of|hx of|h/o)\b"
)
"""What is said behind it was so once."""

BEHIND: Final = re.compile(r",(?! (?:or|and|nor|which|that)\b)")
"""Where what is said behind a mention no longer refers to it, unless the comma is one of a list."""

PURPOSE: Final = re.compile(
    r"\b(?:evaluation (?:for|of)(?!.*\b(?:limited|obscured)\b)|evaluate for"
    r"|(?<!difficult )to (?:further |better )?(?:assess|look|evaluate|exclude|rule out"
    r"|identify|confirm)(?: for)?"
    r"|sensitivity for|(?:could|may|might) obscure|screening for)\b"
)
"""What is said behind it is what an examination is for, which is no finding."""


CONDITION: Final = re.compile(r"\bif\b[^,]*$")
"""What is said behind it, up to a comma, is asked and not said."""

UNASSESSED: Final = re.compile(
    r"\b(?:can ?not|could not|can't|not|difficult to|unable to)(?: \w+){0,2}?"
    r" (?:assess(?:ed)?|evaluated?|determined?)\b"
)
"""A doubt about something else where it stands before a mention: "the heart cannot be assessed due to the effusion"."""

OTHER_SIDE: Final = re.compile(
    r"(?<!no )(?<!not )(?<!not a )(?<!without a )\b(?:left|right)(?:-sided)?,?"
    r" (?:but|and|though|with) (?:no|not|without)(?: an?)?(?: significant)? (?:left|right)(?:-sided)?"
    r"(?: pleural)? $"
)
"""What stands before a finding that one side has and the other has not: "a left but no right effusion"."""


def value_at(sentence: str, start: int, end: int) -> tuple[Value | None, str]:
    """What a sentence says of the mention at `start:end`: its value (None: nothing), and the words that decide."""
    first, last = clause_at(sentence, start, end)
    if CONDITION.search(sentence[:start]):
        return None, "if"
    if OTHER_SIDE.search(sentence[:start]):
        return "positive", ""
    before = UNASSESSED.sub("#", _without_pseudo(sentence[first:start]))
    behind = _without_pseudo(BEHIND.split(sentence[end:last], maxsplit=1)[0])
    if match := _last(PURPOSE, before):
        return None, match[0]
    if match := DOUBT_BACKWARD.search(behind):
        return "uncertain", match[0]
    denied, doubt = _last(DENIED_FORWARD, before), _last(DOUBT_FORWARD, before)
    if denied and _list_ends(sentence, first + denied.end(), start, last):
        denied = None
    if (
        denied and doubt and doubt.start() > denied.start()
    ):  # "no suspicious nodule", "no evidence suggesting an effusion"
        return "negative", denied[0]
    if doubt and not denied:
        return "uncertain", doubt[0]
    if doubt and denied and doubt.end() >= denied.end():  # "cannot rule out": the denial is a part of the doubt
        return "uncertain", doubt[0]
    if denied:
        return "negative", denied[0]
    if match := DENIED_BACKWARD.search(behind):
        return "negative", match[0]
    if match := _last(EARLIER, before):
        cleared = DENIED_BACKWARD.search(_without_pseudo(sentence[end:]))
        return ("negative", cleared[0]) if cleared else (None, match[0])
    return "positive", ""


def _without_pseudo(text: str) -> str:
    return PSEUDO.sub(lambda match: "#" * len(match[0]), text)


def clause_at(sentence: str, start: int, end: int) -> tuple[int, int]:
    """Start and end of the clause that a mention stands in."""
    first, last = 0, len(sentence)
    for match in CLAUSE.finditer(sentence):
        if match.end() <= start:
            first = match.end()
        elif match.start() >= end:
            last = match.start()
            break
    return first, last


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    match = None
    for match in pattern.finditer(text):  # noqa: B007
        pass
    return match


def _list_ends(sentence: str, after: int, start: int, last: int) -> bool:
    """Whether a new statement begins between a denial and the mention."""
    return any(match.start() < start for match in LIST_END.finditer(sentence[:last], after, last))
