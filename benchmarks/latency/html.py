"""`report.html`: one page without scripts and without network, for a screen in the dark or the light, and for paper."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any, Final

from benchmarks.latency import figures, plots
from benchmarks.latency.markdown import definition_rows, glance, peer_rows
from benchmarks.latency.peers import COLUMNS, conditions
from benchmarks.latency.statistics import TOO_SMALL

CSS: Final = """
:root { color-scheme: light dark; --ground: #ffffff; --panel: #f6f7f9; --ink: #1a1d21; --soft: #59616b; --rule: #d8dde3;
  --accent: #1f6feb; --band: #1f6feb33; --worse: #c02626; --better: #1a7f37; --warn: #fff4d6; --warn-rule: #b7791f; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171b; --panel: #1c2127; --ink: #e6e9ed; --soft: #a3acb7;
  --rule: #363d46; --accent: #6ea8fe; --band: #6ea8fe3d; --worse: #ff8080; --better: #5fd07a; --warn: #3a2f14;
  --warn-rule: #d9a441; } }
@media print { :root { color-scheme: light; --ground: #ffffff; --panel: #ffffff; --ink: #000000; --soft: #333333;
  --rule: #bbbbbb; --accent: #1f4f9e; --band: #1f4f9e33; --worse: #a01818; --better: #116329; --warn: #ffffff;
  --warn-rule: #000000; } body { font-size: 10pt; max-width: none; padding: 0; }
  figure, tr, .cards { break-inside: avoid; }
  h2, h3 { break-after: avoid; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 1.2rem; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .3rem; } h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem;
  border-bottom: 1px solid var(--rule); padding-bottom: .2rem; } h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p { margin: .4rem 0; } .soft { color: var(--soft); } .notice, .warn { border-left: 4px solid var(--rule);
  background: var(--panel); padding: .5rem .8rem; margin: .8rem 0; }
.warn { border-color: var(--warn-rule); background: var(--warn); } .warn ul { margin: .2rem 0; padding-left: 1.2rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .7rem; margin: .8rem 0; }
.card { background: var(--panel); border: 1px solid var(--rule); border-radius: 6px; padding: .6rem .8rem; }
.card b { display: block; font-size: 1.45rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
figure { margin: .6rem 0 1.4rem; display: grid; grid-template-columns: minmax(0, 1.25fr) minmax(0, 1fr); gap: 1.4rem;
  align-items: start; } figcaption { grid-column: 1 / -1; } .plot, .scroll { overflow-x: auto; }
@media (max-width: 900px) { figure { grid-template-columns: minmax(0, 1fr); } body { padding: .8rem; } }
svg { display: block; width: 100%; min-width: 440px; height: auto; } svg text { fill: var(--ink); font-size: 12px; }
.bar { fill: var(--accent); } .dot circle { fill: var(--accent); fill-opacity: .75; } .band { fill: var(--band); }
.line { fill: none; stroke: var(--accent); stroke-width: 2; } .axis { stroke: var(--soft); }
.grid { stroke: var(--rule); }
.mark { stroke: var(--soft); stroke-dasharray: 3 3; } .whisker { stroke: var(--accent); stroke-width: 2; }
.whisker.worse { stroke: var(--worse); } .dot.worse circle { fill: var(--worse); }
.whisker.better { stroke: var(--better); } .dot.better circle { fill: var(--better); }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { text-align: right; padding: .22rem .5rem; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
th:first-child, td:first-child, table.text th, table.text td { text-align: left; }
td, table.text td:first-child { white-space: nowrap; }
table.text td { overflow-wrap: anywhere; white-space: normal; }
@media print { figure { grid-template-columns: minmax(0, 1.25fr) minmax(0, 1fr); gap: 1rem; margin: .4rem 0 .8rem; }
  svg { min-width: 0; } table { font-size: 7.5pt; } th, td { padding: .12rem .3rem; }
  .plot, .scroll { overflow: visible; } }
"""


def to_html(report: dict[str, Any]) -> str:
    """The whole page."""
    name = f"Latency of {report['bundle']['model_id']}"
    body = [
        f"<h1>{escape(name)}</h1>",
        f'<p class="soft">Bundle {escape(report["bundle"]["id"])}, measured {escape(report["created"])} on '
        f"{escape(report['environment']['cpu'])}, {report['environment']['cores']} cores.</p>",
        f'<p class="notice">{escape(report["notice"])}</p>',
        _warnings(report),
        _glance(report),
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
        "<h2>Definitions</h2>",
        _table(["metric", "unit", "formula"], definition_rows(), "text"),
        _table(["method", ""], [[key, value] for key, value in report["method"].items()], "text"),
        _files(report),
    ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{escape(name)}</title><style>{CSS}</style>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{"".join(body)}</body></html>\n'


def _warnings(report: dict[str, Any]) -> str:
    found = figures.warnings(report)
    lines = [f"<li><b>{escape(names)}</b>: {escape(warning)}</li>" for names, warning in found]
    if not lines:
        return '<p class="soft">The run was steady: no drift, no outliers, no foreign load, no throttling was seen.</p>'
    return f'<div class="warn"><b>Not steady. Read these numbers with care:</b><ul>{"".join(lines)}</ul></div>'


def _glance(report: dict[str, Any]) -> str:
    """Cards for the only configuration, a table and a plot for several."""
    rows = glance(report)
    titles = ["end to end", "time to first token", "per output token", "reports per second", "peak memory"]
    units = ["ms", "ms", "ms", "", "MB"]
    if len(rows) == 1:
        cards = [
            f'<div class="card"><span class="soft">{title}</span><b>{escape(value)} {unit}</b></div>'
            for title, unit, value in zip(titles, units, rows[0][1:], strict=True)
        ]
        label = f'<p class="soft">{escape(rows[0][0])}: medians of the timed reports.</p>'
        return f'<div class="cards">{"".join(cards)}</div>{label}'
    medians = [(one["name"], one["metrics"]["total"]["p50"]) for one in report["configurations"]]
    head = ["configuration", "end to end ms", "TTFT ms", "TPOT ms", "reports/s", "peak MB"]
    plot = plots.bars(medians, "ms", "End to end by configuration")
    caption = "Medians of the timed reports; the bars are end to end"
    return f"<h2>At a glance</h2>{_figure(caption, plot, _table(head, rows))}"


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
    ]
    parts += [f'<p class="soft">{escape(line)}.</p>' for line in figures.unavailable_lines(one)]
    return "".join(parts)


def _stages(one: dict[str, Any]) -> str:
    stages = figures.stage_medians(one)
    total = sum(value for _, value in stages) or 1.0
    rows = [[name, figures.number(value), f"{value / total:.0%}"] for name, value in stages]
    caption = "Where the time goes: medians of each stage"
    return _figure(caption, plots.waterfall(stages), _table(["stage", "p50 ms", "share"], rows))


def _distribution(one: dict[str, Any]) -> str:
    found = one["metrics"]["total"]
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
    return _figure(caption, plot, _table(["", "ms", "95 % interval"], rows))


def _tokens(one: dict[str, Any]) -> str:
    points = one["per_token"]
    if len(points) < 2:
        return ""
    plot = plots.line([(p["position"], p["p10"], p["p50"], p["p90"]) for p in points], "ms", "Time of each pass")
    wanted = sorted({0, len(points) - 1, *(round(part * (len(points) - 1) / 6) for part in range(7))})
    rows = [
        [f"{points[at]['position']:.0f}", *(figures.number(points[at][key]) for key in ("n", "p10", "p50", "p90"))]
        for at in wanted
    ]
    caption = "Time of each pass of the decoder, by its place in the report (median, band from p10 to p90)"
    return _figure(caption, plot, _table(["pass", "n", "p10 ms", "p50 ms", "p90 ms"], rows))


def _roofline(one: dict[str, Any]) -> str:
    found = one["roofline"]
    notes = "".join(f'<p class="soft">{escape(note)}</p>' for note in figures.roofline_notes(one))
    if "reason" in found:
        return notes
    stages = [stage for stage in ("encode", "prefill", "decode") if "measured_ms" in found[stage]]
    rows = [(stage, found[stage]["measured_ms"], found[stage]["floor_ms"]) for stage in stages]
    caption = (
        "Distance from the hardware's limit: bytes and operations of the bundle over this machine's measured rates"
    )
    table = _table(figures.ROOFLINE_HEAD, figures.roofline_rows(one))
    figure = _figure(caption, plots.against_floor(rows, "ms"), _rates(found))
    return f"{figure}{table}{notes}"


def _rates(found: dict[str, Any]) -> str:
    rows = [
        [stage, figures.number(found[stage]["bandwidth_gb_s"]), figures.number(found[stage]["rate_gops"])]
        for stage in ("encode", "prefill", "decode")
    ]
    return _table(["stage", "read GB/s", "matrix Gop/s"], rows)


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
    text = escape(figures.reference_verdict(report))
    return f'<h2>PyTorch beside it</h2><p class="notice"><b>{text}</b></p>{table}<p class="soft">{note}</p>'


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


def _figure(caption: str, plot: str, table: str) -> str:
    return f'<figure><figcaption><b>{escape(caption)}</b></figcaption><div class="plot">{plot}</div>{table}</figure>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    first = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    rest = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    classes = f' class="{kind}"' if kind else ""
    return f'<div class="scroll"><table{classes}><thead><tr>{first}</tr></thead><tbody>{rest}</tbody></table></div>'
