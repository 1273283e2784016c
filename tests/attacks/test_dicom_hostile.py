"""Every file of pydicom's own test set, and mutated files: an image or a coded error, no traceback, no hang.

The fuzz outside CI: `python -m tests.helpers.dicom_fuzz 100000 STATE.json`, which goes on where it was ended.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom.data
import pytest

from r2gen_export.errors import CODES, R2GenError
from r2gen_export.studies.dicom.reader import DicomReader
from r2gen_export.studies.dicom.types import DicomImage, DicomSettings
from tests.helpers.dicom_fuzz import main, mutated, summary

FUZZED = int(os.environ.get("R2GEN_DICOM_FUZZ", "300"))

READABLE = {
    "RG1_J2KI.dcm", "RG1_J2KR.dcm", "RG1_UNCI.dcm", "RG1_UNCR.dcm", "mlut_18.dcm", "vlut_04.dcm", "image_dfl.dcm",
    "chrArab.dcm", "chrFren.dcm", "chrFrenMulti.dcm", "chrGerm.dcm", "chrGreek.dcm", "chrH31.dcm", "chrH32.dcm",
    "chrHbrw.dcm", "chrI2.dcm", "chrRuss.dcm", "chrX1.dcm", "chrX2.dcm",
}  # fmt: skip
"""Of all those files, the ones that may have a report: CR chests, and secondary captures of modality OT."""

FORCED = {
    "JPEG-LL.dcm", "JPEG-lossy.dcm", "JPGExtended.dcm", "JPGLosslessP14SV1_1s_1f_8b.dcm", "JPEGLSNearLossless_08.dcm",
    "JPEGLSNearLossless_16.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm",
    "MR_small_jpeg_ls_lossless.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm", "J2K_pixelrep_mismatch.dcm",
    "RG3_J2KI.dcm", "RG3_UNCR.dcm", "693_J2KR.dcm", "CT_small.dcm", "6154",
}  # fmt: skip
"""Some that `force` reads: every decoder is among them."""


def files() -> list[Path]:
    """Installed test files of pydicom and pydicom-data, whatever they are. Nothing is downloaded."""
    folders = [Path(pydicom.data.__file__).parent]
    folders += [Path(pytest.importorskip("data_store").__file__).parent / "data"]
    return sorted(
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    )


@pytest.fixture(scope="module")
def reader() -> Iterator[DicomReader]:
    """One child process for this module."""
    reader = DicomReader()
    yield reader
    reader.close()


def outcome(reader: DicomReader, path: Path, force: bool) -> DicomImage | R2GenError:
    """An image or a coded error; anything else fails the test."""
    try:
        return reader.read_dicom(path, "study 1", DicomSettings(force=force))
    except R2GenError as error:
        assert error.code in CODES
        assert error.message.startswith("study 1 ")
        assert str(path) not in error.render()
        return error


def test_every_file_of_pydicom(reader: DicomReader) -> None:
    """What is read is exactly what may be; with `force` also the rest that has grey pixels."""
    read, forced, pixels = set(), set(), {}
    paths = files()
    for path in paths:
        if isinstance(image := outcome(reader, path, force=False), DicomImage):
            read.add(path.name)
            pixels[path.name] = image.pixels
        elif isinstance(outcome(reader, path, force=True), DicomImage):
            forced.add(path.name)
        try:
            header = reader.read_header(path, "study 1", DicomSettings())
            assert bool(header.problem) == (path.name not in read)
        except R2GenError as error:
            assert error.code == "R2G-DICOM-FORMAT", path.name
    assert len(paths) > 200
    assert read == READABLE
    assert forced >= FORCED
    assert reader.process.counts.deaths == 0
    assert reader.process.counts.slow == 0
    assert np.abs(pixels["RG1_UNCR.dcm"].astype(int) - pixels["RG1_J2KR.dcm"]).max() < 5  # the files differ by so much


def test_mutated_files(tmp_path: Path) -> None:
    """300 in CI; R2GEN_DICOM_FUZZ=N reads more."""
    state = main(FUZZED, tmp_path / "state.json")
    assert state.done == FUZZED
    assert not (state.crashes or state.deaths or state.slow or state.named), summary(state)
    assert sum(count for name, count in state.outcomes.items() if name.startswith("image of")) > FUZZED / 10
    # A run that was ended goes on, and a seed gives its file again.
    assert main(FUZZED + 5, tmp_path / "state.json").done == FUZZED + 5
    assert mutated(17) == mutated(17)
