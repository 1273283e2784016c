"""The style sheet of `report.html`."""

from __future__ import annotations

from typing import Final

CSS: Final = """
:root { color-scheme: light dark; --ground: #ffffff; --panel: #f6f7f9; --ink: #1a1d21; --soft: #59616b; --rule: #d8dde3;
  --accent: #1f6feb; --band: #1f6feb33; --worse: #c02626; --better: #1a7f37; --warn: #fff4d6; --warn-rule: #b7791f; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171b; --panel: #1c2127; --ink: #e6e9ed; --soft: #a3acb7;
  --rule: #363d46; --accent: #6ea8fe; --band: #6ea8fe3d; --worse: #ff8080; --better: #5fd07a; --warn: #3a2f14;
  --warn-rule: #d9a441; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 1.2rem; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .3rem; } h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem;
  border-bottom: 1px solid var(--rule); padding-bottom: .2rem; } h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p { margin: .4rem 0; } a { color: inherit; } .soft { color: var(--soft); }
.notice, .warn, .answer { border-left: 4px solid var(--rule); background: var(--panel); padding: .5rem .8rem;
  margin: .8rem 0; }
.warn { border-color: var(--warn-rule); background: var(--warn); } .warn ul { margin: .2rem 0; padding-left: 1.2rem; }
.answer { border-color: var(--accent); font-size: 1.1rem; } .answer .soft { font-size: .95rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .7rem; margin: .8rem 0; }
.card { background: var(--panel); border: 1px solid var(--rule); border-radius: 6px; padding: .6rem .8rem; }
.card b { display: block; font-size: 1.45rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
figure { margin: .6rem 0 1.4rem; display: grid; grid-template-columns: minmax(0, 1.25fr) minmax(0, 1fr);
  gap: .8rem 1.4rem; align-items: start; } figcaption { grid-column: 1 / -1; } figcaption p { max-width: 60rem; }
.scroll { overflow-x: auto; }
.chart { font-size: .85rem; line-height: 1.2; font-variant-numeric: tabular-nums; max-width: 620px; }
.row { display: grid; grid-template-columns: 7rem minmax(0, 1fr) 4.8rem; column-gap: .6rem; align-items: center; }
.row span:first-child { text-align: right; } .row span:last-child { white-space: nowrap; }
.track { position: relative; height: 1.7rem; } .dense .track { height: 1.15rem; } .names .track { height: 2.1rem; }
.chart b { white-space: nowrap; overflow-wrap: normal; }
.track i { position: absolute; } .track b { position: absolute; transform: translateX(-50%); font-weight: 400; }
.bar { background: var(--accent); border-radius: 2px; min-width: 2px; top: .25rem; bottom: .25rem; }
.dot { background: var(--accent); opacity: .75; border-radius: 50%; width: 8px; height: 8px; margin: -4px 0 0 -4px;
  top: 50%; }
.mark { border-left: 1px dashed var(--soft); top: 0; bottom: 0; } .names .high { top: 0; } .names .low { bottom: 0; }
.whisker { background: var(--accent); height: 2px; margin-top: -1px; top: 50%; }
i.band { background: var(--band); top: 0; bottom: 0; }
.dot.worse, .whisker.worse { background: var(--worse); } .dot.better, .whisker.better { background: var(--better); }
.bar, .dot, .whisker, i.band { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
.axis .track { border-top: 1px solid var(--soft); height: 1.4rem; } .axis b { top: .15rem; color: var(--soft); }
.axis span:last-child { color: var(--soft); }
.area { position: relative; height: 200px; margin-left: 3.2rem; }
.area svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }
.area i { position: absolute; left: 0; right: 0; border-top: 1px solid var(--rule); }
.area b { position: absolute; right: 100%; margin-right: .4rem; transform: translateY(-50%); font-weight: 400;
  color: var(--soft); }
.below { position: relative; height: 1.5rem; margin-left: 3.2rem; } .lines p { text-align: center; margin: 0; }
.below b { position: absolute; top: .3rem; transform: translateX(-50%); font-weight: 400; color: var(--soft); }
polygon.band { fill: var(--band); }
.line { fill: none; stroke: var(--accent); stroke-width: 2; vector-effect: non-scaling-stroke; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { text-align: right; padding: .22rem .5rem; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { color: var(--soft); font-weight: 600; overflow-wrap: normal; }
th:first-child, td:first-child, table.text th, table.text td { text-align: left; }
td, table.text td:first-child { white-space: nowrap; }
table.text td { overflow-wrap: anywhere; white-space: normal; }
@media (max-width: 900px) { figure { grid-template-columns: minmax(0, 1fr); } body { padding: .8rem; } }
@media screen and (max-width: 640px) {
  .row { grid-template-columns: 5.6rem minmax(0, 1fr) 4.4rem; column-gap: .4rem; }
  table.wide, table.wide tbody { display: block; } table.wide thead { display: none; }
  table.wide tr { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); column-gap: 1rem;
    border-bottom: 1px solid var(--rule); padding: .4rem 0; }
  table.wide td { border: 0; padding: .05rem 0; white-space: normal; text-align: right; }
  table.wide td::before { content: attr(data-head); color: var(--soft); float: left; margin-right: .5rem; }
  table.wide td:first-child { grid-column: 1 / -1; text-align: left; font-weight: 600; }
  table.wide td:first-child::before { content: none; }
  table.text tr, table.text tbody, table.text { display: block; } table.text thead { display: none; }
  table.text td { display: block; border: 0; padding: .05rem 0; } table.text tr { padding: .35rem 0;
    border-bottom: 1px solid var(--rule); } table.text td:first-child { font-weight: 600; white-space: normal; }
}
@media print { :root { color-scheme: light; --ground: #ffffff; --panel: #ffffff; --ink: #000000; --soft: #333333;
  --rule: #bbbbbb; --accent: #1f4f9e; --band: #1f4f9e33; --worse: #a01818; --better: #116329; --warn: #ffffff;
  --warn-rule: #000000; } body { font-size: 10pt; max-width: none; padding: 0; }
  figure, tr, .cards, .chart { break-inside: avoid; } h2, h3 { break-after: avoid; }
  figure { grid-template-columns: minmax(0, 1.25fr) minmax(0, 1fr); gap: 1rem; margin: .4rem 0 .8rem; }
  table { font-size: 7.5pt; } th, td { padding: .12rem .3rem; } .scroll { overflow: visible; } }
"""
