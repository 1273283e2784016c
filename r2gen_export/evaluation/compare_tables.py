"""The comparison of two systems as text, for a terminal and for `comparison.md`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from r2gen_export.evaluation.gates import bound_text
from r2gen_export.evaluation.tables import MISSING, markdown_table

HEAD = ("metric", "A", "B", "B - A", "95 % interval", "p", "p (Holm)")


def metric_rows(comparison: Mapping[str, Any]) -> list[list[str]]:
    """A line a metric."""
    rows = []
    for row in comparison["metrics"]:
        interval = MISSING if row["low"] is None else f"{row['low']:+.4f} to {row['high']:+.4f}"
        p_values = [MISSING if row[key] is None else f"{row[key]:.4f}" for key in ("p", "p_holm")]
        values = [f"{row[key]:.4f}" for key in ("first", "second")]
        rows.append([row["metric"], *values, f"{row['difference']:+.4f}", interval, *p_values])
    return rows


def flip_rows(comparison: Mapping[str, Any]) -> list[list[str]]:
    """A line a finding that either side names."""
    return [
        [flip["finding"], *(str(flip[key]) for key in ("first", "second", "appeared", "vanished"))]
        for flip in comparison["flips"]
        if flip["first"] or flip["second"]
    ]


FLIP_HEAD = ("finding", "in A", "in B", "only in B", "only in A")


def facts(comparison: Mapping[str, Any]) -> list[str]:
    """Identical reports, first divergence, share of flips, gates, as sentences."""
    studies, identical = comparison["studies"], comparison["identical"]
    lines = [f"{identical} of {studies} reports are identical ({identical / studies:.1%})."]
    divergence = comparison["divergence"]
    if divergence is None:
        lines.append("Where reports diverge is not known: the results hold no texts.")
    elif divergence["reports"]:
        lines.append(
            f"The others diverge from {divergence['unit']} {divergence['first']} on at the earliest, in the median "
            f"from {divergence['unit']} {divergence['median']:g} on."
        )
    lines.append(f"{comparison['flipped_share']:.2%} of all findings flip (uncertain counted as positive).")
    if comparison["bootstrap"]["units"] < 30:
        lines.append(f"No intervals and no p values: {comparison['bootstrap']['units']} studies are too few.")
    for gate in comparison["gates"]:
        verdict = "held" if gate["passed"] else "not shown to be held"
        bound = gate["why"] if gate["bound"] is None else f"{bound_text(gate)}, with 95 % confidence"
        lines.append(f"Margin of {gate['margin']:g} for {gate['metric']}: {verdict} ({bound}).")
    return lines


def comparison_markdown(comparison: Mapping[str, Any]) -> str:
    """`comparison.md`."""
    plan = comparison["bootstrap"]
    method = (
        f"Paired: {plan['replicates']} bootstrap resamples of {plan['units']} units ({plan['unit']}), approximate "
        f"randomisation of as many, seed {plan['seed']}; p values adjusted over all metrics by Holm's method."
    )
    parts = [
        "# Comparison of two systems, A and B",
        f"> {comparison['notice']}",
        f"{comparison['studies']} studies, protocol {comparison['protocol']}. {method}",
        "\n".join(f"- {line}" for line in facts(comparison)),
        markdown_table(HEAD, metric_rows(comparison)),
        "## Flips of findings",
        markdown_table(FLIP_HEAD, flip_rows(comparison)),
    ]
    return "\n\n".join(parts) + "\n"
