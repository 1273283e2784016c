"""What an installed r2gen holds beside its modules. An editable install has every file, so no other test sees a gap."""

from __future__ import annotations

from pathlib import Path

import pytest
from setuptools import Distribution
from setuptools.command.build_py import build_py
from setuptools.config.pyprojecttoml import apply_configuration

from tests.helpers.pages import ROOT

PAGES = {".md", ".png"}
"""Kinds of files that are read on the repository's pages and by no code."""


def test_a_wheel_holds_every_data_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    distribution = apply_configuration(Distribution(), "pyproject.toml")
    distribution.include_package_data = False  # what it adds is read from git, and the sources may come without
    command = build_py(distribution)
    command.finalize_options()
    packed = {Path(folder, name) for _, folder, _, names in command.data_files for name in names}
    files = {
        path.relative_to(ROOT)
        for package in ("r2gen_export", "trt_engines", "benchmarks")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix not in {".py", *PAGES}
    }
    assert Path("r2gen_export/evaluation/published.json") in files
    assert sorted(files - packed) == []
