"""`report.html`: one page without scripts and without network, for a screen in the dark or the light, and for paper."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any, Final

from benchmarks.latency import figures, plots, sentences
from benchmarks.latency.compare import was_busy
from benchmarks.latency.markdown import GLANCE_HEAD, definition_rows, glance, peer_rows
from benchmarks.latency.page_style import CSS
from benchmarks.latency.peers import COLUMNS, conditions
from benchmarks.latency.statistics import PERCENTILES, TOO_SMALL

NARROW: Final = 5
"""Columns that fit onto the screen of a phone."""


def to_html(report: dict[str, Any]) -> str:
    """The whole page."""
    name = f"Latency of {report['bundle']['model_id']}"
    where = report["environment"]
    body = [
        f"<h1>{escape(name)}</h1>",
        f'<p class="soft">r2gen {escape(where["r2gen"])}, bundle {escape(report["bundle"]["id"])}, measured '
        f"{escape(report['created'])} on {escape(where['cpu'])}, {where['cores']} cores.</p>",
        f"<p>{escape(sentences.model_text(report))}</p>",
        f'<p class="notice">{escape(report["notice"])}</p>',
        _answers(report),
        _warnings(report),
        _glance(report),
        _words(),
    ]
    if report["reference"]:
        body.append(_reference(report))
    if report["comparison"]:
        body.append(_comparison(report["comparison"]))
    body += [_configuration(one) for one in report["configurations"]]
    if report["peers"]:
        text = f"Measured by <code>benchmarks.peers</code>: {escape(conditions(report['peers']))}."
        body.append(f"<h2>Other engines</h2><p>{text}</p>{_table(list(COLUMNS.values()), peer_rows(report['peers']))}")
    body += [
        "<h2>Conditions</h2>",
        _table(["what", "value"], figures.environment_rows(report), "text"),
        '<h2 id="definitions">Definitions</h2>',
        _table(["metric", "unit", "formula"], definition_rows(), "text"),
        _table(["method", ""], [[key, value] for key, value in report["method"].items()], "text"),
        _files(report),
    ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{escape(name)}</title><style>{CSS}</style>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{"".join(body)}</body></html>\n'


def _answers(report: dict[str, Any]) -> str:
    """For each configuration of the bundle the sentences to repeat, and why not to where that is so."""
    parts = []
    for one in report["configurations"]:
        if one["engine"] != "r2gen" or not (text := sentences.headline(one)):
            continue
        name = f"<b>{escape(one['name'])}</b>: " if len(report["configurations"]) > 1 else ""
        doubts = " ".join(map(escape, sentences.caveats(report, one)))
        parts.append(f"<p>{name}{escape(text)}</p>{f'<p class=soft>{doubts}</p>' if doubts else ''}")
    return f'<div class="answer">{"".join(parts)}</div>' if parts else ""


def _words() -> str:
    listed = "; ".join(f"<b>{escape(word)}</b>: {escape(meaning)}" for word, meaning in sentences.WORDS)
    return f'<p class="soft">{listed}. <a href="#definitions">All definitions</a>.</p>'


def _warnings(report: dict[str, Any]) -> str:
    found = figures.warnings(report)
    lines = [f"<li><b>{escape(names)}</b>: {escape(warning)}</li>" for names, warning in found]
    if not lines:
        return '<p class="soft">The run was steady: no drift, no outliers, no foreign load, no throttling was seen.</p>'
    busy = any(was_busy(one, report["environment"]["cores"]) for one in report["configurations"])
    head = "Measured under load: do not use these times." if busy else "Not steady. Read these numbers with care:"
    return f'<div class="warn"><b>{head}</b><ul>{"".join(lines)}</ul></div>'


def _glance(report: dict[str, Any]) -> str:
    """Cards for the only configuration, a table and a plot for several."""
    rows = glance(report)
    if len(rows) == 1:
        cards = [
            f'<div class="card"><span class="soft">{title}</span><b>{escape(value)} {unit}</b></div>'
            for title, unit, value in zip(
                ("end to end", "time to first token", "per output token", "reports per second", "peak memory"),
                ("ms", "ms", "ms", "", "MB"),
                rows[0][1:],
                strict=True,
            )
        ]
        label = f'<p class="soft">{escape(rows[0][0])}: medians of the timed reports.</p>'
        return f'<div class="cards">{"".join(cards)}</div>{label}'
    medians = [(one["name"], one["metrics"]["total"]["p50"]) for one in report["configurations"]]
    plot = plots.bars(medians, "ms", "End to end by configuration")
    caption = "Medians of the timed reports; the bars are end to end"
    return f"<h2>At a glance</h2>{_figure(caption, plot, _table(GLANCE_HEAD, rows))}"


def _configuration(one: dict[str, Any]) -> str:
    decoding = figures.decoding_text(one)
    parts = [
        f"<h2>Configuration: {escape(one['name'])}</h2>",
        f'<p class="soft">Runs on {escape(one["provider"])}, {one["threads"]} threads. {escape(decoding)}.</p>',
        _stages(one),
        _distribution(one),
        _tokens(one),
        _roofline(one),
        _memory(one),
        "<h3>All metrics</h3>",
        _table(figures.METRIC_HEAD, figures.metric_rows(one)),
        f'<p class="soft">{escape(sentences.ITL)}</p>',
    ]
    parts += [f'<p class="soft">{escape(line)}.</p>' for line in figures.unavailable_lines(one)]
    return "".join(parts)


def _stages(one: dict[str, Any]) -> str:
    stages = figures.stage_medians(one)
    total = sum(value for _, value in stages) or 1.0
    rows = [[name, figures.number(value), f"{value / total:.0%}"] for name, value in stages]
    caption = "Where the time goes: the median of each stage"
    table = _table(["stage", "p50 ms", "share"], rows)
    return _figure(caption, plots.waterfall(stages), table, sentences.sums_text(one, stages))


def _distribution(one: dict[str, Any]) -> str:
    found = one["metrics"]["total"]
    note = (
        "Too few reports for the other figures: an interval of the median takes "
        f"{PERCENTILES['p50'][2]}, p90 takes {PERCENTILES['p90'][1]}, p95 {PERCENTILES['p95'][1]} and p99 "
        f"{PERCENTILES['p99'][1]} of them."
    )
    marks = [(key, found[key]) for key in ("p50", "p90", "p95", "p99") if found[key] != TOO_SMALL]
    rows = []
    for key in ("p50", "p90", "p95", "p99"):
        bounds = found["ci95"].get(key)
        interval = f"{figures.number(bounds[0])} to {figures.number(bounds[1])}" if bounds else "–"
        rows.append([key, figures.number(found[key]), interval])
    rows += [["min", figures.number(found["min"]), "–"], ["max", figures.number(found["max"]), "–"]]
    rows.append(["reports", str(found["n"]), "–"])
    caption = "End to end: every timed report, by the process it ran in"
    plot = plots.strip(one["samples"]["total"], marks, "ms")
    few = any(found[key] == TOO_SMALL for key in PERCENTILES) or "p50" not in found["ci95"]
    return _figure(caption, plot, _table(["", "ms", "95 % interval"], rows), note if few else "")


def _tokens(one: dict[str, Any]) -> str:
    points = one["per_token"]
    if len(points) < 2:
        return ""
    least = PERCENTILES["p90"][1]
    shown = [(*(point[key] if point["n"] >= least else None for key in ("p10", "p90")), point) for point in points]
    plot = plots.line([(p["position"], low, p["p50"], high) for low, high, p in shown], "ms", "Time of each pass")
    places = sorted({0, len(points) - 1, *(round(part * (len(points) - 1) / 6) for part in range(7))})
    rows = [
        [f"{point['position']:.0f}", *map(figures.number, (point["n"], low, point["p50"], high))]
        for low, high, point in (shown[place] for place in places)
    ]
    caption = "Time of each pass of the decoder, by its place in the report (median, band from p10 to p90)"
    note = "A wide band on a busy machine is mostly other programs' time."
    return _figure(caption, plot, _table(["pass", "n", "p10 ms", "p50 ms", "p90 ms"], rows), note)


def _roofline(one: dict[str, Any]) -> str:
    found = one["roofline"]
    notes = "".join(f'<p class="soft">{escape(note)}</p>' for note in figures.roofline_notes(one))
    if "reason" in found:
        return notes
    stages = [stage for stage in ("encode", "prefill", "decode") if "measured_ms" in found[stage]]
    rows = [(stage, found[stage]["measured_ms"], found[stage]["floor_ms"]) for stage in stages]
    caption = "How many times the floor each stage takes"
    table = _table(figures.ROOFLINE_HEAD, figures.roofline_rows(one))
    rates = _table(figures.RATE_HEAD, figures.rate_rows(one))
    figure = _figure(caption, plots.against_floor(rows, "ms"), rates, sentences.floor_text(one))
    return f"{figure}{table}{notes}"


def _memory(one: dict[str, Any]) -> str:
    rows = [(name.replace("_", " "), value) for name, value in one["memory_mb"].items()]
    if gpu := one["metrics"].get("gpu_memory"):
        rows.append(("GPU", gpu["p50"]))
    cells = [[name, figures.number(value)] for name, value in rows]
    caption = "Peak resident memory by the end of each step of life"
    return _figure(caption, plots.bars(rows, "MB", "Peak memory"), _table(["by the end of", "MB"], cells))


def _reference(report: dict[str, Any]) -> str:
    table = _table(figures.REFERENCE_HEAD, figures.reference_rows(report))
    note = "Factors are PyTorch's figure divided by r2gen's."
    lines = [
        f'<p class="notice">{f"<b>{escape(text)}</b>" if quotable else escape(text)}</p>'
        for text, quotable in sentences.reference_lines(report)
    ]
    return f'<h2>PyTorch beside it</h2>{"".join(lines)}{table}<p class="soft">{note}</p>'


def _comparison(found: dict[str, Any]) -> str:
    parts = ["<h2>Against the baseline</h2>"]
    parts += [f'<p class="soft">{escape(note)}</p>' for note in figures.compare_notes(found)]
    for one in found["configurations"]:
        rows = [(m["title"], m["ratio"], m["ci95"][0], m["ci95"][1], m["noise"], m["verdict"]) for m in one["metrics"]]
        judged = [row for row, metric in zip(rows, one["metrics"], strict=True) if metric["judged"]]
        caption = (
            f"{one['name']}: B divided by A, 95 % interval; the band is the noise. {figures.words_text(one['words'])}"
        )
        verdicts = [[row[0], f"{row[1]:.3f}", row[5]] for row in judged]
        parts.append(_figure(caption, plots.forest(judged), _table(["metric", "B / A", "verdict"], verdicts)))
        parts.append(_table(figures.COMPARE_HEAD, figures.compare_rows(one)))
    return "".join(parts)


def _files(report: dict[str, Any]) -> str:
    rows = [[name, f"{entry['size']:,}", entry["sha256"]] for name, entry in report["bundle"]["files"].items()]
    return f"<h3>Files of the bundle</h3>{_table(['file', 'bytes', 'SHA-256'], rows, 'text')}"


def _figure(caption: str, plot: str, table: str, note: str = "") -> str:
    text = f'<p class="soft">{escape(note)}</p>' if note else ""
    return f"<figure><figcaption><b>{escape(caption)}</b>{text}</figcaption>{plot}{table}</figure>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """On a narrow screen a row is a block of its own, where each cell repeats its column's title."""
    heads = [escape(cell) for cell in head]
    first = "".join(f"<th>{title}</th>" for title in heads)
    lines = []
    for row in rows:
        cells = [f'<td data-head="{title}">{escape(cell)}</td>' for title, cell in zip(heads, row, strict=True)]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    classes = kind or ("wide" if len(head) > NARROW else "")
    body = f"<thead><tr>{first}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="scroll"><table class="{classes}">{body}</table></div>'
