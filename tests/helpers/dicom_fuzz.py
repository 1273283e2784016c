"""Mutated DICOM files in every transfer syntax, read by `read_header` and `read_dicom`: an image or a coded error.

    python -m tests.helpers.dicom_fuzz 100000 STATE.json

reads so many files and goes on where STATE.json ends. File number N is made from seed N alone: `mutated(N)` gives it
again. STATE.json holds the counts, the seeds that ended the child process or were too slow, and the longest times.
"""

from __future__ import annotations

import json
import random
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from r2gen_export.errors import R2GenError
from r2gen_export.studies.dicom.limits import Limits
from r2gen_export.studies.dicom.reader import DicomReader
from r2gen_export.studies.dicom.types import DicomSettings
from tests.helpers.dicom_files import SYNTAXES, Coded, encode, item, levels, lut, radiograph

SENTINEL: Final = "ZZYZX"
CODES: Final = frozenset(
    {"R2G-DICOM-FORMAT", "R2G-DICOM-LIMIT", "R2G-DICOM-PIXELS", "R2G-DICOM-REFUSED", "R2G-IMAGE-BLANK"}
)
SAVED_EVERY: Final = 500
SECONDS: Final = 20.0


@cache
def base(syntax: str, variant: int) -> Coded:
    """A sound file of 16 x 12 pixels, with the sentinel wherever a name may be. Deflated ones are not deflated yet."""
    bits, signed = (
        (8, False) if syntax == "jpeg" or variant == 0 else ((12, False) if syntax == "jpeg12" else (12, variant == 2))
    )
    scaled = np.rint(levels(12, 16) * ((1 << bits) - 1)).astype(np.int64) - (1 << (bits - 1) if signed else 0)
    values = scaled.astype(f"{'i' if signed else 'u'}{1 if bits == 8 else 2}")
    attributes: dict[str, Any] = {
        "PatientName": f"{SENTINEL}^JANE",
        "PatientID": f"{SENTINEL}-1",
        "AccessionNumber": SENTINEL,
        "ReferringPhysicianName": f"{SENTINEL}^REF",
        "StudyDescription": f"CHEST {SENTINEL}",
        "AnatomicRegionSequence": item(CodeValue="T-D3000", CodingSchemeDesignator="SRT", CodeMeaning=SENTINEL),
        "RequestAttributesSequence": item(RequestedProcedureID=SENTINEL),
        "SpecificCharacterSet": ["", "ISO 2022 IR 87"] if variant == 1 else "ISO_IR 192",
    }
    if variant == 1:
        attributes |= {
            "WindowCenter": ["128", "600"],
            "WindowWidth": ["256", "900"],
            "RescaleSlope": 1,
            "RescaleIntercept": 0,
        }
    if variant == 2:
        attributes["ModalityLUTSequence"] = lut(-2048, 12, np.arange(4096), signed=True)
        attributes["VOILUTSequence"] = lut(0, 8, np.arange(4096) // 16, packed=True)
    return encode(radiograph(values, bits, **attributes), values, "explicit" if syntax == "deflated" else syntax)


def mutated(seed: int) -> tuple[bytes, str]:
    """File number `seed`, and its transfer syntax."""
    draw = random.Random(seed)
    syntax = list(SYNTAXES)[seed % len(SYNTAXES)]
    source = base(syntax, draw.randrange(3))
    data = bytearray(source.data)
    header, pixels = (source.dataset_start, source.pixels_start), (source.pixels_start, len(data))
    region = pixels if draw.random() < 0.5 else (132 if draw.random() < 0.2 else header[0], header[1])
    for _ in range(1 if draw.random() < 0.7 else 3):
        draw.choice(MUTATIONS)(data, draw, *region)
        region = (min(region[0], len(data) - 1), min(region[1], len(data)))
    if draw.random() < 0.15:
        del data[draw.randrange(len(data)) :]
    if syntax == "deflated":
        start = source.dataset_start
        uid = SYNTAXES["explicit"].encode() + b"\0"
        deflate = zlib.compressobj(wbits=-15)
        content = deflate.compress(bytes(data[start:])) + deflate.flush()
        # The meta header of an explicit file, with the longer UID in it.
        head = bytes(data[:start]).replace(
            struct.pack("<H", len(uid)) + uid, struct.pack("<H", 22) + SYNTAXES["deflated"].encode()
        )
        data = bytearray(head + content)
        if draw.random() < 0.3:
            _bytes(data, draw, len(head), len(data))
    return bytes(data), syntax


def _bytes(data: bytearray, draw: random.Random, start: int, end: int) -> None:
    """1 to 16 random bytes."""
    for _ in range(draw.randint(1, 16)):
        if start < min(end, len(data)):
            data[draw.randrange(start, min(end, len(data)))] = draw.randrange(256)


def _bits(data: bytearray, draw: random.Random, start: int, end: int) -> None:
    """One bit."""
    if start < min(end, len(data)):
        data[draw.randrange(start, min(end, len(data)))] ^= 1 << draw.randrange(8)


def _extreme(data: bytearray, draw: random.Random, start: int, end: int) -> None:
    """An extreme number of 2 or 4 bytes at an even place."""
    number = draw.choice(
        [b"\xff\xff", b"\0\0", b"\xff\x7f", b"\0\x80", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x10"]
    )
    at = draw.randrange(start, max(start + 1, end - 4)) & ~1
    data[at : at + len(number)] = number


def _cut(data: bytearray, draw: random.Random, start: int, end: int) -> None:
    """Some bytes less."""
    at = draw.randrange(start, max(start + 1, end))
    del data[at : at + draw.randint(1, 64)]


def _more(data: bytearray, draw: random.Random, start: int, end: int) -> None:
    """Random bytes more."""
    at = draw.randrange(start, max(start + 1, end))
    data[at:at] = draw.randbytes(draw.randint(1, 64))


def _again(data: bytearray, draw: random.Random, start: int, end: int) -> None:
    """A part of the file once more at another place."""
    first, second = (draw.randrange(start, max(start + 1, end)) for _ in range(2))
    data[second:second] = data[first : first + draw.randint(1, 256)]


def _element(data: bytearray, draw: random.Random, start: int, end: int) -> None:
    """An element's length or value representation: found by its two capitals."""
    places = [
        at
        for at in range(start, min(end, len(data)) - 4)
        if data[at : at + 2].isalpha() and data[at : at + 2].isupper()
    ]
    if places:
        at = draw.choice(places)
        if draw.random() < 0.5:
            data[at : at + 2] = draw.choice(
                [b"SQ", b"UN", b"OB", b"OW", b"US", b"SS", b"DS", b"IS", b"UT", b"PN", b"AT", b"FD", b"zz"]
            )
        else:
            data[at + 2 : at + 4] = draw.randbytes(2)


def _nested(data: bytearray, draw: random.Random, start: int, end: int) -> None:
    """Sequences in sequences, up to 600 deep, where an element begins."""
    del end
    depth = draw.choice([3, 50, 600])
    data[start:start] = (b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff") * depth


MUTATIONS: Final[list[Callable[[bytearray, random.Random, int, int], None]]] = [
    *[_bytes] * 6, *[_bits] * 4, *[_extreme] * 3, _cut, _more, _again, *[_element] * 3, _nested,
]  # fmt: skip


@dataclass
class State:
    """What has been read so far."""

    done: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    deaths: list[int] = field(default_factory=list)
    slow: list[int] = field(default_factory=list)
    crashes: list[tuple[int, str]] = field(default_factory=list)
    named: list[int] = field(default_factory=list)
    longest: list[tuple[float, int]] = field(default_factory=list)
    seconds: float = 0.0

    def note(self, outcome: str) -> None:
        """Count an outcome."""
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1


def read(seed: int, path: Path, reader: DicomReader, state: State) -> None:
    """Read file number `seed` both ways; with `force` for two of three."""
    data, syntax = mutated(seed)
    path.write_bytes(data)
    settings = DicomSettings(force=seed % 3 != 0)
    before = (reader.process.counts.deaths, reader.process.counts.slow)
    start = time.monotonic()
    for call, kind in ((reader.read_header, "header"), (reader.read_dicom, "image")):
        try:
            result: Any = call(path, "study 1", settings)
            said = repr(result.warnings) + getattr(result, "problem", "")
            state.note(f"{kind} of {syntax}: read")
        except R2GenError as error:
            said = error.render()
            state.note(f"{kind}: {error.code}")
            if error.code not in CODES:
                state.crashes.append((seed, said))
        except Exception as error:
            said = ""
            state.crashes.append((seed, f"{type(error).__name__}: {error}"))
        if SENTINEL in said or str(path) in said:
            state.named.append(seed)
    state.longest = sorted([*state.longest, (round(time.monotonic() - start, 3), seed)], reverse=True)[:10]
    if reader.process.counts.deaths > before[0]:
        state.deaths.append(seed)
    if reader.process.counts.slow > before[1]:
        state.slow.append(seed)
    state.done += 1


def main(count: int, file: Path) -> State:
    """Read on until `count` files are done; the state is saved every `SAVED_EVERY`."""
    state = State(**json.loads(file.read_text())) if file.exists() else State()
    state.longest = [(seconds, seed) for seconds, seed in state.longest]  # JSON has no tuples
    reader = DicomReader(Limits(seconds=SECONDS))
    with tempfile.TemporaryDirectory() as folder:
        while state.done < count:
            start = time.monotonic()
            for seed in range(state.done, min(count, state.done + SAVED_EVERY)):
                read(seed, Path(folder) / "a.dcm", reader, state)
            state.seconds = round(state.seconds + time.monotonic() - start, 1)
            partial = file.with_suffix(".part")
            partial.write_text(json.dumps(asdict(state), indent=1))
            partial.replace(file)
    reader.close()
    return state


def summary(state: State) -> str:
    """The figures in one line."""
    read_ = sum(count for name, count in state.outcomes.items() if name.startswith("image of"))
    codes = Counter({name: count for name, count in state.outcomes.items() if name.startswith("image: ")})
    longest = state.longest[0][0] if state.longest else 0
    return (
        f"{state.done} files: {len(state.crashes)} crashes of the parent, {len(state.slow)} time-outs, "
        f"{len(state.deaths)} deaths of the child, {len(state.named)} messages with a name, longest "
        f"{longest} s; {read_} images; {dict(codes.most_common())}; {state.seconds} s in all"
    )


if __name__ == "__main__":
    sys.stdout.write(summary(main(int(sys.argv[1]), Path(sys.argv[2]))) + "\n")
