"""Damaged files: whatever a library raises becomes a coded error about the image, and no process dies.

`python -m tests.studies.test_images_mutated 5000` runs as many mutations and prints what came of them.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import png
import pytest
import tifffile
from PIL import Image

from r2gen_export.errors import R2GenError
from r2gen_export.studies.images import read_image

DATA = Path(__file__).parents[1] / "data"


def seeds(folder: Path) -> Iterator[Path]:
    """One sound file of every format and of every way its pixels are read."""
    with Image.open(DATA / "phantom.png") as picture:
        small = picture.convert("L").resize((48, 40), Image.Resampling.LANCZOS)
    deep = np.asarray(small).astype(np.uint16) * 257
    colour = np.stack([deep, deep // 2, deep // 3], axis=2)
    exif = Image.Exif()
    exif[0x0112] = 6
    small.save(folder / "grey.png", exif=exif)
    small.convert("P").save(folder / "palette.png")
    small.convert("RGB").save(folder / "colour.jpg", exif=exif)
    small.convert("CMYK").save(folder / "cmyk.jpg")
    small.save(folder / "progressive.jpg", progressive=True)
    Image.fromarray(deep).save(folder / "grey16.png")
    for name, values in (("rgb16.png", colour), ("la16.png", colour[:, :, :2])):
        with (folder / name).open("wb") as file:
            writer = png.Writer(48, 40, greyscale=name[0] == "l", alpha=name[0] == "l", bitdepth=16, interlace=True)
            writer.write(file, values.reshape(40, -1).tolist())
    for compression in ("raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "jpeg"):
        small.save(folder / f"grey-{compression}.tif", compression=compression)
    small.convert("1").save(folder / "fax.tif", compression="group4")
    tifffile.imwrite(folder / "rgb16.tif", colour, compression="lzw", predictor=2, byteorder=">", photometric="rgb")
    tifffile.imwrite(folder / "float.tif", deep / 65535, compression="zlib", predictor=3, tile=(16, 16))
    tifffile.imwrite(folder / "grey16.tif", deep, bigtiff=True, rowsperstrip=8, compression="packbits")
    tifffile.imwrite(folder / "planes.tif", colour.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    yield from sorted(folder.iterdir())


def mutate(data: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, mostly among headers and tags; sometimes a piece cut out, repeated or cut off."""
    body = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 4, 16])):
        ends = chance.random()
        near = min(len(body), 300)
        place = chance.randrange(near) if ends < 0.4 else len(body) - 1 - chance.randrange(near)
        if ends > 0.7:
            place = chance.randrange(len(body))
        body[place] = chance.choice(
            [0, 1, 2, 127, 128, 255, chance.randrange(256), body[place] ^ 1 << chance.randrange(8)]
        )
    if chance.random() < 0.15:
        first, second = sorted(chance.randrange(len(body)) for _ in range(2))
        body = chance.choice([body[:second], body[:first] + body[second:], body[:second] + body[first:]])
    return bytes(body)


def sweep(count: int, seed: int, folder: Path) -> tuple[Counter[str], float]:
    """Reads `count` mutations, spread over the seeds. Gives what came of them, and the seconds of the slowest.

    Raises:
        AssertionError: an exception that is not a coded error of an image.
    """
    results: Counter[str] = Counter()
    slowest = 0.0
    (folder / "seeds").mkdir()
    originals = [(path.suffix, path.read_bytes()) for path in seeds(folder / "seeds")]
    for number in range(count):
        chance = random.Random(seed * 1_000_000 + number)
        suffix, data = originals[number % len(originals)]
        path = folder / f"mutated{suffix}"
        path.write_bytes(mutate(data, chance))
        start = time.perf_counter()
        try:
            pixels = read_image(path).pixels
            assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
            results["picture"] += 1
        except R2GenError as error:
            assert error.code.startswith("R2G-IMAGE-"), (number, error.code)
            results[error.code] += 1
        except Exception as error:
            raise AssertionError(f"mutation {number} of seed {seed}: {error!r}") from error
        slowest = max(slowest, time.perf_counter() - start)
    return results, slowest


def test_the_seeds_are_sound(tmp_path: Path) -> None:
    for path in seeds(tmp_path):
        assert read_image(path).pixels.shape[2] == 3, path.name


@pytest.mark.parametrize("count", [400, pytest.param(5000, marks=pytest.mark.slow)])
def test_mutated_files(tmp_path: Path, capfd: pytest.CaptureFixture[str], count: int) -> None:
    results, _ = sweep(count, count, tmp_path)
    assert sum(results.values()) == count
    # Neither do all survive, nor is everything refused at the first byte.
    assert results["picture"] > count // 10
    assert results["R2G-IMAGE-TRUNCATED"] > count // 20
    # libtiff prints what it finds wrong; it knows no file name.
    printed = capfd.readouterr()
    assert str(tmp_path) not in printed.out + printed.err


if __name__ == "__main__":
    total = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    with tempfile.TemporaryDirectory() as scratch:
        outcome, seconds = sweep(total, first, Path(scratch))
    sys.stdout.write(f"{total} mutations: {dict(outcome)}, slowest {seconds:.2f} s\n")
