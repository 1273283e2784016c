"""A report as PDF pages: the notice on top, the images beside the text. Equal documents give equal bytes."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from r2gen_export.reporting.document import Document

if TYPE_CHECKING:
    from reportlab.pdfgen.canvas import Canvas

WIDTH: Final = 595.276
HEIGHT: Final = 841.89
MARGIN: Final = 42.0
"""A4 and its margin, in points of 1/72 inch, as all lengths here."""

GAP: Final = 16.0
IMAGE_COLUMN: Final = 235.0
FOOTER: Final = 44.0
CAPTION: Final = 12.0

LONGEST_SIDE: Final = 1000
"""Pixels of a picture on the page, which is for orientation: a radiograph is read in a viewer."""

FIRST_PAGE: Final = 3
LATER_PAGES: Final = 6
"""Views beside the text, and on each page after it."""

REGULAR, BOLD = "R2genVera", "R2genVeraBold"


class Style(NamedTuple):
    """How lines of a paragraph look; sizes in points."""

    font: str
    size: float
    leading: float
    before: float = 0.0


BODY: Final = Style(REGULAR, 10.5, 15.0, 2.0)
HEADING: Final = Style(BOLD, 11.0, 16.0, 10.0)
REMARK: Final = Style(REGULAR, 9.0, 12.5, 3.0)
TITLE: Final = Style(BOLD, 15.0, 20.0)
NOTICE: Final = Style(BOLD, 9.5, 13.0)
SMALL: Final = Style(REGULAR, 7.0, 9.0)


def pdf_page(document: Document, heading: Sequence[tuple[str, str]] = ()) -> bytes:
    """A PDF of A4 pages: one, and more where the text or the views need them. No text is cut.

    It holds no date of its own making, so that equal documents give equal bytes. Fonts are embedded (Bitstream Vera,
    Latin scripts); a character of the text that they lack is written as its number, `[U+2265]`.

    Args:
        document: what to write; `source.pictures` are shown as they are, 255 white.
        heading: labels and values of patient and study. A value that the font cannot draw is left out, and the page
            says so: half a name is worse than none.
    """
    _register_fonts()
    jpegs = [_jpeg(picture) for picture in document.source.pictures]
    total = _Pages(document, heading, jpegs, 0).draw()[1]
    return _Pages(document, heading, jpegs, total).draw()[0]


@dataclass
class _Pages:
    """The pages of one document, drawn from top to bottom; `total` is what their footers say."""

    document: Document
    heading: Sequence[tuple[str, str]]
    jpegs: Sequence[_Jpeg]
    total: int
    number: int = field(default=0, init=False)
    left: float = field(default=MARGIN, init=False)
    top: float = field(default=0.0, init=False)
    canvas: Canvas = field(init=False)

    def draw(self) -> tuple[bytes, int]:
        """The PDF and the number of its pages."""
        from reportlab import rl_config
        from reportlab.pdfgen.canvas import Canvas

        rl_config.useA85 = 0  # pictures as bytes: base 85 in Python takes eight times as long, and a quarter more space
        buffer = io.BytesIO()
        self.canvas = Canvas(buffer, pagesize=(WIDTH, HEIGHT), invariant=1, pageCompression=1, lang="en")
        self.canvas.setTitle("Draft report of a chest radiograph, AI-generated, not verified")
        self.canvas.setCreator(self.document.software)
        self._begin_page()
        self._title()
        beside, later = self.jpegs[:FIRST_PAGE], self.jpegs[FIRST_PAGE:]
        if beside:
            self._column(beside)
            self.left = MARGIN + IMAGE_COLUMN + GAP
        for style, words in self._paragraphs():
            self._paragraph(style, words)
        for first in range(0, len(later), LATER_PAGES):
            self._begin_page()
            self._grid(later[first : first + LATER_PAGES], FIRST_PAGE + first)
        self.canvas.showPage()
        self.canvas.save()
        return buffer.getvalue(), self.number

    def _begin_page(self) -> None:
        """The notice and the footer, which every page has."""
        if self.number:
            self.canvas.showPage()
        self.number += 1
        self.left, self.top = MARGIN, HEIGHT - MARGIN
        lines = list(_wrapped(_drawable(self.document.notice), NOTICE, WIDTH - 2 * MARGIN - 20))
        height = len(lines) * NOTICE.leading + 12
        self.canvas.setFillColorRGB(1.0, 0.95, 0.75)
        self.canvas.setStrokeColorRGB(0.7, 0.35, 0.0)
        self.canvas.rect(MARGIN, self.top - height, WIDTH - 2 * MARGIN, height, fill=1)
        self.canvas.setFillColorRGB(0, 0, 0)
        for row, line in enumerate(lines):
            self._line(NOTICE, MARGIN + 10, self.top - 16 - row * NOTICE.leading, line)
        self.top -= height + GAP
        self._footer()

    def _footer(self) -> None:
        report = self.document.report
        bundle = self.document.source.bundle_sha256[:16]
        made_by = f"{self.document.software}, model {report.model_id}, bundle sha256 {bundle}..."
        lines = textwrap.wrap(_drawable(f"{made_by}, {self.document.settings}"), 125)[:4]
        page = f"page {self.number} of {self.total}"
        self.canvas.setStrokeColorRGB(0.6, 0.6, 0.6)
        self.canvas.line(MARGIN, MARGIN + FOOTER - 6, WIDTH - MARGIN, MARGIN + FOOTER - 6)
        self.canvas.setFillColorRGB(0.25, 0.25, 0.25)
        for row, line in enumerate(lines):
            self._line(SMALL, MARGIN, MARGIN + FOOTER - 16 - row * SMALL.leading, line)
        self.canvas.setFont(SMALL.font, SMALL.size)
        self.canvas.drawRightString(WIDTH - MARGIN, MARGIN - 10, page)
        self.canvas.setFillColorRGB(0, 0, 0)

    def _title(self) -> None:
        self._line(TITLE, MARGIN, self.top - TITLE.size, "Chest radiograph: draft report")
        self.top -= TITLE.leading + 4
        revision = [("Revision", str(self.document.revision))] if self.document.replaces else []
        entries = [*self.heading, *revision]
        shown = [(label, value) for label, value in entries if not _lacking(value)]
        omitted = [label.lower() for label, value in entries if _lacking(value)]
        half = (WIDTH - 2 * MARGIN) / 2
        for first in range(0, len(shown), 2):
            rows = [list(_wrapped(f"{label}: {value}", REMARK, half - 8)) for label, value in shown[first : first + 2]]
            for column, lines in enumerate(rows):
                for row, line in enumerate(lines):
                    self._line(REMARK, MARGIN + column * half, self.top - REMARK.size - row * REMARK.leading, line)
            self.top -= max(map(len, rows)) * REMARK.leading
        if omitted:
            words = f"Not shown, for want of a font: {', '.join(omitted)}; see the record this page is filed under."
            self._line(REMARK, MARGIN, self.top - REMARK.size, words)
            self.top -= REMARK.leading
        self.top -= 8

    def _paragraphs(self) -> Iterator[tuple[Style, str]]:
        yield HEADING, "Findings (draft, not verified)"
        for line in self.document.text.split("\n"):
            yield BODY, line
        if self.document.remarks:
            yield HEADING, "Warnings"
        for remark in self.document.remarks:
            yield REMARK, remark

    def _paragraph(self, style: Style, words: str) -> None:
        """Lines in the column that is left beside the images; when that is full, on further pages."""
        self.top -= style.before
        rest = _drawable(words)
        while rest:
            if self.top - style.leading < MARGIN + FOOTER:
                self._begin_page()
            line = next(_wrapped(rest, style, WIDTH - MARGIN - self.left))
            self._line(style, self.left, self.top - style.size, line)
            self.top -= style.leading
            rest = rest[len(line) :].lstrip(" ")

    def _column(self, jpegs: Sequence[_Jpeg]) -> None:
        height = (self.top - MARGIN - FOOTER) / len(jpegs)
        top = self.top
        for view, jpeg in enumerate(jpegs, start=1):
            top -= self._picture(jpeg, view, (MARGIN, top), (IMAGE_COLUMN, height)) + 6

    def _grid(self, jpegs: Sequence[_Jpeg], before: int) -> None:
        width = (WIDTH - 2 * MARGIN - GAP) / 2
        height = (self.top - MARGIN - FOOTER) / (LATER_PAGES / 2)
        for place, jpeg in enumerate(jpegs):
            corner = (MARGIN + place % 2 * (width + GAP), self.top - place // 2 * height)
            self._picture(jpeg, before + place + 1, corner, (width, height))

    def _picture(self, jpeg: _Jpeg, view: int, corner: tuple[float, float], room: tuple[float, float]) -> float:
        """A view and its caption below a corner (left, top), as large as the room lets it; returns the height used."""
        from reportlab.lib.utils import ImageReader

        scale = min(room[0] / jpeg.width, (room[1] - CAPTION - 6) / jpeg.height)
        width, height = jpeg.width * scale, jpeg.height * scale
        self.canvas.drawImage(ImageReader(io.BytesIO(jpeg.data)), corner[0], corner[1] - height, width, height)
        self._line(SMALL, corner[0], corner[1] - height - 9, f"View {view}, reduced: for orientation, not for reading")
        return height + CAPTION

    def _line(self, style: Style, x: float, y: float, words: str) -> None:
        self.canvas.setFont(style.font, style.size)
        self.canvas.drawString(x, y, words)


class _Jpeg(NamedTuple):
    data: bytes
    width: int
    height: int


def _jpeg(pixels: NDArray[np.uint8]) -> _Jpeg:
    """A view [H, W] as a grey JPEG of at most `LONGEST_SIDE` pixels a side."""
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return _Jpeg(buffer.getvalue(), *picture.size)


def _register_fonts() -> None:
    """The fonts that reportlab brings, so that a page does not depend on those of the machine."""
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.ttfonts import TTFont

    for name, file in ((REGULAR, "Vera.ttf"), (BOLD, "VeraBd.ttf")):
        if name not in pdfmetrics.getRegisteredFontNames():
            pdfmetrics.registerFont(TTFont(name, file))


def _lacking(text: str) -> bool:
    """Whether the font lacks a character of a text."""
    glyphs = _font(REGULAR).face.charToGlyph
    return any(ord(character) not in glyphs for character in text)


def _drawable(text: str) -> str:
    """A line of text in which every character can be drawn; ones that cannot are written as `[U+2265]`."""
    glyphs = _font(REGULAR).face.charToGlyph
    line = " ".join(text.split())
    return "".join(letter if ord(letter) in glyphs else f"[U+{ord(letter):04X}]" for letter in line)


def _font(name: str) -> Any:
    from reportlab.pdfbase import pdfmetrics

    return pdfmetrics.getFont(name)


def _wrapped(text: str, style: Style, width: float) -> Iterator[str]:
    """The lines of a text, no wider than `width` points; a word that is wider alone is broken."""
    font = _font(style.font)
    rest = text
    while rest:
        end = len(rest)
        if font.stringWidth(rest, style.size) > width:
            end = 1
            while font.stringWidth(rest[: end + 1], style.size) <= width:
                end += 1
            space = rest.rfind(" ", 1, end + 1)
            end = space if space > 0 else end
        yield rest[:end]
        rest = rest[end:].lstrip(" ")
