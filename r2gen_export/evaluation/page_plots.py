"""Plots of the evaluation's page as inline SVG, in the page's colours."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

WIDTH: Final = 560
LEFT: Final = 190
"""Room for the labels of rows."""

RIGHT: Final = 56
"""Room for figures."""

ROW: Final = 26


def bars(rows: Sequence[tuple[str, float]], title: str) -> str:
    """Labelled bars from 0 to 1."""
    scale = WIDTH - LEFT - RIGHT
    parts = []
    for number, (name, value) in enumerate(rows):
        y = number * ROW + 4
        parts.append(_text(LEFT - 8, y + 13, name, "end"))
        parts.append(f'<rect class="bar" x="{LEFT}" y="{y}" width="{max(1.0, value * scale):.1f}" height="17" rx="2"/>')
        parts.append(_text(LEFT + max(1.0, value * scale) + 5, y + 13, f"{value:.3f}"))
    return _svg(len(rows) * ROW + 6, title, parts)


def intervals(rows: Sequence[tuple[str, float, float | None, float | None]], title: str) -> str:
    """A point a row with its 95 % interval, on an axis from 0; the first row is this system's."""
    most = max(high if high is not None else value for _, value, _, high in rows) or 1.0
    scale = (WIDTH - LEFT - RIGHT) / most
    parts = []
    for number, (name, value, low, high) in enumerate(rows):
        y = number * ROW + 14
        kind = "" if number == 0 else " other"
        parts.append(_text(LEFT - 8, y + 4, name, "end"))
        if low is not None and high is not None:
            ends = f'x1="{LEFT + low * scale:.1f}" x2="{LEFT + high * scale:.1f}"'
            parts.append(f'<line class="whisker{kind}" {ends} y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="point{kind}" cx="{LEFT + value * scale:.1f}" cy="{y}" r="4"/>')
        parts.append(_text(WIDTH - RIGHT + 10, y + 4, f"{value:.3f}"))
    height = len(rows) * ROW + 4
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height}" y2="{height}"/>')
    parts.append(f'<text class="soft" x="{LEFT}" y="{height + 14}" text-anchor="middle">0</text>')
    parts.append(f'<text class="soft" x="{WIDTH - RIGHT}" y="{height + 14}" text-anchor="middle">{most:.3f}</text>')
    return _svg(height + 20, title, parts)


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(height: int, title: str, parts: Sequence[str]) -> str:
    body = "".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">{body}</svg>'
