"""The lateral chest, the patient facing the image's left, and what the findings look like there.

A lateral view superposes both lungs, so sides cannot be told; it supports the frontal view. Findings register with
`@shows(name)`; those without an entry (pneumothorax) are not drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np

from r2gen_export.phantoms.canvas import Array, Canvas, ramp, smooth_curve
from r2gen_export.phantoms.findings import Finding

ZONE_Y = {"upper": -0.40, "mid": -0.05, "lower": 0.25}
SPINE_X = 0.52


@dataclass
class Profile:
    """A lateral chest being drawn: `air` and `opacity` [n, n], `heart` a size factor, `over` added last."""

    canvas: Canvas
    rng: np.random.Generator
    heart: float
    air: Array
    opacity: Array
    over: Array


Change = Callable[[Profile, Finding], None]
SHOWS: Final[dict[str, Change]] = {}


def shows(name: str) -> Callable[[Change], Change]:
    """Register how a finding changes the lateral view."""
    return lambda change: SHOWS.setdefault(name, change)


def draw_lateral(findings: Iterable[Finding], canvas: Canvas, rng: np.random.Generator) -> Array:
    """The lateral view, float32 [n, n]."""
    x, y = canvas.x, canvas.y
    front = smooth_curve(y, (-1.1, -0.7, -0.4, 0.0, 0.5, 1.1), (-0.12, -0.25, -0.42, -0.54, -0.60, -0.60))
    back = smooth_curve(y, (-1.1, -0.7, -0.4, 0.1, 0.6, 1.1), (0.42, 0.56, 0.68, 0.72, 0.66, 0.55))
    floor = 0.34 + rng.uniform(-0.04, 0.04) + smooth_curve(x, (-0.6, -0.2, 0.2, 0.5, 0.7), (0.06, 0.0, 0.05, 0.2, 0.36))
    air = ramp(x - front, 0.04) * ramp(back - x, 0.04) * ramp(floor - y, 0.03) * ramp(y + 0.72, 0.16)
    profile = Profile(canvas, rng, rng.uniform(0.94, 1.03), air, canvas.zeros(), canvas.zeros())
    for finding in findings:
        if finding.name in SHOWS:
            SHOWS[finding.name](profile, finding)
    return _render(profile, front, back)


def _render(profile: Profile, front: Array, back: Array) -> Array:
    canvas, rng, x, y = profile.canvas, profile.rng, profile.canvas.x, profile.canvas.y
    size = profile.heart
    heart = canvas.ellipse(-0.20 + 0.12 * (size - 1), 0.20, 0.29 * size, 0.30 * size, 0.10)
    arch = canvas.blob(0.10, -0.34, 0.11, 0.10) + canvas.blob(0.06, -0.04, 0.09, 0.10)
    body = ramp(x - front + 0.16, 0.06) * ramp(back + 0.20 - x, 0.06)
    body = np.maximum(body, 0.8 * ramp(-0.55 - y, 0.2) * ramp(0.9 - np.abs(x), 0.1))
    spine = SPINE_X + 0.06 * (1 - y**2) - 0.04
    vertebra = ramp(0.085 - np.abs(x - spine), 0.03) * (0.7 + 0.3 * np.cos(y * np.float32(2 * np.pi / 0.15)))
    phase = (y - 0.75 * (x - 0.6) ** 2 + 0.55 * (0.6 - x)) / 0.16 + rng.uniform(0, 1)
    ribs = ramp(0.22 - np.abs(phase - np.rint(phase)), 0.14)
    sternum = ramp(0.03 - np.abs(x - front + 0.02), 0.02) * ramp(0.25 - y, 0.1) * ramp(y + 0.55, 0.1)
    windpipe = ramp(0.05 - np.abs(x - 0.10 - 0.12 * (y + 0.6)), 0.03) * ramp(-0.22 - y, 0.08)
    picture = 0.64 + 0.08 * ramp(y - 0.3, 0.6) - profile.air * (0.44 - 0.34 * heart - 0.16 * arch)
    picture = picture + 0.13 * vertebra + 0.07 * ribs * (0.3 + 0.7 * profile.air) + 0.08 * sternum - 0.10 * windpipe
    picture = picture - 0.10 * ramp(y, 0.9) * profile.air * ramp(x - 0.2, 0.3)
    picture = picture + 0.03 * canvas.texture(rng, 10) + 0.02 * profile.air * canvas.texture(rng, 36)
    picture = picture + profile.opacity * (1 - 0.55 * picture)
    return (picture * body + 0.02 + profile.over).astype(np.float32)


@shows("cardiomegaly")
def _heart(profile: Profile, finding: Finding) -> None:
    profile.heart = (1.17, 1.32, 1.5)[finding.level]


@shows("pleural effusion")
def _fluid(profile: Profile, finding: Finding) -> None:
    rise = (0.20, 0.42, 0.72)[finding.level]
    level = 0.62 - rise * ramp(profile.canvas.x - 0.35, 0.7)
    profile.air *= 1 - (0.75, 0.8, 0.85)[finding.level] * ramp(profile.canvas.y - level, 0.06)


@shows("consolidation")
def _airspace(profile: Profile, finding: Finding) -> None:
    radius = (0.17, 0.23, 0.30)[finding.level]
    canvas, rng = profile.canvas, profile.rng
    spot = canvas.blob(rng.uniform(0.0, 0.3), ZONE_Y[finding.zone or "mid"], 0.75 * radius, 0.7 * radius)
    profile.opacity += 0.42 * profile.air * ramp(spot - 0.3 + 0.12 * canvas.texture(rng, 14), 0.5)


@shows("nodule")
def _nodule(profile: Profile, finding: Finding) -> None:
    radius = (0.05, 0.072, 0.10)[finding.level]
    x, y = profile.rng.uniform(0.1, 0.34), ZONE_Y[finding.zone or "mid"] + profile.rng.uniform(-0.09, 0.05)
    profile.opacity += 0.5 * profile.canvas.ellipse(x, y, radius, radius, 0.03)


@shows("atelectasis")
def _plates(profile: Profile, finding: Finding) -> None:
    rng, lines = profile.rng, []
    for row in range(finding.level + 1):
        x, y = rng.uniform(0.1, 0.25), 0.26 - 0.1 * row
        lines.append((((x - 0.15, y), (x + 0.15, y + rng.uniform(-0.05, 0.05))), 0.03, 1.0))
    profile.opacity += 0.5 * profile.canvas.strokes(lines, 0.006) * profile.air


@shows("interstitial edema")
def _edema(profile: Profile, finding: Finding) -> None:
    net = np.maximum(1.0 - 2.2 * np.abs(profile.canvas.texture(profile.rng, 44)), 0.0)
    haze = profile.canvas.blob(0.08, -0.02, 0.25, 0.3)
    profile.opacity += profile.air * ((0.18, 0.25, 0.32)[finding.level] * net + (0.1, 0.18, 0.3)[finding.level] * haze)


@shows("pacemaker")
def _pacemaker(profile: Profile, finding: Finding) -> None:
    y = profile.rng.uniform(-0.46, -0.38)
    x = -0.47
    can = [(x - 0.03, y - 0.09), (x + 0.03, y - 0.09), (x + 0.01, y + 0.09), (x - 0.05, y + 0.09)]
    leads = [[(x, y - 0.08), (-0.1, -0.55), (0.05, -0.3), (0.02, 0.05), tip] for tip in ((-0.1, 0.02), (-0.34, 0.32))]
    wires = profile.canvas.strokes([(lead, 0.014, 0.8) for lead in leads], 0.003)
    profile.over += 0.45 * wires + profile.canvas.filled([(can, 0.72)], 0.006)
