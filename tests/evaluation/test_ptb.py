"""Word splitting against the Stanford tokenizer's jar, where Java is there, and against what it was seen to answer."""

from __future__ import annotations

import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from r2gen_export.evaluation.ptb import ptb_words
from tests.helpers.own_reports import own_reports

REMOVED = {"''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"}
"""What coco-caption takes out behind the jar."""

LINES = (
    "Heart size is normal. Lungs are clear.",
    "The heart isn't enlarged; patient's can't won't cannot. It's fine. Patients' films. I'm we've they'll he'd",
    "PA/lateral views and/or 1/2 10/12/2014 11:30 a.m. 11:30 AM. 3 x 4 cm. 5 mm.",
    "1. No effusion. 2. No pneumothorax. 3) ok (4) no",
    "Dr. Smith vs. others, e.g. atelectasis, i.e. none, etc. St. Jude No. 3 Fig. 2",
    "right-sided, T8-T9, post-CABG, x-ray, X-Ray, well-aerated non-, -like",
    "___ ___-year-old XXXX, XXXX. __ _ abc_def",
    "25% 3.5cm 1.2 1,200 .5 0.5-1.0 5-mm 10mm #3 $5 & + = * ^ ~",
    "end... more.. dots. ... and? what!? no!",
    "Age: 60. Findings: heart:normal. IMPRESSION:No",
    "O2 C-spine L1. L2 vertebra. L. lung. R. side L",
    "L. The lung. A. The cat. then b. then C. 5 lobe L.",
    "a.m. The p.m. right U.S. The b.i.d.",
    "T-spine. T12. T12-L1. L1/L2. C5-6 C5-C6. AICD/pacemaker, cm/mm2 mg/dl T12-L1/L2 a/b/c/d",
    "mid-to-lower right- and left-sided pre- post- anti-inflammatory",
    "7:30am 7:30 2:1 a:5 2008-01-02 1/2/08 3 1/2 in 8-1/2 months",
    "[**Name**] [**2101-1-1**] (**) {} () ** *",
    "10x12 10X12 5.0x6.0cm 3.2-cm 5cm. 5mm, 1.2.3 v1.2 +/- -0.5 CT. The No.3",
    "Heart-normal Heart--normal Heart - normal Heart- normal Heart -normal &lt; #name",
    "°C ± “smart” ‘quote’ – — … isn’t naïve",
    "",
)


def jar() -> Path | None:
    spec = find_spec("pycocoevalcap")
    places = spec.submodule_search_locations if spec else None
    jars = [Path(place) / "tokenizer/stanford-corenlp-3.4.1.jar" for place in places or ()]
    return next((path for path in jars if path.is_file()), None)


@pytest.mark.skipif(shutil.which("java") is None or jar() is None, reason="needs Java and pycocoevalcap's jar")
def test_equal_to_the_stanford_tokenizer(tmp_path: Path) -> None:
    lines = [*LINES, *own_reports(200, seed=31)]
    (tmp_path / "lines.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    program = ["java", "-Dfile.encoding=UTF-8", "-cp", str(jar()), "edu.stanford.nlp.process.PTBTokenizer"]
    options = ["-preserveLines", "-lowerCase", "-encoding", "UTF-8", str(tmp_path / "lines.txt")]
    done = subprocess.run([*program, *options], capture_output=True, check=True, encoding="utf-8")
    for line, answer in zip(lines, done.stdout.split("\n"), strict=False):
        expected = " ".join(word for word in answer.rstrip().split(" ") if word not in REMOVED)
        assert ptb_words(line) == expected, line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The heart isn't enlarged.", "the heart is n't enlarged"),
        ("No effusion (small); 3.5cm at T8-T9.", "no effusion -lrb- small -rrb- 3.5 cm at t8-t9"),
        ("Dr. Smith saw L. lung. L. The end?!", "dr. smith saw l. lung l the end ?!"),
        ("PA/lateral, 10/12/2014 and 1. No", "pa/lateral 10/12/2014 and 1 no"),
    ],
)
def test_words_without_java(text: str, expected: str) -> None:
    assert ptb_words(text) == expected
