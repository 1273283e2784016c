"""Reports of phantoms as texts, without pictures, and pairs of them that resemble what a model writes."""

from __future__ import annotations

import numpy as np

from r2gen_export.phantoms.findings import sample_findings
from r2gen_export.phantoms.grammar import write_report


def own_reports(count: int, seed: int) -> list[str]:
    """Reports of so many phantoms."""
    reports = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        reports.append(write_report(sample_findings(rng), rng))
    return reports


def own_pairs(count: int, seed: int = 7) -> tuple[list[str], list[str]]:
    """(generated, references): two wordings of the same findings, and of others in every third pair."""
    generated, references = [], []
    for number in range(count):
        rng, other = np.random.default_rng([seed, number]), np.random.default_rng([seed + 1, number])
        findings = sample_findings(rng)
        references.append(write_report(findings, rng))
        generated.append(write_report(findings if number % 3 else sample_findings(other), other))
    return generated, references
