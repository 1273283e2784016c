"""Charts of HTML and CSS: text keeps its size on a narrow screen, and dark, light and print take the page's colours.

A chart is rows of name, track and figure; what lies on a track is placed by shares of its width. Only the line chart
has an SVG, without text, which is stretched.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import ceil, floor, log10


def waterfall(stages: Sequence[tuple[str, float]], unit: str = "ms") -> str:
    """Stages one after the other: each bar begins where the one above ends. `stages`: (name, length)."""
    total = sum(length for _, length in stages) or 1.0
    rows, start = [], 0.0
    for name, length in stages:
        rows.append(_row(name, _bar(start / total, length / total), f"{short(length)} {unit}"))
        start += length
    return _chart("Stages of a report", [*rows, _axis(0.0, total, unit)])


def bars(rows: Sequence[tuple[str, float]], unit: str, title: str) -> str:
    """Labelled bars from zero."""
    most = max((value for _, value in rows), default=1.0) or 1.0
    return _chart(title, [_row(name, _bar(0.0, value / most), f"{short(value)} {unit}") for name, value in rows])


def strip(clusters: Sequence[Sequence[float]], marks: Sequence[tuple[str, float]], unit: str) -> str:
    """Every sample as a dot, a row for each process; `marks` are lines across with a name above."""
    values = [value for cluster in clusters for value in cluster]
    low, high = _range([*values, *(value for _, value in marks)])

    def across(value: float) -> float:
        return (value - low) / (high - low)

    lines = "".join(_at("mark", across(value)) for _, value in marks)
    # Neighbours stand one above the other, where they would overlap.
    names = "".join(
        f'<b class="{"high" if place % 2 else "low"}" style="left:{_percent(across(value))}">{escape(name)}</b>'
        for place, (name, value) in enumerate(marks)
    )
    rows = [f'<div class="row names"><span></span><span class="track">{names}</span><span></span></div>']
    for number, cluster in enumerate(clusters, start=1):
        dots = "".join(_at("dot", across(value)) for value in cluster)
        rows.append(_row(f"process {number}", lines + dots, ""))
    return _chart("Every timed report", [*rows, _axis(low, high, unit)], "dense")


def line(points: Sequence[tuple[float, float | None, float, float | None]], unit: str, title: str) -> str:
    """A median with the band from the 10th to the 90th percentile: (x, p10, p50, p90); no band where these are None."""
    most = max((value for _, _, middle, high in points for value in (middle, high) if value is not None), default=1.0)
    most = most or 1.0
    first, last = points[0][0], max(points[-1][0], points[0][0] + 1)

    def place(x: float, y: float) -> str:
        return f"{(x - first) / (last - first) * 100:.2f},{(1 - y / most) * 100:.2f}"

    upper = [place(x, high) for x, _, _, high in points if high is not None]
    lower = [place(x, low) for x, low, _, _ in reversed(points) if low is not None]
    middles = " ".join(place(x, middle) for x, _, middle, _ in points)
    lines = "".join(
        f'<i class="grid" style="top:{_percent(1 - tick / most)}"></i><b style="top:{_percent(1 - tick / most)}">'
        f"{short(tick)}</b>"
        for tick in _ticks(0.0, most)
    )
    band = f'<polygon class="band" points="{" ".join([*upper, *lower])}"/>' if upper else ""
    drawn = f'<svg viewBox="0 0 100 100" preserveAspectRatio="none">{band}<polyline class="line" points="{middles}"/>'
    area = f'<div class="area">{lines}{drawn}</svg></div>'
    ticks = "".join(
        f'<b style="left:{_percent((tick - first) / (last - first))}">{short(tick)}</b>' for tick in _ticks(first, last)
    )
    below = f'<div class="below">{ticks}</div><p class="soft">pass of the decoder ({unit} up)</p>'
    return _chart(title, [area, below], "lines")


def against_floor(rows: Sequence[tuple[str, float, float]], unit: str) -> str:
    """(name, measured, floor): how many times the floor, on a logarithmic scale that begins at the floor.

    A time below the floor is drawn at it: a floor cannot be undercut, so that its own rates are doubtful.
    """
    last = log10(max(10.0, *(measured / low for _, measured, low in rows)) * 1.2)
    drawn = []
    for name, measured, limit in rows:
        times = max(1.0, measured / limit)
        title = f"{name}: {short(measured)} {unit}, floor {short(limit)} {unit}"
        figure = f"{short(times)} x" if measured >= limit else "see note"
        drawn.append(_row(name, _bar(0.0, log10(times) / last), figure, title))
    ticks = [(0.0, "floor"), *((power / last, f"{10**power} x") for power in range(1, floor(last) + 1))]
    return _chart("Times the hardware's floor", [*drawn, _labels(ticks)])


def forest(rows: Sequence[tuple[str, float, float, float, float, str]]) -> str:
    """(name, ratio, low, high, noise, verdict): B / A with its interval, the noise as a band around 1."""
    low, high = _range([value for _, ratio, least, most, *_ in rows for value in (ratio, least, most)] + [0.97, 1.03])

    def across(value: float) -> float:
        return (min(max(value, low), high) - low) / (high - low)

    drawn = []
    for name, ratio, least, most, noise, verdict in rows:
        kind = {"worse": " worse", "better": " better"}.get(verdict, "")
        parts = [
            _span("band", across(1 / (1 + noise)), across(1 + noise)),
            _at("mark", across(1.0)),
            _span(f"whisker{kind}", across(least), across(most)),
            _at(f"dot{kind}", across(ratio)),
        ]
        drawn.append(_row(name, "".join(parts), f"{ratio:.3f}"))
    return _chart("B divided by A", [*drawn, _axis(low, high, "")], "dense")


def short(value: float) -> str:
    """Three significant digits, no exponent."""
    if value == 0:
        return "0"
    digits = max(0, 2 - floor(log10(abs(value))))
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _chart(title: str, parts: Sequence[str], kind: str = "") -> str:
    return f'<div class="chart {kind}" role="img" aria-label="{escape(title)}">{"".join(parts)}</div>'


def _row(name: str, track: str, figure: str, title: str = "") -> str:
    hint = f' title="{escape(title)}"' if title else ""
    cells = f'<span>{escape(name)}</span><span class="track">{track}</span><span>{escape(figure)}</span>'
    return f'<div class="row"{hint}>{cells}</div>'


def _percent(share: float) -> str:
    return f"{share * 100:.2f}%"


def _bar(start: float, length: float) -> str:
    return _span("bar", start, start + length)


def _span(kind: str, start: float, end: float) -> str:
    return f'<i class="{kind}" style="left:{_percent(start)};width:{_percent(end - start)}"></i>'


def _at(kind: str, place: float) -> str:
    return f'<i class="{kind}" style="left:{_percent(place)}"></i>'


def _axis(low: float, high: float, unit: str) -> str:
    return _labels([((tick - low) / (high - low), short(tick)) for tick in _ticks(low, high)], unit)


def _labels(ticks: Sequence[tuple[float, str]], unit: str = "") -> str:
    shown = "".join(f'<b style="left:{_percent(place)}">{escape(text)}</b>' for place, text in ticks)
    return f'<div class="row axis"><span></span><span class="track">{shown}</span><span>{escape(unit)}</span></div>'


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The values' range with a little room around it."""
    low, high = min(values), max(values)
    room = (high - low) * 0.04 or abs(high) * 0.05 or 1.0
    return low - room, high + room


def _ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Round numbers between two bounds."""
    raw = (high - low) / most
    size = 10.0 ** floor(log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw)
    return [number * step for number in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]
