"""Plots as inline SVG: text in the page's colours, classes instead of colours, so that dark, light and print agree."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import ceil, floor, log10
from typing import Final

WIDTH: Final = 560
LEFT: Final = 118
"""Room for the labels of rows."""

RIGHT: Final = 78
"""Room for figures behind bars."""

ROW: Final = 26


def waterfall(stages: Sequence[tuple[str, float]], unit: str = "ms") -> str:
    """Stages one after the other: each bar begins where the one above ends. `stages`: (name, length)."""
    total = sum(length for _, length in stages) or 1.0
    scale = (WIDTH - LEFT - RIGHT) / total
    parts, start = [], 0.0
    for row, (name, length) in enumerate(stages):
        x, y = LEFT + start * scale, row * ROW + 4
        parts.append(_text(LEFT - 8, y + 13, name, "end"))
        parts.append(
            f'<rect class="bar" x="{x:.1f}" y="{y}" width="{max(1.0, length * scale):.1f}" height="17" rx="2"/>'
        )
        parts.append(_text(x + max(1.0, length * scale) + 5, y + 13, f"{short(length)} {unit}"))
        start += length
    height = len(stages) * ROW + 4
    return _svg(height + 24, "Stages of a report", [*parts, _axis(height, 0.0, total, unit)])


def bars(rows: Sequence[tuple[str, float]], unit: str, title: str) -> str:
    """Labelled bars from zero."""
    most = max((value for _, value in rows), default=1.0) or 1.0
    left = min(WIDTH / 2, max(LEFT, 7 * max((len(name) for name, _ in rows), default=0)))  # 7: of a letter
    scale = (WIDTH - left - RIGHT) / most
    parts = []
    for row, (name, value) in enumerate(rows):
        y = row * ROW + 4
        parts.append(_text(left - 8, y + 13, name, "end"))
        parts.append(
            f'<rect class="bar" x="{left:.1f}" y="{y}" width="{max(1.0, value * scale):.1f}" height="17" rx="2"/>'
        )
        parts.append(_text(left + max(1.0, value * scale) + 5, y + 13, f"{short(value)} {unit}"))
    return _svg(len(rows) * ROW + 6, title, parts)


def strip(clusters: Sequence[Sequence[float]], marks: Sequence[tuple[str, float]], unit: str) -> str:
    """Every sample as a dot, a row for each process; `marks` are lines across with a name above."""
    values = [value for cluster in clusters for value in cluster]
    low, high = _range([*values, *(value for _, value in marks)])
    top, height = 34, 34 + len(clusters) * 16 + 6
    parts = []
    level = {name: place % 2 for place, (name, _) in enumerate(marks)}
    for name, value in marks:
        x = _x(value, low, high)
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{15 + level[name] * 13}" y2="{height}"/>')
        parts.append(_text(x, 11 + level[name] * 13, name, "middle"))
    for row, cluster in enumerate(clusters):
        y = top + row * 16 + 8
        parts.append(_text(LEFT - 8, y + 4, f"process {row + 1}", "end"))
        dots = "".join(f'<circle cx="{_x(value, low, high):.1f}" cy="{y}" r="3.2"/>' for value in cluster)
        parts.append(f'<g class="dot">{dots}</g>')
    return _svg(height + 24, "Every timed report", [*parts, _axis(height, low, high, unit)])


def line(points: Sequence[tuple[float, float, float, float]], unit: str, title: str) -> str:
    """A median with the band from the 10th to the 90th percentile: (x, p10, p50, p90)."""
    top, height, left = 12, 190, 56
    right = WIDTH - 14
    most = max((high for *_, high in points), default=1.0) or 1.0
    first, last = points[0][0], max(points[-1][0], points[0][0] + 1)

    def place(x: float, y: float) -> str:
        across = left + (x - first) / (last - first) * (right - left)
        return f"{across:.1f},{height - y / most * (height - top):.1f}"

    parts = []
    for tick in _ticks(0.0, most):
        y = height - tick / most * (height - top)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(left - 6, y + 4, short(tick), "end"))
    band = [place(x, high) for x, _, _, high in points] + [place(x, low) for x, low, _, _ in reversed(points)]
    parts.append(f'<polygon class="band" points="{" ".join(band)}"/>')
    parts.append(f'<polyline class="line" points="{" ".join(place(x, middle) for x, _, middle, _ in points)}"/>')
    for tick in _ticks(first, last):
        across = left + (tick - first) / (last - first) * (right - left)
        parts.append(_text(across, height + 16, short(tick), "middle"))
    parts.append(_text((left + right) / 2, height + 33, f"pass of the decoder ({unit} up)", "middle"))
    return _svg(height + 40, title, parts)


def against_floor(rows: Sequence[tuple[str, float, float]], unit: str) -> str:
    """(name, measured, floor): how many times the floor, on a logarithmic scale that begins below 1."""
    times = [measured / low for _, measured, low in rows]
    low, high = min(0.5, *times), max(10.0, *times) * 1.2
    first, last = log10(low), log10(high)

    def across(value: float) -> float:
        return LEFT + (log10(value) - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    height = len(rows) * ROW + 8
    parts = []
    for row, ((name, measured, limit), ratio) in enumerate(zip(rows, times, strict=True)):
        y, left, right = row * ROW + 4, min(across(1.0), across(ratio)), max(across(1.0), across(ratio))
        parts.append(_text(LEFT - 8, y + 13, name, "end"))
        parts.append(
            f'<rect class="bar" x="{left:.1f}" y="{y}" width="{max(1.0, right - left):.1f}" height="17" rx="2"/>'
        )
        parts.append(_text(right + 5, y + 13, f"{short(ratio)} x"))
        parts.append(f"<title>{escape(name)}: {short(measured)} {unit}, floor {short(limit)} {unit}</title>")
    one = across(1.0)
    parts.append(f'<line class="mark" x1="{one:.1f}" x2="{one:.1f}" y1="0" y2="{height}"/>')
    parts.append(_text(one, height + 16, "floor", "middle"))
    for power in range(1, floor(last) + 1):
        parts.append(_text(across(10.0**power), height + 16, f"{10**power} x", "middle"))
    return _svg(height + 24, "Times the hardware's floor", parts)


def forest(rows: Sequence[tuple[str, float, float, float, float, str]]) -> str:
    """(name, ratio, low, high, noise, verdict): B / A with its interval, the noise as a band around 1."""
    shown = [value for _, ratio, low, high, *_ in rows for value in (ratio, low, high)]
    low, high = _range([*shown, 0.97, 1.03])
    height = len(rows) * 22 + 8
    parts = []
    for row, (name, ratio, least, most, noise, verdict) in enumerate(rows):
        y = row * 22 + 14
        kind = {"worse": " worse", "better": " better"}.get(verdict, "")
        band = [_x(min(max(value, low), high), low, high) for value in (1 / (1 + noise), 1 + noise)]
        parts.append(f'<rect class="band" x="{band[0]:.1f}" y="{y - 9}" width="{band[1] - band[0]:.1f}" height="18"/>')
        parts.append(_text(LEFT - 8, y + 4, name, "end"))
        ends = [_x(value, low, high) for value in (least, most)]
        parts.append(f'<line class="whisker{kind}" x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="{y}" y2="{y}"/>')
        parts.append(f'<g class="dot{kind}"><circle cx="{_x(ratio, low, high):.1f}" cy="{y}" r="4"/></g>')
        parts.append(_text(WIDTH - RIGHT + 8, y + 4, f"{ratio:.3f}"))
    one = _x(1.0, low, high)
    parts.append(f'<line class="mark" x1="{one:.1f}" x2="{one:.1f}" y1="0" y2="{height}"/>')
    return _svg(height + 24, "B divided by A", [*parts, _axis(height, low, high, "")])


def short(value: float) -> str:
    """Three significant digits, no exponent."""
    if value == 0:
        return "0"
    digits = max(0, 2 - floor(log10(abs(value))))
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _svg(height: float, title: str, parts: Sequence[str]) -> str:
    head = f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
    return head + "".join(parts) + "</svg>"


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _axis(y: float, low: float, high: float, unit: str) -> str:
    right = WIDTH - RIGHT
    parts = [f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{y}" y2="{y}"/>']
    for tick in _ticks(low, high):
        x = _x(tick, low, high)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{y}" y2="{y + 4}"/>')
        parts.append(_text(x, y + 17, short(tick), "middle"))
    return "".join(parts) + _text(right + 8, y + 17, unit)


def _x(value: float, low: float, high: float) -> float:
    return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The values' range with a little room around it."""
    low, high = min(values), max(values)
    room = (high - low) * 0.04 or abs(high) * 0.05 or 1.0
    return low - room, high + room


def _ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers between two bounds."""
    raw = (high - low) / most
    size = 10.0 ** floor(log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw)
    return [number * step for number in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]
