"""Scorers of other environments: the contract over JSON lines, and every way in which a command breaks it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from r2gen_export.errors import R2GenError
from r2gen_export.evaluation.scorers import Scorer

GOOD = """
import json, os, sys
pairs = [json.loads(line) for line in sys.stdin]
for pair in reversed(pairs):
    same = float(pair["reference"] == pair["hypothesis"])
    print(json.dumps({"id": pair["id"], "scores": {"same": same}}))
about = {"package": "x", "version": "1", "weights_sha256": "00", "offline": os.environ["HF_HUB_OFFLINE"]}
print(json.dumps({"corpus": {"same": 0.5}, "about": about}))
"""

LAST = 'print(json.dumps({"corpus": {}, "about": {}}))'

BROKEN = {
    "NaN": ('print(json.dumps({"id": "1", "scores": {"x": float("nan")}}))' + "\n" + LAST, "finite"),
    "a score that is text": ('print(json.dumps({"id": "1", "scores": {"x": "1"}}))' + "\n" + LAST, "finite"),
    "a missing study": ('print(json.dumps({"id": "1", "scores": {}}))' + "\n" + LAST, "1 of 2 studies have no score"),
    "a study twice": ('for _ in "ab": print(json.dumps({"id": "1", "scores": {}}))', "study 1 is there twice"),
    "an invented study": ('print(json.dumps({"id": "3", "scores": {}}))', "not given"),
    "no last line": ('for n in "12": print(json.dumps({"id": n, "scores": {}}))', "last line"),
    "other names": (
        'for n in "12": print(json.dumps({"id": n, "scores": {n: 1.0}}))\n' + LAST,
        "different names",
    ),
    "NaN about itself": (
        'for n in "12": print(json.dumps({"id": n, "scores": {}}))\n'
        'print(json.dumps({"corpus": {}, "about": {"x": float("inf")}}))',
        "not finite",
    ),
    "no JSON": ('print("loading ...")', "line 1 of its output is not JSON"),
    "a failure": ("raise SystemExit(3)", "status 3"),
    "no end": ("import time; time.sleep(60)", "longer than 1 s"),
    "no UTF-8": (r"sys.stdout.buffer.write(b'\xff\xfe')", "not UTF-8"),
}


def scorer(program: str, folder: Path) -> Scorer:
    path = folder / "scorer.py"
    path.write_text(f"import json, sys\n{program}")
    return Scorer.parse(f"own={sys.executable} {path}")


def test_scores_come_back_in_the_order_of_the_studies(tmp_path: Path) -> None:
    result = scorer(GOOD, tmp_path).score(["a", "b", "ü"], ["a", "x", "ü"])
    assert result.studies["same"].tolist() == [1.0, 0.0, 1.0]
    assert result.corpus == {"same": 0.5}
    assert result.about["offline"] == "1"
    assert result.name == "own"


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_contract_is_an_error(case: str, tmp_path: Path) -> None:
    program, expected = BROKEN[case]
    with pytest.raises(R2GenError, match=expected) as raised:
        scorer(program, tmp_path).score(["a", "b"], ["a", "b"], seconds=1 if case == "no end" else 60)
    assert raised.value.code == "R2G-EVAL-SCORER"


@pytest.mark.parametrize("text", ["", "own", "own=", "=python", 'own="'])
def test_a_scorer_is_named(text: str) -> None:
    with pytest.raises(R2GenError) as raised:
        Scorer.parse(text)
    assert raised.value.code == "R2G-CONFIG-VALUE"


def test_a_command_that_is_not_there() -> None:
    with pytest.raises(R2GenError, match="cannot be started"):
        Scorer.parse("own=/nowhere/at-all").score(["a"], ["a"])
