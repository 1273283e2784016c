"""Previews of files that Chromium does not decode; see `test_page_browser.py` for what it needs."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from r2gen_export.studies.images import read_image
from r2gen_export.studies.pixels import grey_levels
from tests.serving.http_site import demo_pipeline, service
from tests.serving.page.browser import IN_CHROMIUM, PHANTOM, done, expect, profile, write
from tests.serving.page_server import PageServer, Site

pytestmark = IN_CHROMIUM

NO_PREVIEW = "#no-preview"


@pytest.fixture(scope="module")
def tiff_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiff") / "view.tif"
    Image.fromarray(np.random.default_rng(5).integers(0, 4096, (40, 60)).astype(np.uint16)).save(path)
    return path


def shown(page: Any) -> NDArray[np.uint8]:
    """The grey values [H, W] on the canvas."""
    expect(page.locator("#picture")).to_be_visible()
    url = page.evaluate("document.getElementById('picture').toDataURL('image/png')")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("L"))


def as_read(path: Path) -> NDArray[np.uint8]:
    return grey_levels(read_image(path).pixels)


def view(page: Any, number: int) -> Any:
    return page.get_by_role("button", name=f"View {number}:")


def test_a_dicom_file_is_seen_and_asked_for_once(page: Any, site: Site, dicom_file: Path) -> None:
    site.picture_gate.clear()
    page.locator("#files").set_input_files([dicom_file, PHANTOM])
    reading = "The service is reading view 1, which a browser cannot show by itself."
    expect(page.locator(NO_PREVIEW)).to_have_text(reading)
    assert not page.locator("#picture").is_visible()
    site.picture_gate.set()
    np.testing.assert_array_equal(shown(page), as_read(dicom_file))
    assert not page.locator(NO_PREVIEW).is_visible()
    page.locator("#picture").press("ArrowLeft")
    expect(page.locator("#picture")).to_have_attribute("data-window", "128/252")
    view(page, 2).click()
    expect(page.locator("#picture")).to_have_attribute("aria-label", f"Preview of view 2, {PHANTOM.name}")
    expect(view(page, 2)).to_be_focused()
    view(page, 1).click()
    expect(page.locator("#picture")).to_have_attribute("data-window", "128/256")
    np.testing.assert_array_equal(shown(page), as_read(dicom_file))
    page.get_by_role("button", name="Remove view 2").click()
    np.testing.assert_array_equal(shown(page), as_read(dicom_file))
    assert site.pictures == [dicom_file.read_bytes()]


def test_a_tiff_file_is_seen(page: Any, site: Site, tiff_file: Path) -> None:
    page.locator("#files").set_input_files(tiff_file)
    np.testing.assert_array_equal(shown(page), as_read(tiff_file))
    assert site.pictures == [tiff_file.read_bytes()]


@pytest.mark.parametrize("leave", ["View 2:", "Remove view 1"])
def test_a_picture_is_cancelled_when_its_view_is_left(page: Any, site: Site, dicom_file: Path, leave: str) -> None:
    site.picture_gate.clear()
    page.locator("#files").set_input_files([dicom_file, PHANTOM])
    expect(page.locator(NO_PREVIEW)).to_contain_text("is reading view 1")
    while not site.pictures:
        page.wait_for_timeout(20)
    page.get_by_role("button", name=leave).click()
    expect(page.locator("#picture")).to_be_visible()
    assert not page.locator(NO_PREVIEW).is_visible()
    assert site.picture_left.wait(20), "the service should see that the client went away"
    site.picture_gate.set()
    if leave == "View 2:":
        view(page, 1).click()
        np.testing.assert_array_equal(shown(page), as_read(dicom_file))


def test_what_is_wrong_with_a_picture_is_said_in_its_place(
    page: Any, site: Site, server: PageServer, dicom_file: Path
) -> None:
    page.locator("#files").set_input_files({"name": "notes", "mimeType": "", "buffer": b"no picture"})
    words = page.locator(NO_PREVIEW)
    expect(words).to_contain_text("There is no preview of view 1. The image is not a PNG, JPEG, TIFF or DICOM image.")
    expect(words).to_contain_text("(R2G-IMAGE-FORMAT)")
    view(page, 1).click()
    expect(words).to_contain_text("(R2G-IMAGE-FORMAT)")
    assert len(site.pictures) == 1, "the same file is refused again"
    page.get_by_role("button", name="Remove view 1").click()
    server.site = Site(
        picture_error=(503, {"code": "R2G-HTTP-READY", "message": "the process ended", "fix": "send it again"})
    )
    page.locator("#files").set_input_files(dicom_file)
    expect(words).to_have_text(
        "There is no preview of view 1. The process ended. What helps: Send it again. (R2G-HTTP-READY) "
        "Choose the view again to try once more."
    )
    server.site = Site()
    view(page, 1).press("Enter")
    np.testing.assert_array_equal(shown(page), as_read(dicom_file))


def test_a_key_is_asked_for_a_picture(context: Any, server: PageServer, site: Site, dicom_file: Path) -> None:
    site.key = "secret of sixteen"
    page = context.new_page()
    page.goto(server.url)
    page.get_by_role("button", name="Cancel").click()
    page.locator("#files").set_input_files(dicom_file)
    expect(page.get_by_role("dialog")).to_be_visible()
    page.get_by_label("Key", exact=True).fill(site.key)
    page.keyboard.press("Enter")
    np.testing.assert_array_equal(shown(page), as_read(dicom_file))


def test_the_service_itself_shows_a_dicom_file_and_streams_its_report(
    browser: Any, dicom_file: Path, tmp_path: Path
) -> None:
    with service(tmp_path) as own, profile(browser, own.url) as context:
        page = context.new_page()
        page.goto(own.url)
        expect(page.locator("#service")).to_have_text("The service is ready.")
        page.evaluate(
            """() => {
              const { get, set } = Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, "value");
              window.texts = [];
              Object.defineProperty(document.getElementById("text"), "value", {
                get, set(words) { window.texts.push(words); set.call(this, words); },
              });
            }"""
        )
        write(page, dicom_file)
        np.testing.assert_array_equal(shown(page), as_read(dicom_file))
        done(page)
        report = demo_pipeline().generate(dicom_file, preset="fast")
        assert page.locator("#text").input_value() == report.text
        texts = page.evaluate("window.texts")
        assert texts and all(report.text.startswith(text) for text in texts)
        requests = [
            entry["path"] for entry in own.log if entry["event"] == "request" and entry["path"].startswith("/v1/")
        ]
        assert requests.count("/v1/pictures") == 1 and requests.count("/v1/reports") == 1
