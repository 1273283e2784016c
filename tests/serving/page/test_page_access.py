"""The page with the keyboard alone, at every size, and by axe-core; see `test_page_browser.py` for what it needs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.serving.page.browser import IN_CHROMIUM, PHANTOM, done, expect, write
from tests.serving.page_server import Site

pytestmark = IN_CHROMIUM


def test_everything_can_be_done_with_the_keyboard(page: Any, site: Site) -> None:
    reached = []
    page.locator("#files").set_input_files(PHANTOM)
    expect(page.locator("#start")).to_be_enabled()
    page.locator("body").press("Tab")
    for _ in range(40):
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        if reached[-1] == "start":
            page.keyboard.press("Enter")
            break
        page.keyboard.press("Tab")
    assert {"choose", "picture", "level", "width", "window-reset", "preset"} <= set(reached)
    done(page)
    expect(page.locator("#report-title")).to_be_focused()
    after = []
    for _ in range(8):
        page.keyboard.press("Tab")
        after.append(page.evaluate("document.activeElement.id"))
        if after[-1] == "colour":
            page.keyboard.press("Space")
            break
    assert {"text", "copy", "json", "pdf", "colour"} <= set(after)
    expect(page.locator("#words")).to_be_visible()


# 320 x 225 is what 400 % zoom leaves of 1280 x 900, by the definition of WCAG 2.2, 1.4.10.
SIZES = {"400 % zoom": (320, 225), "phone": (360, 740), "desktop": (1280, 900), "4K": (3840, 2160)}


@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_cut_off_and_the_notice_stays_in_sight(page: Any, site: Site, size: str, dicom_file: Path) -> None:
    width, height = SIZES[size]
    page.set_viewport_size({"width": width, "height": height})
    write(page, dicom_file, PHANTOM)
    done(page)
    expect(page.locator("#picture")).to_be_visible()
    page.get_by_role("switch", name="Colour words").check()
    page.locator("#words button").first.focus()
    shots = os.environ.get("PAGE_SHOTS")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        if shots:
            page.evaluate("window.scrollTo(0, 0)")
            page.screenshot(path=f"{shots}/{width}-{scheme}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for place in (0, 10_000):
        page.evaluate(f"window.scrollTo(0, {place})")
        box = page.locator("#notice").bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= height
        assert box["height"] <= height / 2, "the notice leaves room for the page"
    # What the keyboard reaches is not behind the notice.
    for name in ("choose", "copy", "pdf"):
        page.locator(f"#{name}").focus()
        page.locator(f"#{name}").scroll_into_view_if_needed()
        assert page.evaluate(
            """(name) => {
              const box = document.getElementById(name).getBoundingClientRect();
              const top = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
              return top !== null && document.getElementById(name).contains(top);
            }""",
            name,
        ), name


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(page: Any, site: Site, scheme: str) -> None:
    axe = Path(os.environ.get("AXE_JS", "axe.min.js"))
    if not axe.is_file():
        pytest.skip("needs axe.min.js of the npm package axe-core, named by AXE_JS")
    page.emulate_media(color_scheme=scheme)
    source = axe.read_text(encoding="utf-8")

    def serious() -> list[Any]:
        page.evaluate(source)
        results = page.evaluate("axe.run()")
        assert len(results["passes"]) > 10
        return [(entry["id"], [node["html"] for node in entry["nodes"]]) for entry in results["violations"]]

    assert serious() == []
    write(page, PHANTOM)
    done(page)
    page.get_by_role("switch", name="Colour words").check()
    page.locator("#words .word").first.hover()
    assert serious() == []
    site.error = (503, {"code": "R2G-HTTP-READY", "message": "the process ended", "fix": "send it again"})
    page.get_by_role("button", name="Write report").click()
    expect(page.get_by_role("alert")).to_be_visible()
    assert serious() == []
    page.locator("#files").set_input_files({"name": "notes", "mimeType": "", "buffer": b"no picture"})
    expect(page.locator("#no-preview")).to_contain_text("(R2G-IMAGE-FORMAT)")
    assert serious() == []
    page.evaluate("document.getElementById('key-dialog').showModal()")
    assert serious() == []
