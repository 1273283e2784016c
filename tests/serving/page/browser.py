"""What the tests of the page do in Chromium, and whether they can."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def profile(browser: Any, url: str) -> Iterator[Any]:
    """A browser's profile of its own, from which no other address can be reached; it has no errors at the end."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    context.set_default_timeout(20_000)
    foreign: list[str] = []

    def route(route: Any) -> None:
        if route.request.url.startswith(url) or route.request.url.startswith(("blob:", "data:")):
            route.continue_()
        else:
            foreign.append(route.request.url)
            route.abort()

    context.route("**/*", route)
    problems: list[str] = []
    context.on("weberror", lambda error: problems.append(str(error.error)))
    context.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    yield context
    context.close()
    assert foreign == []
    # Chromium writes a line for each answer that is no success; anything else is a fault, broken policies included.
    assert [line for line in problems if "the server responded with a status of" not in line] == []
