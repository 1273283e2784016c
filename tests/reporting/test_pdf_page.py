"""The page: its words are all there, whatever their number; the notice stands on each; a name is whole or not there."""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from r2gen_export.reporting.predecessor import predecessor_of
from r2gen_export.reporting.source import Source
from r2gen_export.reporting.writers import render
from tests.helpers.documents import BUNDLE, WORDS, bare, full, page_text, pictures, run, tool


def page_of(data: bytes) -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(data))
    return bytes(dataset.EncapsulatedDocument[: dataset.EncapsulatedDocumentLength])


def pages(pdf: bytes, tmp_path: Path) -> list[str]:
    return page_text(pdf, tmp_path).removesuffix("\f").split("\f")


def words(text: str) -> list[str]:
    return re.findall(r"w\d+", text)


@pytest.mark.parametrize(
    ("count", "views"), [(1, 0), (60, 1), (60, 2), (1, 3), (400, 2), (400, 4), (2000, 0), (2000, 12)]
)
def test_no_word_is_lost(count: int, views: int, tmp_path: Path) -> None:
    text = " ".join(f"w{number}" for number in range(count))
    report = dataclasses.replace(WORDS, text=text, warnings=("view 1: w99999",))
    view = pictures()[1][::4, ::4]
    shown = pages(render("pdf", report, Source(None, (view,) * views, BUNDLE)), tmp_path)
    # Without the layout of columns, which mixes the captions in between.
    assert sorted(words(" ".join(shown))) == sorted([*text.split(), "w99999"])
    assert [line for page in shown for line in re.findall(r"View \d+", page)] == [f"View {n + 1}" for n in range(views)]
    for number, page in enumerate(shown, start=1):
        assert "Research use only. AI-generated draft, unverified, not for diagnosis." in " ".join(page.split())
        assert f"page {number} of {len(shown)}" in page
    assert (len(shown) == 1) == (count < 400)


def test_every_word_and_picture_lies_on_the_page(tmp_path: Path) -> None:
    """Ink up to the margins and not beyond, by looking at the rendered pages."""
    report = dataclasses.replace(
        WORDS, text="There is no pneumothorax. " * 150 + "x" * 300, model_id="model " * 60, warnings=("y" * 200,) * 5
    )
    file = tmp_path / "page.pdf"
    file.write_bytes(page_of(render("dicom-pdf", report, dataclasses.replace(full(), pictures=pictures() * 3))))
    done = run(tool("pdftoppm", "poppler-utils"), "-r", 50, "-gray", file, tmp_path / "page")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    rendered = [np.asarray(Image.open(path)) for path in sorted(tmp_path.glob("page-*.pgm"))]
    assert len(rendered) > 2
    for grey in rendered:
        rows, columns = np.nonzero(grey < 250)
        margin = 50 * 42 / 72 - 1.5
        height, width = grey.shape
        assert margin <= columns.min()
        assert columns.max() <= width - margin
        assert margin <= rows.min()
        assert rows.max() <= height - 50 * 30 / 72


def test_the_image_stands_beside_the_text(tmp_path: Path) -> None:
    """The picture's grey levels are on the left half of the page, polarity as given, the words on the right."""
    view = np.zeros((200, 160), np.uint8)
    view[:100] = 255
    file = tmp_path / "page.pdf"
    file.write_bytes(render("pdf", WORDS, Source(None, (view,), BUNDLE)))
    run(tool("pdftoppm", "poppler-utils"), "-r", 72, "-gray", file, tmp_path / "page")
    (path,) = tmp_path.glob("page*.pgm")
    grey = np.asarray(Image.open(path))
    black = np.nonzero((grey[:, 50:270] < 20).all(axis=1))[0]
    assert len(black) == pytest.approx(235 * 200 / 160 / 2, abs=3)
    above = grey[black[0] - 60 : black[0] - 10, 50:270]
    assert above.min() > 240
    done = run(tool("pdftotext", "poppler-utils"), "-bbox", file, "-")
    (left,) = (float(x) for x in re.findall(r'<word xMin="([\d.]+)"[^>]*>lungs<', done.stdout))
    assert left > 42 + 235


def test_plain_pages_name_nobody_and_archived_ones_do(tmp_path: Path) -> None:
    source = bare(
        PatientName=("PN", {"Alphabetic": "Åkesson^Zoë"}), PatientID=("LO", "ID-77"), AccessionNumber=("SH", "ACC-5")
    )
    (plain,) = pages(render("pdf", WORDS, source), tmp_path)
    (named,) = pages(page_of(render("dicom-pdf", WORDS, source)), tmp_path)
    for value in ("Åkesson, Zoë", "ID-77", "ACC-5"):
        assert value in named
        assert value not in plain
    assert b"kesson" not in render("pdf", WORDS, source)


def test_a_name_the_font_cannot_draw_is_left_out_whole(tmp_path: Path) -> None:
    name = {"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎"}
    (shown,) = pages(
        page_of(render("dicom-pdf", WORDS, bare(PatientName=("PN", name), PatientID=("LO", "7")))), tmp_path
    )
    assert "Yamada" not in shown
    assert "Not shown, for want of a font: patient;" in shown
    assert "Patient ID: 7" in shown


def test_a_character_the_font_lacks_is_written_as_its_number(tmp_path: Path) -> None:
    report = dataclasses.replace(WORDS, text="Opacity ≥ 3 cm, 心 normal.")
    (shown,) = pages(render("pdf", report, Source(None, (), BUNDLE)), tmp_path)
    assert "Opacity ≥ 3 cm, [U+5FC3] normal." in shown


def test_a_revision_says_so(tmp_path: Path) -> None:
    first = render("dicom-pdf", WORDS, full())
    second = render("dicom-pdf", WORDS, full(), replaces=predecessor_of(first))
    assert "Revision" not in " ".join(pages(page_of(first), tmp_path))
    assert "Revision: 2" in " ".join(pages(page_of(second), tmp_path))


def test_a_large_view_is_reduced() -> None:
    view = np.random.default_rng(1).integers(0, 256, (4000, 3000), dtype=np.uint8)
    assert len(render("pdf", WORDS, Source(None, (view,), BUNDLE))) < 2_000_000
