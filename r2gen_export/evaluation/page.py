"""`report.html`: one page without scripts and without network. Report texts are patient data: only where asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

from r2gen_export.evaluation import tables
from r2gen_export.evaluation.page_plots import bars, intervals

Results = Mapping[str, Any]

WORST: Final = 20
"""Studies shown, those whose findings differ most."""

CSS: Final = """
:root { color-scheme: light dark; --ground: #ffffff; --panel: #f6f7f9; --ink: #1a1d21; --soft: #59616b; --rule: #d8dde3;
  --accent: #1f6feb; --other: #8a939e; --warn: #fff4d6; --warn-rule: #b7791f; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171b; --panel: #1c2127; --ink: #e6e9ed; --soft: #a3acb7;
  --rule: #363d46; --accent: #6ea8fe; --other: #7b8490; --warn: #3a2f14; --warn-rule: #d9a441; } }
@media print { :root { color-scheme: light; --ground: #ffffff; --panel: #ffffff; --ink: #000000; --soft: #333333;
  --rule: #bbbbbb; --accent: #1f4f9e; --other: #777777; --warn: #ffffff; --warn-rule: #000000; }
  body { font-size: 10pt; max-width: none; padding: 0; } figure, tr { break-inside: avoid; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 1.2rem; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; } h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem;
  border-bottom: 1px solid var(--rule); padding-bottom: .2rem; } h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p { margin: .4rem 0; } .soft { color: var(--soft); }
.notice, .warn { border-left: 4px solid var(--rule); background: var(--panel); padding: .5rem .8rem; margin: .8rem 0; }
.warn { border-color: var(--warn-rule); background: var(--warn); }
figure { margin: .8rem 0 1.4rem; } .plot, .scroll { overflow-x: auto; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(460px, 1fr)); gap: 1.4rem; }
@media (max-width: 560px) { .pair { grid-template-columns: minmax(0, 1fr); } }
svg { display: block; width: 100%; min-width: 440px; max-width: 720px; height: auto; }
svg text { fill: var(--ink); font-size: 12px; } svg .soft { fill: var(--soft); }
.bar { fill: var(--accent); } .bar.other { fill: var(--other); } .axis { stroke: var(--rule); }
.whisker { stroke: var(--accent); stroke-width: 2; } .whisker.other { stroke: var(--other); }
.point { fill: var(--accent); } .point.other { fill: var(--other); }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { text-align: right; padding: .22rem .5rem; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { color: var(--soft); font-weight: 600; } th, td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } td .soft { font-size: .92em; }
.pair table { font-size: .8rem; } .pair th, .pair td { padding: .22rem .3rem; }
table.text th, table.text td { text-align: left; } table.text td { white-space: normal; }
table.sourced td:first-child { white-space: normal; }
table.sourced td:last-child, table.sourced th:last-child { text-align: left; white-space: normal; min-width: 12em; }
"""


@dataclass(frozen=True)
class Texts:
    """Reports and references of every study, for `--show-texts`."""

    hypotheses: Sequence[str]
    references: Sequence[str]


def to_html(results: Results, texts: Texts | None = None) -> str:
    """The whole page; the texts of the worst studies only where `texts` is given."""
    main = results["protocol"]
    system = results["system"]
    name = f"Evaluation of {system['model_id']}" if system.get("model_id") else "Evaluation of reports"
    body = [
        f"<h1>{escape(name)}</h1>",
        f'<p class="soft">{escape(_system(system))}{escape(" ".join(tables.facts_lines(results)))}</p>',
        f'<p class="notice">{escape(results["notice"])}</p>',
        *(f'<p class="warn"><b>Read with care.</b> {escape(warning)}.</p>' for warning in results["warnings"]),
        f"<h2>Scores, protocol {escape(main)}</h2>",
        _words(results, main),
        _subsets(results),
        _breakdown(results),
        "<h2>Findings</h2>",
        _findings(results),
        "<h2>Reports</h2>",
        _variety(results),
        *_others(results),
        f"<h2>Studies whose findings differ most, {WORST} at most</h2>",
        _worst(results, texts),
        _not_computed(results),
    ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{escape(name)}</title><style>{CSS}</style>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{"".join(body)}</body></html>\n'


def _system(system: Mapping[str, Any]) -> str:
    if "bundle_id" not in system:
        return ""
    return f"Bundle {system['bundle_id']}, preset {system['preset']}, semantics {system['semantics']}. "


def _words(results: Results, main: str) -> str:
    plots = []
    for metric in tables.WORDS:
        rows = []
        for name in tables.systems(results):
            row = tables.row_of(results, name, "all", main).get(metric)
            if row is not None:
                rows.append((tables.SYSTEMS[name], row["value"], row["low"], row["high"]))
        if len(rows) > 1 and metric in ("BLEU-4", "METEOR-1.5", "ROUGE-L", "CIDEr"):
            plots.append(f"<figure><b>{metric}</b>{intervals(rows, metric)}</figure>")
    note = (
        '<p class="soft">One report for every study and a random report of the training split see no image. A score '
        "near theirs says nothing of the images.</p>"
    )
    table = _table(("", *tables.WORDS), tables.word_rows(results, main))
    return f'{table}{note}<div class="pair">{"".join(plots)}</div>'


def _subsets(results: Results) -> str:
    parts = []
    for subset, size in results["data"]["subsets"].items():
        if size:
            rows = tables.word_rows(results, results["protocol"], subset)
            note = f'<p class="soft">{escape(tables.subset_note(results, subset))}</p>'
            parts.append(f"<h3>Subset {escape(subset)}</h3>{note}{_table(('', *tables.WORDS), rows)}")
    others = [name for name in results["protocols"] if name != results["protocol"]]
    if others:
        parts.append("<h2>The same reports under other protocols</h2>")
    for name in others:
        part = results["protocols"][name]
        cut = f" {part['share_cut']:.1%} of the references were cut." if part["references_cut"] else ""
        note = f'<p class="soft">{escape(part["description"])}.{cut}</p>'
        parts.append(f"<h3>Protocol {name}</h3>{note}{_table(('', *tables.WORDS), tables.word_rows(results, name))}")
    return "".join(parts)


def _findings(results: Results) -> str:
    rows = [row for row in results["labels"] if row["system"] == "model" and row["convention"] == "u1"]
    plotted = [(f"{row['finding']} ({row['support']})", row["f1"]) for row in rows if row["support"]]
    note = (
        f'<p class="soft">Labelled by {escape(results["labeller"])}; an uncertain finding counts as positive (u1). '
        "Bars: F1, with the number of references that name the finding.</p>"
    )
    names = [tables.SYSTEMS[name] for name in tables.systems(results)]
    table = _table(tables.FINDING_HEAD, tables.finding_rows(results))
    plot = f'<div class="plot">{bars([(name, value or 0.0) for name, value in plotted], "F1 of each finding")}</div>'
    return f'{note}<div class="pair">{plot}{table}</div>{_table(("", *names), tables.label_rows(results))}'


def _variety(results: Results) -> str:
    note = '<p class="soft">Reports are compared by their words, in lower case.</p>'
    return _table(tables.VARIETY_HEAD, tables.variety_rows(results)) + note + _lengths_and_novelty(results)


def _lengths_and_novelty(results: Results) -> str:
    """Bars: how long reports and references are, and which share of each does not stand in the training split."""
    plots = []
    for name, title in (("model", "Words of this system's reports"), ("references", "Words of the references")):
        shares = list(results["reports"][name]["lengths"].items())
        plots.append(f"<figure><b>{title}, share of the studies</b>{bars(shares, title)}</figure>")
    names = {"model": tables.SYSTEMS["model"], "references": "references"}
    novelty = [(names[key], part) for key in names if (part := results["reports"][key]["novel"]) is not None]
    if novelty:
        title = "Share that does not stand verbatim in the training split"
        plots.append(f"<figure><b>{title}</b>{bars(novelty, title)}</figure>")
    return f'<div class="pair">{"".join(plots)}</div>'


def _breakdown(results: Results) -> str:
    parts = []
    for by in tables.breakdown_groups(results):
        table = _table((by, "studies", *tables.PARTS), tables.breakdown_rows(results, by))
        parts.append(f'<h3>By {escape(by)}</h3><p class="soft">{escape(tables.BREAKDOWN_NOTE)}</p>{table}')
    return "".join(parts)


def _others(results: Results) -> list[str]:
    parts = []
    if results["scorers"]:
        about = "; ".join(
            f"{item['name']}: " + ", ".join(f"{key} {value}" for key, value in item["about"].items())
            for item in results["scorers"]
        )
        parts += ["<h2>Other scorers</h2>", f'<p class="soft">{escape(about)}</p>']
        parts.append(_table(("metric", "value"), tables.other_rows(results)))
    if results["published"]:
        parts += [
            "<h2>Published numbers</h2>",
            _table(tables.PUBLISHED_HEAD, tables.published_table(results), "sourced"),
        ]
    return parts


def _worst(results: Results, texts: Texts | None) -> str:
    studies = [study for study in results["studies"] if study["label_disagreements"]]
    studies.sort(key=lambda study: (-study["label_disagreements"], study["study"]))
    if not studies:
        return "<p>The findings of every report agree with those of its reference.</p>"
    rows = []
    for study in studies[:WORST]:
        cells = [str(study["study"]), *_differences(study, results["findings"]), f"{study['rouge_l']:.3f}"]
        if texts is not None:
            cells += [texts.hypotheses[study["study"] - 1], texts.references[study["study"] - 1]]
        rows.append(cells)
    head = ["study", "only in the report", "only in the reference", "ROUGE-L"]
    head += ["report", "reference"] if texts is not None else []
    note = "" if texts is not None else '<p class="soft">Texts are patient data; --show-texts shows them here.</p>'
    return f"{note}{_table(head, rows, 'text')}"


def _differences(study: Mapping[str, Any], findings: Sequence[str]) -> tuple[str, str]:
    pairs = list(zip(findings, study["labels"], study["reference_labels"], strict=True))
    named = [(name, said in "up", there in "up") for name, said, there in pairs if name != "No Finding"]
    added = ", ".join(name for name, said, there in named if said and not there)
    missed = ", ".join(name for name, said, there in named if there and not said)
    return added or tables.MISSING, missed or tables.MISSING


def _not_computed(results: Results) -> str:
    if not results["not_computed"]:
        return ""
    lines = "".join(f"<li>{escape(item['what'])}: {escape(item['why'])}</li>" for item in results["not_computed"])
    return f"<h2>Not computed</h2><ul>{lines}</ul>"


def _cell(text: str) -> str:
    """An interval stands below its number, so that all metrics fit the width of the page."""
    number, bracket, interval = text.partition(" [")
    if not bracket or not interval.endswith("]") or not number.replace(".", "", 1).isdecimal():
        return escape(text)
    return f'{number}<br><span class="soft">[{interval}</span>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    first = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    rest = "".join(f"<tr>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>" for row in rows)
    classes = f' class="{kind}"' if kind else ""
    return f'<div class="scroll"><table{classes}><thead><tr>{first}</tr></thead><tbody>{rest}</tbody></table></div>'
