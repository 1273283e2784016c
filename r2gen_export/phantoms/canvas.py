"""Drawing tools the frontal and the lateral view share: soft edges, noise, strokes, the warp and the film.

Coordinates: x and y run from -1 to 1 over the picture, x to the image's right (the patient's left in a frontal view),
y downwards. Grids are separable (x [1, n], y [n, 1]) so that most shapes are one-dimensional curves; rotation comes
last, as one warp of the finished picture. Arrays are float32, brightness 0 (black) to 1 (white).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Array = np.ndarray
MARGIN = 1.12
"""The canvas is this much wider than the picture, so that a rotated picture has no empty corners."""


def ramp(distance: Array, width: float) -> Array:
    """0 to 1 across an edge at distance 0, `width` broad: the anti-aliased step every outline is made of."""
    return np.clip(distance * np.float32(1.0 / width) + np.float32(0.5), 0.0, 1.0)


def smooth_curve(at: Array, knots: Sequence[float], values: Sequence[float]) -> Array:
    """A curve through control points without corners (piecewise cubic with finite-difference slopes). Shape of `at`."""
    xs, ys = np.asarray(knots, np.float64), np.asarray(values, np.float64)
    slopes = np.gradient(ys, xs)
    where = np.clip(np.searchsorted(xs, at) - 1, 0, len(xs) - 2)
    step = xs[where + 1] - xs[where]
    t = np.clip((at - xs[where]) / step, 0.0, 1.0)
    a, b = ys[where], ys[where + 1]
    ma, mb = slopes[where] * step, slopes[where + 1] * step
    t2, t3 = t * t, t * t * t
    curve = (2 * t3 - 3 * t2 + 1) * a + (t3 - 2 * t2 + t) * ma + (3 * t2 - 2 * t3) * b + (t3 - t2) * mb
    return curve.astype(np.float32)


@dataclass
class Canvas:
    """One view's pixel grid.

    Attributes:
        n: pixels per side of the canvas (the picture's side times `MARGIN`).
        x, y: float32 [1, n] and [n, 1], body coordinates of the pixel centres.
        scale_x, scale_y: pixels per unit.
    """

    n: int
    x: Array
    y: Array
    scale_x: float
    scale_y: float

    @classmethod
    def pose(cls, size: int, rng: np.random.Generator) -> Canvas:
        """A canvas for a `size` pixel picture of a patient of some build, standing somewhat off centre."""
        n = round(size * MARGIN)
        zoom = rng.uniform(0.93, 1.07)
        build = rng.uniform(0.95, 1.05)
        shift_x, shift_y = rng.uniform(-0.05, 0.05, 2)
        line = (np.arange(n, dtype=np.float32) + 0.5 - n / 2) / np.float32(size / 2)
        x = (line - shift_x) / (zoom * build)
        y = (line - shift_y) / (zoom / build)
        half = size / 2 * zoom
        return cls(n, x[None, :].astype(np.float32), y[:, None].astype(np.float32), half * build, half / build)

    def zeros(self) -> Array:
        """An empty layer, float32 [n, n]."""
        return np.zeros((self.n, self.n), np.float32)

    def pixel(self, x: float, y: float) -> tuple[float, float]:
        """Body coordinates to canvas pixels (for strokes)."""
        return (x - float(self.x[0, 0])) * self.scale_x, (y - float(self.y[0, 0])) * self.scale_y

    def blob(self, x: float, y: float, rx: float, ry: float) -> Array:
        """A Gaussian of radii (rx, ry), separable, [n, n]."""
        across: Array = np.exp(-0.5 * ((self.x - x) / rx) ** 2)
        down: Array = np.exp(-0.5 * ((self.y - y) / ry) ** 2)
        return across * down

    def ellipse(self, x: float, y: float, rx: float, ry: float, soft: float = 0.03) -> Array:
        """A filled ellipse with an edge `soft` broad, [n, n]."""
        radius = np.sqrt(((self.x - x) / rx) ** 2 + ((self.y - y) / ry) ** 2)
        return ramp(1.0 - radius, soft / min(rx, ry))

    def texture(self, rng: np.random.Generator, cells: int) -> Array:
        """Band-limited noise of about unit variance with `cells` grains per side, [n, n]."""
        coarse = rng.standard_normal((cells + 3, cells + 3), dtype=np.float32)
        field = Image.fromarray(coarse).resize((self.n, self.n), Image.Resampling.BICUBIC)
        return np.asarray(field) * np.float32(1.3)

    def strokes(self, lines: Sequence[tuple[Sequence[tuple[float, float]], float, float]], blur: float) -> Array:
        """Polylines (points, width, brightness) in body coordinates, blurred by `blur` canvas units, [n, n]."""
        layer = Image.new("L", (self.n, self.n))
        pen = ImageDraw.Draw(layer)
        for points, width, brightness in lines:
            path = [self.pixel(x, y) for x, y in points]
            pen.line(
                path, fill=round(255 * min(brightness, 1.0)), width=max(1, round(width * self.scale_x)), joint="curve"
            )
        if blur > 0:
            layer = layer.filter(ImageFilter.GaussianBlur(blur * self.scale_x))
        return np.asarray(layer, np.float32) * np.float32(1 / 255)

    def filled(self, shapes: Sequence[tuple[Sequence[tuple[float, float]], float]], blur: float) -> Array:
        """Filled polygons (points, brightness) in body coordinates, blurred, [n, n]."""
        layer = Image.new("L", (self.n, self.n))
        pen = ImageDraw.Draw(layer)
        for points, brightness in shapes:
            pen.polygon([self.pixel(x, y) for x, y in points], fill=round(255 * min(brightness, 1.0)))
        layer = layer.filter(ImageFilter.GaussianBlur(blur * self.scale_x))
        return np.asarray(layer, np.float32) * np.float32(1 / 255)


@dataclass(frozen=True)
class Film:
    """How one exposure renders: drawn per image so that brightness itself says nothing about the findings."""

    gamma: float
    gain: float
    offset: float
    noise: float
    angle: float

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Film:
        """A random exposure."""
        return cls(
            gamma=rng.uniform(0.8, 1.25),
            gain=rng.uniform(0.88, 1.06),
            offset=rng.uniform(-0.03, 0.05),
            noise=rng.uniform(0.008, 0.022),
            angle=np.deg2rad(rng.uniform(-3.5, 3.5)),
        )

    def develop(self, picture: Array, size: int, rng: np.random.Generator) -> Array:
        """Rotate, crop to the picture, apply the tone curve and the grain. Returns uint8 [size, size]."""
        n = picture.shape[0]
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        centre, out = n / 2, size / 2
        matrix = (cos, sin, centre - out * (cos + sin), -sin, cos, centre - out * (cos - sin))
        turned = Image.fromarray(picture).transform(
            (size, size), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
        )
        film = np.clip(np.asarray(turned), 0.0, 1.0) ** np.float32(self.gamma)
        film = film * np.float32(self.gain) + np.float32(self.offset)
        # Quantum noise is strongest where few photons arrive, that is where the film is bright.
        grain = rng.standard_normal((size, size), dtype=np.float32) * (np.float32(self.noise) * (0.5 + film))
        return (np.clip(film + grain, 0.0, 1.0) * np.float32(255.0) + np.float32(0.5)).astype(np.uint8)
