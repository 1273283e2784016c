"""The normal frontal chest: geometry, air, bone, vessels. Findings change it through `Chest`."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from r2gen_export.phantoms.canvas import Array, Canvas, ramp, smooth_curve
from r2gen_export.phantoms.findings import Side

SIDES: tuple[Side, Side] = ("right", "left")
SIGN: dict[Side, int] = {"right": -1, "left": 1}
"""The patient's left is on the image's right."""
ZONE_Y = {"upper": -0.36, "mid": -0.04, "lower": 0.26}


@dataclass
class Lung:
    """One lung: `air` [n, n] in 0..1 (what lets the rays through) and the curves it is bounded by."""

    air: Array
    outer: Array  # [n, 1]: |x| of the chest wall in every row
    top: Array  # [1, n]: y of the apex in every column
    floor: Array  # [1, n]: y of the diaphragm in every column


@dataclass
class Chest:
    """A frontal chest being drawn.

    Findings first set `heart` and `lift` (before anything is drawn), then change `lungs[side].air`, scale `vessels`
    and add to `opacity`; `over` is added last, on top of everything (metal).

    Attributes:
        canvas: the pixel grid.
        heart: cardiothoracic ratio.
        lift: how far each hemidiaphragm stands above its usual height, per side.
        shift: displacement of the mediastinum towards the image's right.
    """

    canvas: Canvas
    rng: np.random.Generator
    heart: float
    lift: dict[Side, float] = field(default_factory=lambda: {"right": 0.0, "left": 0.0})
    shift: float = 0.0
    lungs: dict[Side, Lung] = field(default_factory=dict)
    vessels: Array = field(default_factory=lambda: np.zeros(0, np.float32))
    opacity: Array = field(default_factory=lambda: np.zeros(0, np.float32))
    over: Array = field(default_factory=lambda: np.zeros(0, np.float32))

    @classmethod
    def sample(cls, canvas: Canvas, rng: np.random.Generator) -> Chest:
        """A normal chest of random proportions, before its geometry is fixed."""
        return cls(canvas, rng, heart=rng.uniform(0.41, 0.48))

    def lay_out(self) -> None:
        """Fix the geometry: the lungs, the vessels and empty layers for the findings."""
        inspiration = self.rng.uniform(-0.05, 0.05)
        for side in SIDES:
            self.lungs[side] = self._lung(side, inspiration)
        self.vessels = self._vessel_tree()
        self.opacity = self.canvas.zeros()
        self.over = self.canvas.zeros()

    def _lung(self, side: Side, inspiration: float) -> Lung:
        x, y = np.abs(self.canvas.x), self.canvas.y
        width = self.rng.uniform(0.97, 1.03)
        outer = width * smooth_curve(
            y, (-0.80, -0.66, -0.50, -0.28, 0.0, 0.35, 0.70), (0.30, 0.45, 0.56, 0.65, 0.71, 0.75, 0.74)
        )
        top = np.float32(-0.76) + np.float32(1.5) * (x - np.float32(0.29)) ** 2
        dome = (0.33 if side == "right" else 0.38) + inspiration - self.lift[side]
        reach = np.float32(1.0 + self.lift[side])
        floor = dome + reach * smooth_curve(x, (0.0, 0.2, 0.36, 0.5, 0.62, 0.76), (0.08, 0.025, 0.0, 0.04, 0.12, 0.27))
        own = ramp(np.float32(SIGN[side]) * self.canvas.x, 0.02)
        air = ramp(outer - x, 0.025) * ramp(y - top, 0.03) * ramp(floor - y, 0.025) * own
        return Lung(air, outer, top, floor)

    def _vessel_tree(self) -> Array:
        """Branching strokes from both hila, thinning to the periphery, [n, n]."""
        rng, lines = self.rng, []
        for side in SIDES:
            sign = SIGN[side]
            for angle in np.linspace(-1.25, 1.35, 9) + rng.uniform(-0.1, 0.1, 9):
                point = np.array((sign * 0.15, 0.0 if sign < 0 else -0.05))
                width, bright, length = 0.022, 0.62, rng.uniform(0.14, 0.2)
                for _ in range(4):
                    angle += rng.uniform(-0.3, 0.3)  # noqa: PLW2901
                    end = point + length * np.array((sign * np.cos(angle), np.sin(angle)))
                    fork = point + length * np.array((sign * np.cos(angle + 0.5), np.sin(angle + 0.5)))
                    lines.append(((tuple(point), tuple(end)), width, bright))
                    lines.append(((tuple(point), tuple(fork)), width * 0.6, bright * 0.7))
                    point, width, bright, length = end, width * 0.72, bright * 0.74, length * 0.9
        tree = self.canvas.strokes(lines, 0.007)
        for side in SIDES:
            tree += 0.30 * self.canvas.blob(SIGN[side] * 0.15, -0.02 if side == "right" else -0.06, 0.06, 0.11)
        return tree

    def render(self) -> Array:
        """Everything together, float32 [n, n]."""
        canvas = self.canvas
        air = self.lungs["right"].air + self.lungs["left"].air
        mediastinum = self._mediastinum()
        air = air * (1 - mediastinum)
        body = self._body()
        bone = self._bones()
        picture = 0.66 + 0.10 * mediastinum + 0.06 * ramp(canvas.y - 0.3, 0.8)
        picture = picture - air * (0.50 - 0.42 * self.vessels)
        picture = picture + bone * (0.55 + 0.45 * air)
        picture = picture + 0.03 * canvas.texture(self.rng, 9) + self._breasts() * air
        picture = picture + self.opacity * (1.0 - 0.55 * picture)
        return picture * body + 0.02 + self.over

    def _body(self) -> Array:
        x, y = np.abs(self.canvas.x), self.canvas.y
        shoulder = np.float32(-0.98) + np.float32(0.30) * x**2 + 0.14 * ramp(x - 0.3, 0.25)
        flank = smooth_curve(y, (-1.2, -0.6, -0.2, 0.4, 1.2), (1.3, 1.15, 0.97, 0.89, 0.90))
        return ramp(y - shoulder, 0.05) * (0.25 + 0.75 * ramp(flank - x, 0.12)) * ramp(1.12 - x, 0.2)

    def _mediastinum(self) -> Array:
        """The silhouette of heart, great vessels and spine: one left and one right border per row."""
        y = self.canvas.y
        chest = 1.48
        width = self.heart * chest
        right = -(0.33 * width) + self.shift
        left = 0.67 * width + self.shift
        knob = self.rng.uniform(0.15, 0.19)
        border_left = smooth_curve(
            y,
            (-0.9, -0.5, -0.40, -0.30, -0.20, -0.08, 0.08, 0.24, 0.36, 0.50, 0.9),
            (0.11, 0.105, 0.13, knob, 0.135, 0.15, 0.15 + 0.55 * (left - 0.15), 0.13 + 0.9 * (left - 0.13), left,
             0.92 * left, 0.7 * left),
        )  # fmt: skip
        border_right = smooth_curve(
            y,
            (-0.9, -0.5, -0.25, -0.08, 0.05, 0.2, 0.34, 0.55, 0.9),
            (-0.12, -0.11, -0.115, -0.12, 0.6 * right - 0.05, right, right, 0.85 * right, 0.7 * right),
        )
        return ramp(border_left - self.canvas.x, 0.035) * ramp(self.canvas.x - border_right, 0.035)

    def _bones(self) -> Array:
        x, y, rng = np.abs(self.canvas.x), self.canvas.y, self.rng
        inside = np.maximum(ramp(0.80 - x, 0.04), 0) * ramp(y + 0.86, 0.1)
        spacing, start = rng.uniform(0.135, 0.15), rng.uniform(0.0, 1.0)
        # Back ribs run from the spine up and out, then down; front ribs run down and in. One periodic field draws all.
        back = (y - 0.30 * (x - 0.33) ** 2 + 0.5 * np.maximum(x - 0.5, 0) ** 2 * -4.0) / spacing + start
        front = (y - 0.42 * np.maximum(0.8 - x, 0) ** 1.3) / (spacing * 1.12) + start * 0.7
        bone = 0.115 * _bars(back, 0.24) * inside * ramp(x - 0.08, 0.04) * ramp(0.62 - y, 0.3)
        bone += 0.07 * _bars(front, 0.27) * inside * ramp(x - 0.33, 0.12) * ramp(0.35 - y, 0.3)
        collar = -0.60 + rng.uniform(-0.04, 0.04) - 0.17 * x + 0.035 * np.sin(7.0 * x)
        shaft = 1 - np.abs(y - collar) / 0.034
        bone += 0.16 * ramp(shaft, 1.2) * ramp(x - 0.07, 0.04) * ramp(0.78 - x, 0.06)
        discs = 0.75 + 0.25 * np.cos((y + rng.uniform(0, 0.1)) * np.float32(2 * np.pi / 0.125))
        bone += 0.10 * ramp(0.085 - x, 0.03) * discs
        windpipe = ramp(0.045 - x, 0.025) * ramp(-0.22 - y, 0.1)
        return (bone - 0.13 * windpipe).astype(np.float32)

    def _breasts(self) -> Array:
        if self.rng.random() < 0.5:
            return self.canvas.zeros()
        size, sag = self.rng.uniform(0.22, 0.30), self.rng.uniform(0.15, 0.3)
        right = self.canvas.ellipse(-0.42, sag, size, size, 0.16)
        return 0.07 * (right + self.canvas.ellipse(0.42, sag, size, size, 0.16))


def _bars(phase: Array, half: float) -> Array:
    """A soft bar around every integer of `phase`, brighter along its edges as cortical bone is."""
    offset = np.abs(phase - np.rint(phase))
    solid = ramp(half - offset, 0.12)
    return solid * (0.72 + 0.28 * np.clip(offset * np.float32(1 / half), 0, 1) ** 2)
