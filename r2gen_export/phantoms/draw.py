"""A study's pictures from its findings: `draw_study`."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from r2gen_export.phantoms.canvas import Array, Canvas, Film
from r2gen_export.phantoms.findings import Finding
from r2gen_export.phantoms.frontal import Chest
from r2gen_export.phantoms.frontal_findings import PAINTS, SHAPES
from r2gen_export.phantoms.lateral import draw_lateral

LETTERS = {
    "L": [[(0.0, 0.0), (0.0, 1.0), (0.6, 1.0)]],
    "R": [[(0.0, 1.0), (0.0, 0.0), (0.5, 0.05), (0.55, 0.3), (0.45, 0.5), (0.0, 0.52)], [(0.25, 0.52), (0.6, 1.0)]],
}
"""The side markers, as strokes in a unit box."""


def draw_study(
    findings: Iterable[Finding], rng: np.random.Generator, size: int = 256, views: int = 1
) -> list[np.ndarray]:
    """Draw one study.

    Args:
        findings: what is to be seen; empty for a normal chest.
        rng: pose, build, exposure and texture come from it.
        size: side of the square picture in pixels.
        views: 1 (frontal) or 2 (frontal and lateral).

    Returns:
        One uint8 [size, size] grey picture per view, frontal first.
    """
    findings = tuple(findings)
    pictures = [_draw_frontal(findings, Canvas.pose(size, rng), rng)]
    if views > 1:
        pictures.append(draw_lateral(findings, Canvas.pose(size, rng), rng))
    return [Film.sample(rng).develop(picture, size, rng) for picture in pictures]


def _draw_frontal(findings: tuple[Finding, ...], canvas: Canvas, rng: np.random.Generator) -> Array:
    chest = Chest.sample(canvas, rng)
    for finding in findings:
        if finding.name in SHAPES:
            SHAPES[finding.name](chest, finding)
    chest.lay_out()
    for finding in findings:
        if finding.name in PAINTS:
            PAINTS[finding.name](chest, finding)
    if rng.random() < 0.6:
        _mark_side(chest)
    return chest.render().astype(np.float32)


def _mark_side(chest: Chest) -> None:
    letter = "R" if chest.rng.random() < 0.5 else "L"
    x = (-0.90 if letter == "R" else 0.84) + chest.rng.uniform(-0.02, 0.02)
    y = chest.rng.uniform(-0.88, -0.70)
    strokes = [([(x + 0.1 * px, y + 0.1 * py) for px, py in stroke], 0.018, 0.9) for stroke in LETTERS[letter]]
    chest.over += chest.canvas.strokes(strokes, 0.0)
