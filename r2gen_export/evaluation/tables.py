"""Tables of an evaluation's results: `table.md`, and `table.tex` with rows as papers print them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

Results = Mapping[str, Any]

WORDS: Final = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR-1.5", "ROUGE-L", "CIDEr")
"""Metrics in the order of the papers' tables."""

LABELS: Final = tuple(
    f"{part}-{kind}"
    for kind in ("macro-14-u1", "micro-14-u1", "micro-5-u1", "example-14-u1")
    for part in ("P", "R", "F1")
)
SYSTEMS: Final = {
    "model": "this system",
    "constant": "one report for every study",
    "random": "a random training report",
}
SUBSETS: Final = {
    "novel": "references that do not stand verbatim in the training split",
    "positive": "references that name a finding",
}
MISSING: Final = "–"


def row_of(results: Results, system: str, subset: str, protocol: str) -> dict[str, dict[str, Any]]:
    """The rows of a system's scores by metric."""
    where = {"system": system, "subset": subset, "protocol": protocol}
    return {row["metric"]: row for row in results["scores"] if all(row[key] == value for key, value in where.items())}


def figure(row: Mapping[str, Any] | None, *, interval: bool = True) -> str:
    """`0.159 [0.149, 0.170]`."""
    if row is None:
        return MISSING
    text = f"{row['value']:.3f}"
    return f"{text} [{row['low']:.3f}, {row['high']:.3f}]" if interval and row["low"] is not None else text


def systems(results: Results) -> list[str]:
    """Systems that were scored, this one first."""
    present = {row["system"] for row in results["scores"]}
    return [name for name in SYSTEMS if name in present]


def word_rows(results: Results, protocol: str, subset: str = "all") -> list[list[str]]:
    """A line a system: its name, then the metrics of words with intervals."""
    rows = []
    for name in systems(results):
        scores = row_of(results, name, subset, protocol)
        rows.append([SYSTEMS[name], *(figure(scores.get(metric)) for metric in WORDS)])
    return rows


def label_rows(results: Results) -> list[list[str]]:
    """A line a metric of labels: its name, then every system's."""
    scores = [row_of(results, name, "all", results["labeller"]) for name in systems(results)]
    return [[metric, *(figure(part.get(metric)) for part in scores)] for metric in LABELS]


def finding_rows(results: Results, convention: str = "u1") -> list[list[str]]:
    """A line a finding: how many references and reports name it, precision, recall, F1 of this system."""
    rows = []
    for row in results["labels"]:
        if row["system"] == "model" and row["convention"] == convention:
            numbers = [MISSING if row[key] is None else f"{row[key]:.3f}" for key in ("precision", "recall", "f1")]
            rows.append([row["finding"], str(row["support"]), str(row["said"]), *numbers])
    return rows


FINDING_HEAD: Final = ("finding", "references", "reports", "precision", "recall", "F1")


def variety_rows(results: Results) -> list[list[str]]:
    """A line a set of reports: how many differ, the share of the commonest, of those naming a finding, lengths."""
    rows = []
    names = {**SYSTEMS, "references": "references"}
    for name, facts in results["reports"].items():
        lengths = " / ".join(f"{length:.0f}" for length in facts["words"])
        shares = [f"{facts[key]:.1%}" for key in ("commonest", "naming_a_finding")]
        rows.append([names[name], f"{facts['distinct']} of {facts['studies']}", *shares, lengths, str(facts["empty"])])
    return rows


VARIETY_HEAD: Final = ("reports of", "distinct", "commonest", "naming a finding", "words (p10 / p50 / p90)", "empty")


PUBLISHED_HEAD: Final = ("", *WORDS, "CE-P", "CE-R", "CE-F1", "source")
"""CE: CheXpert labels as each paper computed them, mostly macro averages over 14."""


def published_table(results: Results) -> list[list[str]]:
    """A line a published system: its metrics and where they were read."""
    return [
        [
            f"{row['model']}, {row['data']}",
            *(f"{row['metrics'][name]:.3f}" if name in row["metrics"] else MISSING for name in PUBLISHED_HEAD[1:-1]),
            row["remark"],
        ]
        for row in results["published"]
    ]


def other_rows(results: Results) -> list[list[str]]:
    """A line a metric of a scorer in another environment."""
    names = {about["name"] for about in results["scorers"]}
    return [[row["metric"], figure(row)] for row in results["scores"] if row["metric"].partition(":")[0] in names]


def breakdown_rows(results: Results, by: str) -> list[list[str]]:
    """A line a part of the studies: its size, BLEU-4, ROUGE-L, CIDEr."""
    parts: dict[str, dict[str, Any]] = {}
    for row in results.get("breakdown", []):
        if row["by"] == by:
            parts.setdefault(row["part"], {})[row["metric"]] = row
    return [
        [part, str(next(iter(scores.values()))["studies"]), *(figure(scores.get(metric)) for metric in PARTS)]
        for part, scores in parts.items()
    ]


PARTS: Final = ("BLEU-4", "ROUGE-L", "CIDEr")
BREAKDOWN_NOTE: Final = (
    "Without interval: fewer than 30 units. CIDEr keeps the word frequencies of the whole set. Lengths are divided at "
    "their deciles; equal ones stay together."
)


def breakdown_groups(results: Results) -> list[str]:
    """What the studies are divided by."""
    return list(dict.fromkeys(row["by"] for row in results.get("breakdown", [])))


def facts_lines(results: Results) -> list[str]:
    """What was evaluated, as sentences."""
    data, protocol = results["data"], results["protocols"][results["protocol"]]
    lines = [f"{data['studies']} studies" + (f" of split {data['split']}" if data.get("split") else "") + "."]
    if data["patients"]:
        lines.append(f"{data['patients']} patients, who are the unit of the intervals.")
    lines.append(f"Protocol {results['protocol']}: {protocol['description']}.")
    if protocol["references_cut"]:
        lines.append(f"{protocol['share_cut']:.1%} of the references were cut ({protocol['references_cut']}).")
    for key, text in (
        ("without_reference", "studies of the set have no reference and are left out"),
        ("without_report", "studies have no report"),
        ("empty_reports", "reports are empty and count as such"),
    ):
        if data[key]:
            lines.append(f"{data[key]} {text}.")
    plan = results["bootstrap"]
    lines.append(
        f"Intervals: 95 %, {plan['replicates']} bootstrap resamples of the {plan['units']} units ({plan['unit']}), "
        f"seed {plan['seed']}."
    )
    return lines


def subset_note(results: Results, subset: str) -> str:
    """What a subset is, and what of its numbers cannot be compared."""
    size = results["data"]["subsets"][subset]
    return (
        f"{size} of {results['data']['studies']} studies: {SUBSETS[subset]}. CIDEr keeps the word frequencies of the "
        "whole set."
    )


def to_markdown(results: Results) -> str:
    """`table.md`."""
    main = results["protocol"]
    parts = ["# Evaluation", f"> {results['notice']}", " ".join(facts_lines(results))]
    parts += [f"**Warning:** {warning}." for warning in results["warnings"]]
    parts += [f"## Words, protocol {main}", markdown_table(("", *WORDS), word_rows(results, main))]
    for name in results["protocols"]:
        if name != main:
            description = results["protocols"][name]["description"]
            parts += [
                f"## Words, protocol {name}",
                f"{description}.",
                markdown_table(("", *WORDS), word_rows(results, name)),
            ]
    for subset in results["data"]["subsets"]:
        if results["data"]["subsets"][subset]:
            parts += [f"## Subset {subset}, protocol {main}", subset_note(results, subset)]
            parts.append(markdown_table(("", *WORDS), word_rows(results, main, subset)))
    for by in breakdown_groups(results):
        table = markdown_table((by, "studies", *PARTS), breakdown_rows(results, by))
        parts += [f"## By {by}, protocol {main}", BREAKDOWN_NOTE, table]
    names = [SYSTEMS[name] for name in systems(results)]
    parts += [f"## Findings, labelled by {results['labeller']}", markdown_table(("", *names), label_rows(results))]
    parts += ["### Each finding (uncertain counted as positive)", markdown_table(FINDING_HEAD, finding_rows(results))]
    parts += ["## Reports", markdown_table(VARIETY_HEAD, variety_rows(results))]
    if results["scorers"]:
        parts += ["## Other scorers, texts as they are", markdown_table(("metric", "value"), other_rows(results))]
    if results["published"]:
        note = "Published numbers follow protocol r2gengpt or r2gen of their own releases; compare with care."
        parts += ["## Published", note, markdown_table(PUBLISHED_HEAD, published_table(results))]
    if results["not_computed"]:
        lines = [f"- {item['what']}: {item['why']}" for item in results["not_computed"]]
        parts += ["## Not computed", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def to_latex(results: Results) -> str:
    """`table.tex`: a row a system, with macro precision, recall and F1 of the labels behind the metrics of words."""
    macro = [f"{part}-macro-14-u1" for part in ("P", "R", "F1")]
    lines = [
        f"% protocol: {results['protocol']} ({_escape(results['protocols'][results['protocol']]['description'])})",
        f"% P, R, F1: macro over 14 findings by {results['labeller']}, uncertain counted as positive",
        f"% {results['data']['studies']} studies; data {results['data']['studies_sha256'][:12]}",
        "\\begin{tabular}{l" + "c" * (len(WORDS) + 3) + "}",
        "\\hline",
        " & ".join(["System", *map(_escape, WORDS), "P", "R", "F1"]) + " \\\\",
        "\\hline",
    ]
    for name in systems(results):
        words = row_of(results, name, "all", results["protocol"])
        labels = row_of(results, name, "all", results["labeller"])
        cells = [figure(words.get(metric), interval=False) for metric in WORDS]
        cells += [figure(labels.get(metric), interval=False) for metric in macro]
        lines.append(" & ".join([SYSTEMS[name], *(cell.replace(MISSING, "--") for cell in cells)]) + " \\\\")
    return "\n".join([*lines, "\\hline", "\\end{tabular}"]) + "\n"


def _escape(text: str) -> str:
    for sign in "&%$#_{}":
        text = text.replace(sign, "\\" + sign)
    return text
