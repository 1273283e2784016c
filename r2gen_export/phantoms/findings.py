"""The findings a phantom can show: their sides, severities, how often they are drawn and what they may not hide.

To add a finding, touch one place per concern:

1. an entry in `KINDS` here (sides, severities, weight, conflicts);
2. a function under `@paints("name")` in `frontal_findings.py` (and, where it shows there, in `lateral.py`);
3. its sentences in `grammar.py` (`SENTENCES["name"]`), and a denial in `DENIALS` if reports deny it;
4. the words it is recognised by in `reader.py` (`TERMS`).

`tests/phantoms/test_phantoms.py` fails while one of them is missing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np

Side = Literal["left", "right"]
Label = tuple[str, str | None]
"""(finding, side): the unit F1 counts. Bilateral is two labels."""

SIZES: Final = ("small", "moderate", "large")
GRADES: Final = ("mild", "moderate", "severe")
ZONES: Final = ("upper", "mid", "lower")


@dataclass(frozen=True, order=True)
class Finding:
    """One finding of a study.

    Attributes:
        name: a key of `KINDS`.
        side: the patient's side ("left" is on the image's right), None for findings without one. A bilateral
            finding is two of these.
        severity: one of the kind's words, None for devices.
        zone: "upper", "mid" or "lower" lung zone for findings with a place, else None.
    """

    name: str
    side: Side | None
    severity: str | None
    zone: str | None = None

    @property
    def level(self) -> int:
        """0 (least) to 2 (most); 0 for devices."""
        words = KINDS[self.name].severities
        return words.index(self.severity) if self.severity else 0


@dataclass(frozen=True)
class Kind:
    """What the sampler needs to know about a finding.

    Attributes:
        sided: it lies on a side.
        severities: three words from least to most, empty for devices.
        weight: how often it is drawn, relative to the others.
        bilateral: probability that a sided finding is on both sides.
        zones: the lung zones it may lie in, empty when it has no place.
        apart: findings it is never drawn with on the same side (or at all, when one of both has no side),
            because one would hide the other.
    """

    sided: bool
    severities: tuple[str, ...]
    weight: float
    bilateral: float = 0.0
    zones: tuple[str, ...] = ()
    apart: tuple[str, ...] = ()


KINDS: Final[dict[str, Kind]] = {
    "cardiomegaly": Kind(sided=False, severities=GRADES, weight=1.2),
    "pleural effusion": Kind(sided=True, severities=SIZES, weight=1.4, bilateral=0.3),
    "pneumothorax": Kind(
        sided=True,
        severities=SIZES,
        weight=1.2,
        apart=("pleural effusion", "consolidation", "nodule", "atelectasis", "interstitial edema"),
    ),
    "consolidation": Kind(sided=True, severities=SIZES, weight=1.2, bilateral=0.15, zones=ZONES),
    "nodule": Kind(
        sided=True, severities=SIZES, weight=1.2, zones=ZONES, apart=("consolidation", "interstitial edema")
    ),
    "atelectasis": Kind(
        sided=True,
        severities=GRADES,
        weight=1.2,
        bilateral=0.2,
        apart=("pleural effusion", "consolidation", "nodule", "interstitial edema"),
    ),
    "interstitial edema": Kind(sided=False, severities=GRADES, weight=1.0, apart=("consolidation",)),
    "pacemaker": Kind(sided=True, severities=(), weight=1.1),
}
"""Every finding, in the order labels are written."""

COVERS: Final = {"pleural effusion": "lower", "pacemaker": "upper"}
"""The zone of its own side in which a finding leaves nothing else to see."""

NORMAL_SHARE: Final = 0.2


def labels(findings: Iterable[Finding]) -> frozenset[Label]:
    """The label set of a study: (name, side) of every finding."""
    return frozenset((finding.name, finding.side) for finding in findings)


def sample_findings(rng: np.random.Generator, normal: float = NORMAL_SHARE) -> tuple[Finding, ...]:
    """Draw the findings of one study: none with probability `normal`, else one to three that can be seen together."""
    if rng.random() < normal:
        return ()
    wanted = int(rng.choice((1, 2, 3), p=(0.45, 0.35, 0.2)))
    names = list(KINDS)
    weights = np.array([KINDS[name].weight for name in names])
    chosen: list[Finding] = []
    for index in rng.choice(len(names), size=wanted, replace=False, p=weights / weights.sum()):
        chosen.extend(_place(names[int(index)], chosen, rng))
    order = {name: rank for rank, name in enumerate(names)}
    settled = (_settled(finding, chosen, rng) for finding in chosen)
    return tuple(sorted(settled, key=lambda finding: (order[finding.name], finding.side or "")))


def _place(name: str, others: list[Finding], rng: np.random.Generator) -> list[Finding]:
    """The finding on the sides where it clashes with nothing drawn so far; empty when there is none."""
    kind = KINDS[name]
    sides: list[Side | None] = [None]
    if kind.sided:
        first: Side = "left" if rng.random() < 0.5 else "right"
        second: Side = "right" if first == "left" else "left"
        both = rng.random() < kind.bilateral
        sides = [first, second] if both or not _fits(name, first, others) else [first]
    severity = str(rng.choice(kind.severities)) if kind.severities else None
    placed: list[Finding] = []
    for side in (side for side in sides if _fits(name, side, others)):
        if placed and kind.severities and rng.random() < 0.4:
            severity = str(rng.choice(kind.severities))
        placed.append(Finding(name, side, severity))
    return placed


def _fits(name: str, side: Side | None, others: list[Finding]) -> bool:
    for other in others:
        apart = other.name in KINDS[name].apart or name in KINDS[other.name].apart
        if apart and (side is None or other.side is None or side == other.side):
            return False
    return True


def _settled(finding: Finding, everything: list[Finding], rng: np.random.Generator) -> Finding:
    """The finding with a zone that nothing on its side covers; an effusion leaves room for what lies beside it."""
    kind = KINDS[finding.name]
    beside = {other.name for other in everything if other.side == finding.side}
    if kind.zones:
        taken = {COVERS[name] for name in beside & COVERS.keys()}
        if finding.side == "left" and any(other.name == "cardiomegaly" for other in everything):
            taken.add("lower")
        return replace(finding, zone=str(rng.choice([zone for zone in kind.zones if zone not in taken])))
    if finding.name == "pleural effusion" and finding.level == 2 and any(KINDS[name].zones for name in beside):
        return replace(finding, severity="moderate")
    return finding
