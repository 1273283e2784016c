"""Synthetic chest radiographs with findings, reports and labels: own drawings, own sentences, nobody's data."""

from r2gen_export.phantoms.draw import draw_study
from r2gen_export.phantoms.findings import KINDS, Finding, Label, labels, sample_findings
from r2gen_export.phantoms.grammar import keywords, write_report
from r2gen_export.phantoms.reader import F1, micro_f1, read_findings
from r2gen_export.phantoms.write import write_phantoms

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
