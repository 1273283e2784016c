"""What reading a DICOM file costs: processor time and wall-clock time of a process start, a header and an image.

python -m tests.helpers.dicom_cost
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from r2gen_export.studies.dicom.reader import DicomReader
from r2gen_export.studies.dicom.types import DicomSettings
from tests.helpers.dicom_files import radiograph, stored, write

SETTINGS = DicomSettings()
SYNTAXES = ("explicit", "rle", "lossless", "jls", "j2k", "ht")
REPEATS = 7


def child_seconds(reader: DicomReader) -> float:
    """Processor time of the child so far."""
    child = reader.process._child
    assert child is not None
    fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cost(work: Callable[[], object], reader: DicomReader, count: int = 1) -> str:
    """Mean processor time of parent and child, and the median of the wall-clock time, over `REPEATS`."""
    walls, start = [], time.process_time() + child_seconds(reader)
    for _ in range(REPEATS):
        began = time.perf_counter()
        for _ in range(count):
            work()
        walls.append((time.perf_counter() - began) / count)
    used = (time.process_time() + child_seconds(reader) - start) / REPEATS / count
    return f"{1000 * used:.1f} ms of processor time, {1000 * statistics.median(walls):.1f} ms wall-clock"


def main() -> None:
    """Print one line for each."""
    folder = Path(tempfile.mkdtemp())
    path = write(folder / "small.dcm", radiograph(stored(12, False), 12), stored(12, False))
    starts, used = [], []
    for _ in range(REPEATS):
        reader, began = DicomReader(), time.perf_counter()
        reader.read_header(path, "image", SETTINGS)
        starts.append(time.perf_counter() - began)
        used.append(child_seconds(reader))
        reader.close()
    sys.stdout.write(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    processor, wall = (1000 * statistics.median(times) for times in (used, starts))
    sys.stdout.write(f"start and first header: {processor:.0f} ms of processor time, {wall:.0f} ms wall-clock\n")
    reader = DicomReader()
    reader.read_header(path, "image", SETTINGS)
    sys.stdout.write(f"header: {cost(lambda: reader.read_header(path, 'image', SETTINGS), reader, 50)}\n")
    sys.stdout.write(f"image of 40 x 48: {cost(lambda: reader.read_dicom(path, 'image', SETTINGS), reader, 50)}\n")
    noise = np.random.default_rng(0).integers(0, 64, (2500, 3000)).astype(np.uint16)
    values = stored(12, False, 2500, 3000) // 2 + noise
    for syntax in SYNTAXES:
        large = write(folder / f"{syntax}.dcm", radiograph(values, 12), values, syntax)
        reader.read_dicom(large, "image", SETTINGS)  # imports the decoder
        sys.stdout.write(f"2500 x 3000 {syntax}: {cost(lambda: reader.read_dicom(large, 'image', SETTINGS), reader)}\n")  # noqa: B023
    reader.close()


if __name__ == "__main__":
    main()
