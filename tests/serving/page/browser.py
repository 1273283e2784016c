"""What the tests of the page do in Chromium, and whether they can."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")
playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
expect = playwright.expect
PHANTOM = Path(__file__).parents[2] / "data" / "phantom.png"
IN_CHROMIUM = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")]


def write(page: Any, *files: Any, preset: str = "fast") -> None:
    """Choose files and start."""
    page.locator("#files").set_input_files(list(files))
    expect(page.locator("#views li")).to_have_count(len(files))
    page.select_option("#preset", preset)
    page.get_by_role("button", name="Write report").click()


def done(page: Any) -> None:
    expect(page.locator("#status")).to_contain_text("The report is done")
