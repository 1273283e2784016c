"""Synthetic chest radiographs with findings, reports and labels: own drawings, own sentences, nobody's data."""

from r2gen_export.training.phantom.draw import draw_study
from r2gen_export.training.phantom.findings import KINDS, Finding, Label, labels, sample_findings
from r2gen_export.training.phantom.grammar import keywords, write_report
from r2gen_export.training.phantom.reader import F1, micro_f1, read_findings
from r2gen_export.training.phantom.write import write_phantoms

LABELS: tuple[Label, ...] = tuple(
    (name, side) for name, kind in KINDS.items() for side in (("left", "right") if kind.sided else (None,))
)
"""Every label a study can have, in a fixed order."""

__all__ = [
    "F1",
    "KINDS",
    "LABELS",
    "Finding",
    "Label",
    "draw_study",
    "keywords",
    "labels",
    "micro_f1",
    "read_findings",
    "sample_findings",
    "write_phantoms",
    "write_report",
]
