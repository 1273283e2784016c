"""Learning curves of a run as a picture, `curves.svg`, drawn from the CSV logs of all its starts."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

import lightning.pytorch as pl
from lightning.pytorch.loggers import CSVLogger

from r2gen_export.system.files import atomic_file

CURVES: Final = "curves.svg"

PANELS: Final = (
    ("Loss, nats per token", ("loss", "val_loss")),
    ("Scores of validation reports", ("val_bleu1", "val_bleu4", "val_rouge_l", "val_label_f1")),
    ("CIDEr and the score that selects", ("val_cider", "val_score")),
    ("Learning rate", ("lr-AdamW",)),
)
"""Title and columns of each plot; one without values is left out."""

COLOURS: Final = ("#1f6feb", "#c2410c", "#15803d", "#7c3aed")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 230, 80, 150, 34, 34
MOST_POINTS: Final = 600

Curve = list[tuple[int, float]]


def read_curves(logs: Path) -> dict[str, Curve]:
    """Finite values by column and step from every `version_N/metrics.csv`; of a step logged twice, the later start's.

    Steps after which an earlier start was taken up again are those of the later one.
    """
    curves: dict[str, dict[int, float]] = {}
    versions = sorted(logs.glob("version_*/metrics.csv"), key=lambda path: int(path.parent.name.partition("_")[2]))
    for path in versions:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if (row.get("step") or "").isdecimal()]
        if not rows:
            continue
        first = min(int(row["step"]) for row in rows)
        for points in curves.values():
            for step in [step for step in points if step >= first]:
                del points[step]
        for row in rows:
            for name, text in row.items():
                if name not in ("step", "epoch") and text and math.isfinite(value := float(text)):
                    curves.setdefault(name, {})[int(row["step"])] = value
    return {name: sorted(points.items()) for name, points in curves.items() if points}


def draw_curves(curves: Mapping[str, Curve]) -> str:
    """An SVG of `PANELS`, the steps from left to right."""
    shown = [(title, [name for name in names if name in curves]) for title, names in PANELS]
    shown = [(title, names) for title, names in shown if names]
    last = max((points[-1][0] for points in curves.values()), default=0) or 1
    parts = [
        f'<g transform="translate(0 {at * HEIGHT})">{_panel(title, {name: curves[name] for name in names}, last)}</g>'
        for at, (title, names) in enumerate(shown)
    ]
    height = max(1, len(shown)) * HEIGHT
    style = "text{font:12px sans-serif;fill:#1a1d21}.soft{fill:#59616b}line{stroke:#d8dde3}polyline{fill:none}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">'
        f'<style>{style}</style><rect width="{WIDTH}" height="{height}" fill="#ffffff"/>{"".join(parts)}</svg>\n'
    )


def _panel(title: str, curves: Mapping[str, Curve], last: int) -> str:
    values = [value for points in curves.values() for _, value in points]
    low, high = min(0.0, *values), max(values)
    high = high if high > low else low + 1.0
    across, up = (WIDTH - LEFT - RIGHT) / last, (HEIGHT - TOP - BOTTOM) / (high - low)
    parts = [f'<text x="{LEFT}" y="20" font-weight="bold">{escape(title)}</text>']
    for share in (0.0, 0.5, 1.0):
        value = low + share * (high - low)
        y = HEIGHT - BOTTOM - (value - low) * up
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="soft" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for step, anchor in ((0, "start"), (last, "end")):
        x = LEFT + step * across
        parts.append(f'<text class="soft" x="{x:.1f}" y="{HEIGHT - 16}" text-anchor="{anchor}">step {step:,}</text>')
    for at, (name, points) in enumerate(curves.items()):
        places = [(LEFT + step * across, HEIGHT - BOTTOM - (value - low) * up) for step, value in _thinned(points)]
        colour = COLOURS[at % len(COLOURS)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{line}" stroke="{colour}" stroke-width="1.5"/>')
        if len(places) <= 60:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in places]
        text = f"{name} {points[-1][1]:.3g}"
        y = TOP + 10 + 18 * at
        parts.append(f'<text x="{WIDTH - RIGHT + 12}" y="{y}" style="fill:{colour}">{escape(text)}</text>')
    return "".join(parts)


def _thinned(points: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    """At most `MOST_POINTS` and the last: means of neighbours, at the step in their middle."""
    size = math.ceil(len(points) / MOST_POINTS)
    if size <= 1:
        return points
    blocks = [points[at : at + size] for at in range(0, len(points), size)]
    return [(block[len(block) // 2][0], sum(value for _, value in block) / len(block)) for block in blocks]


class Curves(pl.Callback):
    """Writes the picture anew at the end of each epoch.

    Args:
        out: the run's folder.
        logs: the folder of its CSV logs.
    """

    def __init__(self, out: Path, logs: Path) -> None:
        self._out, self._logs = out, logs

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Raises `R2G-OUTPUT-WRITE`."""
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                logger.save()  # it writes every 100 steps by itself
        with atomic_file(self._out / CURVES) as file:
            file.write_text(draw_curves(read_curves(self._logs)), encoding="utf-8")
