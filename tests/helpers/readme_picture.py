"""Draw the README's picture: the phantom radiograph beside the draft report r2gen prints for it.

`python tests/helpers/readme_picture.py` writes `r2gen_export/commands/report.png` (1100 x 420 pixels, 8-bit grey;
its text field `report` is the report, for the test that compares it with the README).
"""

from __future__ import annotations

import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from r2gen_export import Pipeline

DATA = Path(__file__).parents[1] / "data"
WIDTH, HEIGHT, MARGIN = 1100, 420, 30


def main() -> None:
    """Report on `phantom.png` with the embedded demo bundle and put text and radiograph side by side."""
    report = Pipeline.from_bundle(device="cpu").generate([DATA / "phantom.png"])
    side = HEIGHT - 2 * MARGIN
    picture = Image.new("L", (WIDTH, HEIGHT), 255)
    with Image.open(DATA / "phantom.png") as radiograph:
        picture.paste(radiograph.convert("L").resize((side, side), Image.Resampling.LANCZOS), (MARGIN, MARGIN))
    draw = ImageDraw.Draw(picture)
    left, top = MARGIN + side + MARGIN, MARGIN
    for text, size, columns, ink in (
        ("$ r2gen infer tests/data/phantom.png", 20, 70, 90),
        (report.text, 23, 52, 0),
        (report.notice, 16, 80, 110),
    ):
        lines = textwrap.fill(text, columns)
        font = ImageFont.load_default(size)
        draw.multiline_text((left, top), lines, fill=ink, font=font, spacing=8)
        top = int(draw.multiline_textbbox((left, top), lines, font=font, spacing=8)[3]) + MARGIN
    fields = PngInfo()
    fields.add_text("report", report.text)
    picture.save(DATA.parents[1] / "r2gen_export/commands/report.png", optimize=True, pnginfo=fields)


if __name__ == "__main__":
    main()
