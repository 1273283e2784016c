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

from r2gen_export.studies.dicom.reader import DicomReader
from r2gen_export.studies.dicom.types import DicomSettings
from tests.helpers.dicom_files import LOSSY, SYNTAXES, by_dcmtk, change, lut, radiograph, stored, write

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
    for case in cases():
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
