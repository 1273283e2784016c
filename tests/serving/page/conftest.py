"""A browser, a service and the page in it. See `test_page_browser.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import dicom_files
from tests.serving.page_server import PageServer, Site


@pytest.fixture(scope="module")
def server() -> Iterator[PageServer]:
    with PageServer() as server:
        yield server
        server.shutdown()


@pytest.fixture
def site(server: PageServer) -> Iterator[Site]:
    server.site = Site()
    yield server.site
    server.site.gate.set()
    server.site.picture_gate.set()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    from tests.serving.page.browser import CHROMIUM

    with sync_playwright() as api:
        # A container's root has no user namespace for Chromium's own sandbox.
        browser = api.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Any, server: PageServer, site: Site) -> Iterator[Any]:
    from tests.serving.page.browser import profile

    with profile(browser, server.url) as context:
        yield context


@pytest.fixture
def page(context: Any, server: PageServer) -> Any:
    from playwright.sync_api import expect

    page = context.new_page()
    page.goto(server.url)
    expect(page.locator("#service")).to_have_text("The service is ready.")
    return page


@pytest.fixture(scope="module")
def dicom_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = dicom_files.stored(12, False, 512, 512)
    path = tmp_path_factory.mktemp("dicom") / "view"
    dicom_files.write(path, dicom_files.radiograph(values, 12), values, "explicit")
    return path
