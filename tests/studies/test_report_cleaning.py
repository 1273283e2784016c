"""Report clean-up. The expected texts were made by running the published `clean_report`."""

from __future__ import annotations

import pytest

from r2gen_export.studies.report_cleaning import CLEANERS, clean_iu_xray, clean_mimic_cxr, clean_none

CASES = (
    (
        "The heart is normal in size. The lungs are clear.",
        "the heart is normal in size . the lungs are clear .",
        "the heart is normal in size . the lungs are clear .",
    ),
    (
        "1. No acute disease. 2. Mild cardiomegaly. 3. Old granuloma.",
        "no acute disease . mild cardiomegaly . old granuloma .",
        "no acute disease . mild cardiomegaly . old granuloma .",
    ),
    (
        "Findings:\n 1. Stable. 12. Unchanged lines",
        "findings\n stable . 12 . unchanged lines .",
        "findings : stable . 12 . unchanged lines .",
    ),
    (
        "Compared to ___ at 10:45, the  left   effusion\nis larger......",
        "compared to  at 1045 the  left   effusion\nis larger .",
        "compared to  at 10 :45 the left effusion is larger .",
    ),
    (
        'XXXX-year-old; size < 2 cm = small, "quoted" a/b \\ it\'s @home',
        "xxxx-year-old size  2 cm  small quoted ab  its home .",
        "xxxx-year-old size < 2 cm = small quoted ab  its @home .",
    ),
    (
        "PA and lateral views [two] (chest) {x} 50% ^ & * + _",
        "pa and lateral views two chest x 50      .",
        "pa and lateral views two chest x 50      .",
    ),
    (
        "Low volumes.. .. No edema. . . Clear.",
        "low volumes .  . no edema .  .  . clear .",
        "low volumes .  . no edema .  .  . clear .",
    ),
    ("", " .", " ."),
    ("   ", " .", " ."),
    (". ", " .", " ."),
    ("No period at the end", "no period at the end .", "no period at the end ."),
    (
        "Tube 3.5 cm above carina. 4. T-spine degenerative.",
        "tube 35 cm above carina . t-spine degenerative .",
        "tube 35 cm above carina . t-spine degenerative .",
    ),
    ("A________________________________________b", "ab .", "ab ."),
    ("a                                        b.", "a                                        b .", "a b ."),
)
"""(report, cleaned as IU X-Ray, cleaned as MIMIC-CXR)."""


@pytest.mark.parametrize(("report", "iu_xray", "mimic_cxr"), CASES)
def test_as_published(report: str, iu_xray: str, mimic_cxr: str) -> None:
    assert clean_iu_xray(report) == iu_xray
    assert clean_mimic_cxr(report) == mimic_cxr


def test_runs_are_shortened_as_often_as_published() -> None:
    # Seven and eight passes over pairs leave more than one sign of a long run.
    assert clean_mimic_cxr("a" + "_" * 300).count("_") == 0
    assert clean_mimic_cxr("a" + " " * 300 + "b") == "a" + " " * 5 + "b ."
    assert clean_iu_xray("a" + "." * 16 + " b") == clean_iu_xray("a.. b") == "a . b ."


def test_none_only_strips() -> None:
    assert clean_none("  The Heart: 1. Normal. \n") == "The Heart: 1. Normal."
    assert set(CLEANERS) == {"iu_xray", "mimic_cxr", "none"}
