"""`r2gen doctor` on packages: what it calls installed is what the extras of pyproject.toml bring."""

from __future__ import annotations

import re
import tomllib

import pytest

from r2gen_export.runtime.doctor import EXTRAS, package_checks
from tests.helpers.pages import ROOT


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_is_judged_by_packages_that_it_brings(extra: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    brought = {re.split(r"[<>=!;\[ ]", line)[0] for line in project["optional-dependencies"][extra]}
    if extra in ("export", "train"):
        assert set(EXTRAS[extra]) <= brought | {"optimum"}  # which optimum-onnx brings
    else:
        assert set(EXTRAS[extra]) == brought


def test_what_reads_radiographs_of_a_pacs_is_shown() -> None:
    shown = {check.name: check for check in package_checks() if check.area == "extras"}
    assert shown.keys() == EXTRAS.keys()
    assert shown["dicom"].detail == "installed"
