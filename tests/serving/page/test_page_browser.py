"""The page in Chromium: what a user does with it, at every size, with the keyboard, with any other host blocked.

Needs Debian's `chromium` and the package `playwright` (its Python part only). `AXE_JS`: the file `axe.min.js` of the
npm package axe-core, for the test of accessibility. `PAGE_SHOTS`: a folder for pictures of the page at each size.
"""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

from r2gen_export.bundle import DEMO_NOTICE, NOTICE
from tests.serving.page.browser import IN_CHROMIUM, PHANTOM, done, expect, write
from tests.serving.page_server import PageServer, Site

pytestmark = IN_CHROMIUM


def test_a_png_is_uploaded_and_its_report_is_seen_arriving(page: Any, site: Site) -> None:
    notice = f"{NOTICE} {DEMO_NOTICE}"
    expect(page.locator("#notice")).to_have_text(notice)
    site.gate.clear()
    write(page, PHANTOM, PHANTOM)
    text = page.locator("#text")
    expect(text).not_to_have_value("")
    expect(page.locator("#status")).to_have_text("The report is being written.")
    assert text.get_attribute("aria-busy") == "true"
    assert not page.locator("#done").is_visible()
    early = text.input_value()
    site.gate.set()
    done(page)
    report = site.reports[-1]
    assert report.text.startswith(early) and early != report.text
    assert text.input_value() == report.text
    assert site.posts == [("text/event-stream", {"preset": "fast"}, 2)]
    assert report.notice == notice
    expect(page.locator("#notice")).to_have_text(notice)
    facts = page.locator("#facts").inner_text()
    assert all(word in facts for word in (report.bundle_id, report.model_id, "fast", report.r2gen_version))
    stages = page.locator("#stages").inner_text()
    assert all(stage in stages for stage in ("preprocess", "encode", "prefill", "decode", "detokenize", "total"))
    assert page.evaluate("JSON.stringify([localStorage.length, sessionStorage.length, document.cookie])") == '[0,0,""]'


def test_words_show_their_probability_and_the_other_token(page: Any, site: Site) -> None:
    write(page, PHANTOM)
    done(page)
    page.get_by_role("switch", name="Colour words").check()
    report = site.reports[-1]
    words = page.locator("#words .word")
    assert words.all_inner_texts() == report.text.split()
    close = [own - other.logprob < 0.6931 for own, other in zip(report.logprobs, report.runner_up, strict=True)]
    assert 0 < page.locator("#words button").count() <= sum(close)
    words.first.hover()
    expect(page.locator("#tip")).to_have_text(re.compile(rf"^{re.escape(report.text.split()[0])}: probability .*%\."))
    shown = page.evaluate(
        """async () => {
          const { showWords, wordsOf } = await import("./words.js");
          const report = {
            text: "no effusion .", pieces: [" no", " eff", "usion", " .", "</s>"],
            logprobs: [-0.01, -0.9, -0.2, -0.7, -0.01],
            runner_up: [[" an", -5], [" pneu", -1.2], ["x", -6], ["</s>", -0.8], [" a", -7]].map(
              ([piece, logprob], token_id) => ({ token_id, piece, logprob })),
          };
          showWords(wordsOf(report), document.getElementById("words"), document.getElementById("tip"));
          return wordsOf({ ...report, text: "another text" });
        }"""
    )
    assert shown is None, "words of another text must not be coloured"
    assert page.locator("#words button").all_inner_texts() == ["effusion", "."]
    page.mouse.move(0, 0)
    page.locator("#words button").first.focus()
    tip = "effusion: probability 33 %. In place of “eff” (41 %): “pneu”, 30 %."
    expect(page.locator("#tip")).to_have_text(tip)
    assert (
        page.locator("#words button")
        .nth(1)
        .get_attribute("aria-label")
        .endswith(" In its place: the end of the report, 45 %.")
    )


def test_a_dicom_file_is_uploaded_and_gives_documents(page: Any, site: Site, dicom_file: Path) -> None:
    write(page, dicom_file)
    done(page)
    saved = {}
    for name in ("Download DICOM SR", "Download PDF", "Download JSON"):
        with page.expect_download() as download:
            page.get_by_role("button", name=name).click()
        saved[download.value.suggested_filename] = Path(download.value.path()).read_bytes()
    assert saved["report.pdf"].startswith(b"%PDF") and saved["report.dcm"].startswith(b"DICM")
    assert json.loads(saved["report.json"]) == json.loads(json.dumps(site.reports[0].to_dict()))
    assert [(accept, fields["format"]) for accept, fields, _ in site.posts[1:]] == [
        ("application/dicom", "sr"),
        ("application/pdf", "pdf"),
    ]


def test_edited_text_is_copied_with_the_notice_and_marked_in_the_json(context: Any, page: Any, site: Site) -> None:
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    write(page, PHANTOM)
    done(page)
    expect(page.get_by_role("button", name="Download DICOM SR")).to_be_disabled()
    page.locator("#text").fill('My "own" words.')
    page.get_by_role("button", name="Copy text").click()
    expect(page.locator("#status")).to_contain_text("Copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith('My "own" words.\n') and site.reports[0].notice in copied
    with page.expect_download() as download:
        page.get_by_role("button", name="Download JSON").click()
    fields = json.loads(Path(download.value.path()).read_bytes())
    assert fields["edited_text"] == 'My "own" words.' and fields["text"] == site.reports[0].text
    page.get_by_role("button", name="Undo my changes").click()
    expect(page.locator("#text")).to_have_value(site.reports[0].text)


def test_cancel_ends_the_request_and_says_that_the_text_is_not_whole(page: Any, site: Site) -> None:
    site.gate.clear()
    write(page, PHANTOM)
    expect(page.locator("#text")).not_to_have_value("")
    expect(page.get_by_role("button", name="Cancel")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text("Cancelled. The text is incomplete.")
    assert site.left.wait(20), "the service should see that the client went away"
    assert not page.locator("#done").is_visible()
    assert page.locator("#text").get_attribute("readonly") is not None
    expect(page.get_by_role("button", name="Write report")).to_be_focused()
    site.gate.set()
    page.get_by_role("button", name="Write report").click()
    done(page)


def test_errors_are_sentences_with_their_code(page: Any, site: Site, server: PageServer) -> None:
    write(page, {"name": "notes.png", "mimeType": "image/png", "buffer": b"no picture"})
    error = page.get_by_role("alert")
    expect(error).to_contain_text("(R2G-IMAGE-FORMAT)")
    expect(page.locator("#status")).to_have_text("No report was made.")
    cases = (
        ({"error": (429, {"code": "R2G-HTTP-BUSY", "message": "the queue is full", "fix": "try again in 3 s"})},
         "The queue is full. What helps: Try again in 3 s. (R2G-HTTP-BUSY)"),
        ({"fail": True}, "The worker ended. What helps: Send it again. (R2G-HTTP-READY)"),
        ({"cut": True}, "(R2G-PAGE-ENDED)"),
    )  # fmt: skip
    page.get_by_role("button", name="Remove view 1").click()
    page.locator("#files").set_input_files(PHANTOM)
    for setting, sentence in cases:
        server.site = Site(**setting)
        page.get_by_role("button", name="Write report").click()
        expect(error).to_contain_text(sentence)
        assert not page.locator("#done").is_visible()
    assert page.locator("#text").input_value() != ""
    expect(page.locator("#status")).to_contain_text("The text is incomplete.")


def test_a_key_is_asked_for_and_stays_in_the_tab(context: Any, server: PageServer, site: Site) -> None:
    site.key = "secret of sixteen"
    page = context.new_page()
    page.goto(server.url)
    for key in ("wrong", "secret of sixteen"):
        expect(page.get_by_role("dialog")).to_be_visible()
        page.get_by_label("Key", exact=True).fill(key)
        page.keyboard.press("Enter")
    expect(page.locator("#preset option")).to_have_count(3)
    write(page, PHANTOM)
    done(page)
    assert page.evaluate("[localStorage.length, sessionStorage.length]") == [0, 1]
    page.get_by_role("button", name="Forget the API key").click()
    assert page.evaluate("sessionStorage.length") == 0


def test_two_tabs_write_at_once_and_know_nothing_of_each_other(context: Any, page: Any, site: Site, server: PageServer):
    other = context.new_page()
    other.goto(server.url)
    site.gate.clear()
    write(page, PHANTOM)
    write(other, PHANTOM, preset="paper")
    for tab in (page, other):
        expect(tab.locator("#text")).not_to_have_value("")
    site.gate.set()
    texts = set()
    for tab, preset in ((page, "fast"), (other, "paper")):
        done(tab)
        texts.add(tab.locator("#text").input_value())
        expect(tab.locator("#entries li")).to_have_count(1)
        assert preset in tab.locator("#facts").inner_text()
    assert texts == {report.text for report in site.reports}


def test_earlier_reports_come_back_with_their_images(page: Any, site: Site, dicom_file: Path) -> None:
    write(page, PHANTOM)
    done(page)
    page.locator("#files").set_input_files(dicom_file)
    expect(page.locator("#other-pictures")).to_be_visible()
    page.get_by_role("button", name="Write report").click()
    expect(page.locator("#entries li")).to_have_count(2)
    page.locator("#entries button").nth(1).click()
    expect(page.locator("#views li")).to_have_count(1)
    expect(page.locator("#text")).to_have_value(site.reports[0].text)
    assert not page.locator("#other-pictures").is_visible()
    page.reload()
    expect(page.locator("#text")).to_have_value("")
    assert not page.locator("#history").is_visible()


def test_the_window_follows_mouse_and_keyboard(page: Any) -> None:
    from PIL import Image

    ramp = Image.linear_gradient("L")  # row v has the value v
    data = io.BytesIO()
    ramp.save(data, "PNG")
    page.locator("#files").set_input_files({"name": "ramp.png", "mimeType": "image/png", "buffer": data.getvalue()})
    canvas = page.locator("#picture")
    expect(canvas).to_be_visible()
    column = "[...document.getElementById('picture').getContext('2d').getImageData(0, 0, 1, 256).data]"
    assert page.evaluate(f"{column}.filter((_, at) => at % 4 === 0)") == list(range(256))
    canvas.focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Shift+ArrowDown")
    expect(canvas).to_have_attribute("data-window", "112/252")
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 76, box["y"] + 90)
    page.mouse.up()
    expect(canvas).to_have_attribute("data-window", "122/228")
    darker = page.evaluate(f"{column}.filter((_, at) => at % 4 === 0)")
    expected = [min(255, max(0, int(((value - 122) / 228 + 0.5) * 256 + 0.5))) for value in range(256)]
    assert max(abs(left - right) for left, right in zip(darker, expected, strict=True)) <= 1
    page.get_by_role("button", name="Reset window").click()
    assert page.evaluate(f"{column}.filter((_, at) => at % 4 === 0)") == list(range(256))


def test_files_can_be_dropped(page: Any, site: Site) -> None:
    data = PHANTOM.read_bytes().hex()
    transfer = page.evaluate_handle(
        """(hex) => {
          const data = new DataTransfer();
          const bytes = Uint8Array.from(hex.match(/../g), (pair) => parseInt(pair, 16));
          for (const name of ["a.png", "b.png"]) data.items.add(new File([bytes], name, { type: "image/png" }));
          return data;
        }""",
        data,
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
    expect(page.locator("#views li")).to_have_count(2)
    expect(page.locator("#picture")).to_be_visible()
