"""Grey levels of DICOM files against dcmtk's `dcm2pnm`, within 1.1 of 255 levels.

In CI every pair of values of the matrix occurs once at least. The full matrix (every combination that is legal, half an
hour) is run with

    R2GEN_DICOM_MATRIX=full python -m pytest -q tests/studies/test_dicom_grey.py -k matrix

It prints how many images were compared and the largest difference.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from r2gen_export.errors import R2GenError
from r2gen_export.studies.dicom.reader import DicomReader
from r2gen_export.studies.dicom.types import DicomSettings
from tests.helpers.dicom_files import LOSSY, SYNTAXES, by_dcmtk, change, item, lut, radiograph, stored, write

pytestmark = pytest.mark.skipif(shutil.which("dcm2pnm") is None, reason="needs dcm2pnm of dcmtk (apt install dcmtk)")

TOLERANCE = 1.1
FULL = os.environ.get("R2GEN_DICOM_MATRIX") == "full"

AXES: dict[str, list[Any]] = {
    "photometric": ["MONOCHROME1", "MONOCHROME2"],
    "bits": list(range(8, 17)),
    "signed": [False, True],
    "modality": ["none", "rescale", "negative slope", "lut 8 packed", "lut 12", "lut 16"],
    "voi": ["none", "linear", "linear exact", "sigmoid", "lut 8", "lut 8 packed", "lut 12", "lut 16", "lut 12 as 16"],
    "syntax": list(SYNTAXES),
}


class Case(NamedTuple):
    """One image of the matrix."""

    photometric: str
    bits: int
    signed: bool
    modality: str
    voi: str
    syntax: str

    @property
    def legal(self) -> bool:
        """JPEG's lossy processes have 8 and 12 bits without sign."""
        if self.syntax == "jpeg":
            return self.bits == 8 and not self.signed
        if self.syntax == "jpeg12":
            return self.bits in (8, 12) and not self.signed
        # An error of 1 in two's complement may turn the largest value into the smallest.
        return not (self.syntax == "jls-near" and self.signed)


@cache
def cases() -> list[Case]:
    """The matrix, or a part of it in which every legal pair of two axes' values occurs."""
    everything = [case for case in itertools.starmap(Case, itertools.product(*AXES.values())) if case.legal]
    if FULL:
        return everything
    chosen: list[Case] = []
    missing = {pair for case in everything for pair in pairs(case)}
    draw = random.Random(1)
    while missing:
        # Of 40 random candidates the one with most new pairs, the first of which has a pair that is missing.
        pair = min(missing, key=repr)
        fits = [case for case in draw.sample(everything, 2000) if pair in pairs(case)]
        fits = fits or [next(case for case in everything if pair in pairs(case))]
        best = max(fits[:40], key=lambda case: len(missing & pairs(case)))
        chosen.append(best)
        missing -= pairs(best)
    return chosen


def pairs(case: Case) -> set[tuple[tuple[int, Any], ...]]:
    """All pairs of two axes' values in a case."""
    return set(itertools.combinations(enumerate(case), 2))


@pytest.fixture(scope="module")
def reader() -> Iterator[DicomReader]:
    """One child process for this module."""
    reader = DicomReader()
    yield reader
    reader.close()


def curve(count: int, depth: int, rising: bool = True) -> NDArray[np.int64]:
    """A bent table over the whole depth, both ends included."""
    line = np.linspace(0, 1, count) ** 1.5
    return np.rint((line if rising else 1 - line) * ((1 << depth) - 1)).astype(np.int64)


def with_modality(dataset: Dataset, case: Case) -> tuple[float, float]:
    """Add the modality step; returns the range its results have."""
    low = -(1 << (case.bits - 1)) if case.signed else 0
    high = low + (1 << case.bits) - 1
    if case.modality in ("rescale", "negative slope"):
        # Whole numbers: dcmtk cuts what it rescales off to integers, which shows with few bits.
        slope, intercept = (2 if case.bits < 15 else 1, 200) if case.modality == "rescale" else (-1, 200)
        if case.bits == 16:
            intercept = -100 if slope > 0 else 40_000  # the first value of a VOI LUT has 16 bits
        change(dataset, {"RescaleSlope": slope, "RescaleIntercept": intercept, "RescaleType": "US"})
        ends = sorted((low * slope + intercept, high * slope + intercept))
        return ends[0], ends[1]
    if case.modality.startswith("lut"):
        depth = int(case.modality.split()[1])
        # The table covers the middle of the range: values below and above it take its ends.
        first, count = low + (1 << case.bits) // 8, 3 * (1 << case.bits) // 4 + 1
        dataset.ModalityLUTSequence = lut(first, depth, curve(count, depth), "packed" in case.modality, case.signed)
        dataset.ModalityLUTSequence[0].ModalityLUTType = "US"
        return 0, (1 << depth) - 1
    return low, high


def with_voi(dataset: Dataset, case: Case, low: float, high: float, for_dcmtk: bool) -> list[str]:
    """Add the VOI step; returns dcmtk's options for it. dcmtk 3.6.7 has no LINEAR_EXACT: it gets an equal LINEAR."""
    if case.voi.startswith("lut"):
        words = case.voi.split()
        depth = int(words[1])
        first = round(low + (high - low) / 8)
        entries = curve(round((high - low) * 0.75) + 2, depth)
        table = lut(first, 16 if "as" in words else depth, entries, "packed" in words, low < 0 or case.signed)
        dataset.VOILUTSequence = table
        return ["+Wl", "1", "+Mv"] if "as" in words else ["+Wl", "1"]
    if case.voi == "none":
        return []
    centre, width = round(low + (high - low) * 0.45) + 0.25, max(2.0, round((high - low) * 0.6))
    function = case.voi.upper().replace(" ", "_")
    if for_dcmtk and case.voi == "linear exact":
        centre, width, function = centre + 0.5, width + 1, "LINEAR"
    change(dataset, {"WindowCenter": centre, "WindowWidth": width, "VOILUTFunction": function})
    return ["+Wi", "1", "+Wfs"] if case.voi == "sigmoid" else ["+Wi", "1"]


def build(case: Case, for_dcmtk: bool = False) -> tuple[Dataset, NDArray[Any], list[str]]:
    """The image of a case, and dcmtk's options."""
    values = stored(case.bits, case.signed)
    dataset = radiograph(values, case.bits, PhotometricInterpretation=case.photometric)
    low, high = with_modality(dataset, case)
    return dataset, values, with_voi(dataset, case, low, high, for_dcmtk)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """dcmtk's picture of a case. What a lossless syntax holds is compared with the same values not compressed."""
    folder = tmp_path_factory.mktemp("dcmtk")

    @cache
    def lossless(case: Case) -> NDArray[np.uint8]:
        dataset, values, options = build(case, for_dcmtk=True)
        return by_dcmtk(write(folder / "plain.dcm", dataset, values), *options)

    def picture(case: Case) -> NDArray[np.uint8]:
        if case.syntax not in LOSSY:
            return lossless(case._replace(syntax="explicit"))
        dataset, values, options = build(case, for_dcmtk=True)
        program = "dcml2pnm" if case.syntax == "jls-near" else "dcmj2pnm"
        return by_dcmtk(write(folder / "lossy.dcm", dataset, values, case.syntax), *options, program=program)

    return picture


@pytest.mark.timeout(0 if FULL else 300)
def test_matrix(reader: DicomReader, expected: Any, tmp_path: Path) -> None:
    """Photometric interpretation x bits x sign x modality step x VOI step x transfer syntax."""
    largest, wrong = 0.0, []
    for number, case in enumerate(cases()):
        if number and number % 1000 == 0:
            sys.stderr.write(f"{number} of {len(cases())} images, largest difference so far {largest:g}\n")
        dataset, values, _ = build(case)
        image = reader.read_dicom(write(tmp_path / "a.dcm", dataset, values, case.syntax), "image", DicomSettings())
        reference = expected(case)
        assert image.pixels.shape == reference.shape
        difference = float(np.abs(image.pixels.astype(int) - reference.astype(int)).max())
        largest = max(largest, difference)
        if difference > TOLERANCE:
            wrong.append((difference, case))
        assert ("uses 12" in str(image.warnings)) == (case.voi == "lut 12 as 16"), case
    sys.stderr.write(f"\n{len(cases())} images compared with dcmtk, largest difference {largest:g} of 255\n")
    assert not wrong, f"{len(wrong)} of {len(cases())}: {sorted(wrong, reverse=True)[:20]}"
    assert len(cases()) > 100


RAMP = stored(12, False)
SIGNED = stored(12, True)

SPECIAL: dict[str, tuple[NDArray[Any], int, dict[str, Any], list[str]]] = {
    "fractional rescale and window of a real CR": (
        RAMP,
        12,
        {"RescaleSlope": "0.684", "RescaleIntercept": "200", "WindowCenter": "1600", "WindowWidth": "2800"},
        ["+Wi", "1"],
    ),
    "first of several windows": (
        RAMP,
        12,
        {"WindowCenter": ["2000", "100"], "WindowWidth": ["1500", "20"]},
        ["+Wi", "1"],
    ),
    "empty rescale and window": (
        RAMP,
        12,
        {"RescaleSlope": "", "RescaleIntercept": "", "WindowCenter": "", "WindowWidth": ""},
        [],
    ),
    "table before window": (
        RAMP,
        12,
        {"WindowCenter": 10, "WindowWidth": 20, "VOILUTSequence": lut(0, 10, curve(4096, 10))},
        ["+Wl", "1"],
    ),
    "falling table": (RAMP, 12, {"VOILUTSequence": lut(0, 10, curve(4096, 10, rising=False))}, ["+Wl", "1"]),
    "65,536 entries": (stored(16, False), 16, {"VOILUTSequence": lut(0, 16, curve(65536, 16))}, ["+Wl", "1"]),
    "INVERSE": (RAMP, 12, {"PresentationLUTShape": "INVERSE", "PhotometricInterpretation": "MONOCHROME1"}, []),
    "IDENTITY": (RAMP, 12, {"PresentationLUTShape": "IDENTITY"}, []),
    "IDENTITY against MONOCHROME1": (
        RAMP,
        12,
        {"PresentationLUTShape": "IDENTITY", "PhotometricInterpretation": "MONOCHROME1"},
        [],
    ),
    "INVERSE against MONOCHROME2": (RAMP, 12, {"PresentationLUTShape": "INVERSE"}, []),
    "padding": (
        np.where(RAMP < 900, 0, RAMP),
        12,
        {"PixelPaddingValue": 0, "PhotometricInterpretation": "MONOCHROME1"},
        [],
    ),
    "garbage above BitsStored": (RAMP | np.uint16(0xA000), 12, {}, []),
    "garbage above the sign": (SIGNED & np.int16(0x0FFF) | np.int16(0x5000), 12, {}, []),
    "values in the high bits": (RAMP << np.uint16(4), 12, {"HighBit": 15}, []),
    "narrow window": (RAMP, 12, {"WindowCenter": 2048, "WindowWidth": 2}, ["+Wi", "1"]),
}


@pytest.mark.parametrize("name", SPECIAL)
def test_special(name: str, reader: DicomReader, tmp_path: Path) -> None:
    """What real files have and the matrix has not."""
    values, bits, attributes, options = SPECIAL[name]
    dataset = radiograph(values, bits, **attributes)
    path = write(tmp_path / "a.dcm", dataset, values)
    image = reader.read_dicom(path, "image", DicomSettings())
    difference = np.abs(image.pixels.astype(int) - by_dcmtk(path, *options).astype(int)).max()
    assert difference <= TOLERANCE
    assert ("contradict" in str(image.warnings)) == ("against" in name)


def test_real_files_as_dcmtk_shows_them(reader: DicomReader, tmp_path: Path) -> None:
    """CR images, modality and VOI LUT, of the package pydicom-data (MIT)."""
    folder = Path(pytest.importorskip("data_store").__file__).parent / "data"
    for name, options in (
        ("RG1_UNCI", ["+Wi", "1"]),
        ("RG3_UNCR", ["+Wi", "1"]),
        ("mlut_18", []),
        ("vlut_04", ["+Wl", "1"]),
    ):
        image = reader.read_dicom(folder / f"{name}.dcm", "image", DicomSettings(force=True))
        copy = Path(shutil.copy(folder / f"{name}.dcm", tmp_path))
        assert np.abs(image.pixels.astype(int) - by_dcmtk(copy, *options).astype(int)).max() <= TOLERANCE, name


def grey(dataset: Dataset, values: NDArray[Any], reader: DicomReader, folder: Path, **settings: Any) -> Any:
    """An image as it is read."""
    return reader.read_dicom(write(folder / "b.dcm", dataset, values), "image", DicomSettings(**settings))


def test_polarity(reader: DicomReader, tmp_path: Path) -> None:
    """`shape` and `photometric` each follow one attribute alone."""
    wrong = radiograph(RAMP, 12, PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="IDENTITY")
    plain = radiograph(RAMP, 12, PhotometricInterpretation="MONOCHROME1")
    upright = np.rint(RAMP / 4095 * 255)
    for dataset, polarity, inverse in (
        (wrong, "auto", False),
        (wrong, "shape", False),
        (wrong, "photometric", True),
        (plain, "auto", True),
        (plain, "photometric", True),
        (plain, "shape", False),
    ):
        image = grey(dataset, RAMP, reader, tmp_path, polarity=polarity)
        assert np.abs(image.pixels - (255 - upright if inverse else upright)).max() <= 1, (dataset, polarity)
    assert "leaves its MONOCHROME1 out" in str(grey(plain, RAMP, reader, tmp_path, polarity="shape").warnings)


def test_what_dcmtk_does_not_do(reader: DicomReader, tmp_path: Path) -> None:
    """Values by hand: a slope of zero, a window without width, numbers that are none, a trailing NUL."""
    upright = np.rint(RAMP / 4095 * 255)
    for attributes, remark in (
        ({"RescaleSlope": 0, "RescaleIntercept": 0}, ""),
        ({"WindowCenter": 100, "WindowWidth": 0}, "no width"),
        ({"WindowCenter": 2048, "WindowWidth": 4096, "VOILUTFunction": "CUBIC"}, "LINEAR was used"),
        ({"PresentationLUTShape": "LIN OD"}, "PresentationLUTShape is unknown"),
    ):
        image = grey(radiograph(RAMP, 12, **attributes), RAMP, reader, tmp_path)
        assert np.abs(image.pixels - upright).max() <= 1, attributes
        assert remark in str(image.warnings)
    data = write(tmp_path / "c.dcm", radiograph(RAMP, 12, WindowCenter="1234", WindowWidth="1000"), RAMP).read_bytes()
    for number, broken in ((b"DS\x04\x001234", b"DS\x04\x0012,4"), (b"DS\x04\x001000", b"DS\x04\x00nan ")):
        assert number in data
        (tmp_path / "c.dcm").write_bytes(data.replace(number, broken))
        image = reader.read_dicom(tmp_path / "c.dcm", "image", DicomSettings())
        assert np.abs(image.pixels - upright).max() <= 1
        assert "window cannot be read" in str(image.warnings)
    data = write(tmp_path / "c.dcm", radiograph(RAMP, 12), RAMP).read_bytes()
    (tmp_path / "c.dcm").write_bytes(data.replace(b"CS\x0c\0MONOCHROME2 ", b"CS\x0c\0MONOCHROME1\0"))
    assert np.abs(reader.read_dicom(tmp_path / "c.dcm", "image", DicomSettings()).pixels - (255 - upright)).max() <= 1


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"VOILUTSequence": lut(0, 12, np.arange(100))}, "fewer values"),
        ({"ModalityLUTSequence": item(LUTExplanation="none")}, "no descriptor"),
        ({"RescaleSlope": 1e305, "RescaleIntercept": 0}, "overflows"),
    ],
)
def test_a_step_that_cannot_be_carried_out(
    attributes: dict[str, Any], message: str, reader: DicomReader, tmp_path: Path
) -> None:
    """No picture rather than one on another scale."""
    dataset = radiograph(RAMP, 12, **attributes)
    if "VOILUTSequence" in attributes:
        dataset.VOILUTSequence[0][0x00283002].value = [4096, 0, 12]
    with pytest.raises(R2GenError, match=message) as error:
        grey(dataset, RAMP, reader, tmp_path)
    assert error.value.code == "R2G-DICOM-PIXELS"


def test_constant_pictures(reader: DicomReader, tmp_path: Path) -> None:
    """No report about a picture of one level, whether it is stored so or becomes so by its window."""
    flat = np.full_like(RAMP, 7)
    narrow = radiograph(RAMP, 12, WindowCenter=9000, WindowWidth=10)
    for dataset, values in ((radiograph(flat, 12), flat), (narrow, RAMP)):
        with pytest.raises(R2GenError, match="image is all black") as error:
            grey(dataset, values, reader, tmp_path)
        assert error.value.code == "R2G-IMAGE-BLANK"
