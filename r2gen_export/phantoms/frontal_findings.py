"""How each finding changes the frontal chest.

`@shapes(name)` functions run before the geometry is fixed (heart size, diaphragm height), `@paints(name)` functions
after it. Both take (chest, finding). Sizes are in canvas units: 1 is half the picture's side, so 0.01 is 1.3 pixels
of a 256 pixel picture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from r2gen_export.phantoms.canvas import ramp, smooth_curve
from r2gen_export.phantoms.findings import Finding
from r2gen_export.phantoms.frontal import SIGN, ZONE_Y, Chest

Change = Callable[[Chest, Finding], None]
SHAPES: Final[dict[str, Change]] = {}
PAINTS: Final[dict[str, Change]] = {}


def shapes(name: str) -> Callable[[Change], Change]:
    """Register a function that sets geometry for a finding."""
    return lambda change: SHAPES.setdefault(name, change)


def paints(name: str) -> Callable[[Change], Change]:
    """Register a function that draws a finding."""
    return lambda change: PAINTS.setdefault(name, change)


@shapes("cardiomegaly")
def enlarge_heart(chest: Chest, finding: Finding) -> None:
    """Cardiothoracic ratio above the normal 0.5."""
    chest.heart = (0.565, 0.63, 0.70)[finding.level] + chest.rng.uniform(-0.012, 0.012)


@shapes("pleural effusion")
def push_mediastinum(chest: Chest, finding: Finding) -> None:
    """A large effusion pushes the mediastinum to the other side."""
    if finding.level == 2 and finding.side:
        chest.shift -= 0.05 * SIGN[finding.side]


@paints("pleural effusion")
def fill_pleura(chest: Chest, finding: Finding) -> None:
    """Fluid from the costophrenic angle upwards, its surface rising towards the chest wall (the meniscus)."""
    assert finding.side
    lung = chest.lungs[finding.side]
    wall, medial = ((0.24, 0.52), (0.02, 0.30), (-0.30, 0.0))[finding.level]
    wall, medial = np.array((wall, medial)) + chest.rng.uniform(-0.04, 0.04)
    x = np.abs(chest.canvas.x)
    level = smooth_curve(x, (0.0, 0.3, 0.5, 0.62, 0.76), (medial, medial, medial + 0.3 * (wall - medial),
                                                         medial + 0.62 * (wall - medial), wall))  # fmt: skip
    lung.air *= 1 - 0.97 * ramp(chest.canvas.y - level, 0.06)


@paints("pneumothorax")
def collapse_lung(chest: Chest, finding: Finding) -> None:
    """The lung falls away from the wall: black, vessel-free rim outside a thin pleural line."""
    assert finding.side
    canvas, lung, sign = chest.canvas, chest.lungs[finding.side], SIGN[finding.side]
    gap = (0.13, 0.21, 0.34)[finding.level] * chest.rng.uniform(0.94, 1.06)
    fade = smooth_curve(canvas.y, (-0.8, -0.4, 0.1, 0.6), (1.0, 0.9, 0.6, (0.15, 0.35, 0.7)[finding.level]))
    x = np.abs(canvas.x)
    inner = ramp(lung.outer - gap * fade - x, 0.02) * ramp(canvas.y - lung.top - 1.15 * gap, 0.02)
    edge = 4 * inner * (1 - inner)
    rim = lung.air * (1 - inner)
    chest.vessels *= 1 - ramp(sign * canvas.x, 0.02) * (1 - inner)
    chest.opacity += lung.air * (0.34 * edge + (0.04, 0.09, 0.16)[finding.level] * inner) - 0.17 * rim


@paints("consolidation")
def fill_airspace(chest: Chest, finding: Finding) -> None:
    """A cloudy patch with a ragged border, denser than vessels, in one zone."""
    assert finding.side
    assert finding.zone
    canvas, rng = chest.canvas, chest.rng
    radius = (0.17, 0.23, 0.30)[finding.level] * rng.uniform(0.95, 1.05)
    x = SIGN[finding.side] * (rng.uniform(0.40, 0.48) + (0.04 if finding.zone == "lower" else 0.0))
    y = ZONE_Y[finding.zone] + rng.uniform(-0.05, 0.05)
    distance = np.sqrt(((canvas.x - x) / radius) ** 2 + ((canvas.y - y) / (0.85 * radius)) ** 2)
    patch = ramp(1.0 - distance + 0.22 * canvas.texture(rng, 14), 0.7)
    patch *= 0.92 + 0.12 * canvas.texture(rng, 30)
    chest.opacity += 0.52 * patch * chest.lungs[finding.side].air


@paints("nodule")
def place_nodule(chest: Chest, finding: Finding) -> None:
    """A sharp round spot, brighter than a rib crossing."""
    assert finding.side
    assert finding.zone
    canvas, rng = chest.canvas, chest.rng
    radius = (0.05, 0.072, 0.10)[finding.level] * rng.uniform(0.95, 1.05)
    reach = (0.30, 0.42) if finding.zone == "upper" else (0.34, 0.54)
    if finding.zone == "lower" and finding.side == "left":
        reach = (0.50, 0.56)
    x = SIGN[finding.side] * rng.uniform(*reach)
    y = ZONE_Y[finding.zone] + rng.uniform(-0.09, 0.05)
    chest.opacity += 0.60 * canvas.ellipse(x, y, radius, radius * rng.uniform(0.92, 1.08), 0.03)


@shapes("atelectasis")
def raise_diaphragm(chest: Chest, finding: Finding) -> None:
    """Lost volume lifts the hemidiaphragm."""
    assert finding.side
    chest.lift[finding.side] = (0.03, 0.07, 0.12)[finding.level]


@paints("atelectasis")
def draw_plates(chest: Chest, finding: Finding) -> None:
    """Plate-like bands above the diaphragm: one to three, nearly horizontal."""
    assert finding.side
    canvas, rng, sign = chest.canvas, chest.rng, SIGN[finding.side]
    lines = []
    base = 0.27 - chest.lift[finding.side] + (0.03 if finding.side == "left" else 0.0)
    for row in range(finding.level + 1):
        half = (0.13, 0.15, 0.17)[finding.level] * rng.uniform(0.95, 1.1)
        x = sign * (0.50 + rng.uniform(-0.03, 0.03))
        y = base - 0.115 * row + rng.uniform(-0.015, 0.015)
        tilt = sign * rng.uniform(-0.30, -0.02)
        points = [(x + t * half, y + t * tilt * half - 0.012 * (1 - t * t)) for t in (-1.0, -0.5, 0.0, 0.5, 1.0)]
        lines.append((points, (0.026, 0.032, 0.038)[finding.level], 1.0))
    chest.opacity += 0.60 * canvas.strokes(lines, 0.006) * chest.lungs[finding.side].air


@paints("interstitial edema")
def soak_interstitium(chest: Chest, finding: Finding) -> None:
    """A net of fine lines over both lungs, haze around the hila, short septal lines at the bases."""
    canvas, rng, level = chest.canvas, chest.rng, finding.level
    net = np.maximum(1.0 - 2.2 * np.abs(canvas.texture(rng, 44)), 0.0)
    haze = canvas.blob(-0.30, 0.02, 0.20, 0.34) + canvas.blob(0.30, 0.0, 0.20, 0.34)
    air = chest.lungs["right"].air + chest.lungs["left"].air
    septal = []
    for _ in range((10, 18, 26)[level]):
        sign = rng.choice((-1, 1))
        x, y = sign * rng.uniform(0.60, 0.70), rng.uniform(-0.02, 0.40)
        septal.append((((x, y), (x - sign * 0.09, y + rng.uniform(-0.01, 0.01))), 0.012, 0.8))
    strength = (0.20, 0.27, 0.34)[level]
    chest.opacity += air * (strength * net + (0.10, 0.20, 0.34)[level] * haze + 0.30 * canvas.strokes(septal, 0.004))
    chest.vessels *= 1.25


@paints("pacemaker")
def implant_pacemaker(chest: Chest, finding: Finding) -> None:
    """A metal generator below the clavicle and two leads to the heart."""
    assert finding.side
    canvas, rng, sign = chest.canvas, chest.rng, SIGN[finding.side]
    x, y = sign * rng.uniform(0.50, 0.58), rng.uniform(-0.46, -0.36)
    can = _can(x, y, rng.uniform(0.095, 0.115), rng.uniform(0.075, 0.095))
    entry = (-0.10 + chest.shift, -0.30)
    inlet = [(x - sign * 0.06, y - 0.06), (x - sign * 0.16, -0.56), (sign * 0.2, -0.60), (-0.04, -0.52), entry]
    atrium = [entry, (-0.12, 0.0), (-0.11, 0.10), (-0.05, 0.06)]
    ventricle = [entry, (-0.11, 0.05), (-0.06, 0.24), (0.08, 0.32), (0.22, 0.31)]
    wires = canvas.strokes([(inlet, 0.014, 0.8), (atrium, 0.014, 0.8), (ventricle, 0.014, 0.8)], 0.003)
    chest.over += 0.45 * wires + canvas.filled([(can, 0.72)], 0.006)


def _can(x: float, y: float, width: float, height: float) -> list[tuple[float, float]]:
    """A rounded box (superellipse) as a polygon."""
    angle = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    cos, sin = np.cos(angle), np.sin(angle)
    xs = x + width * np.sign(cos) * np.abs(cos) ** 0.6
    ys = y + height * np.sign(sin) * np.abs(sin) ** 0.6
    return list(zip(xs.tolist(), ys.tolist(), strict=True))
