"""What it costs to find the studies of a folder of DICOM files: `python -m benchmarks.dicom_headers`.

The files are CR images of 2500 x 2048 pixels of 16 bits, one a study, in the page cache. Each sample walks the folder,
reads every header in the child process, and groups; the first one, which starts the child, is reported apart.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Final

from r2gen_export.studies.collect import collect_studies
from r2gen_export.system.cores import available_cores, processor_name

ROWS, COLUMNS = 2500, 2048
ROOT: Final = "1.2.826.0.1.3680043.10.1099"


def write_studies(folder: Path, count: int) -> None:
    """So many files of 10 MB, each a study of its own."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian

    pixels = bytes(range(256)) * (ROWS * COLUMNS * 2 // 256)
    for number in range(count):
        image = Dataset()
        image.SOPClassUID = ComputedRadiographyImageStorage
        image.SOPInstanceUID, image.StudyInstanceUID, image.SeriesInstanceUID = (
            f"{ROOT}.{number}.{part}" for part in (1, 2, 3)
        )
        image.PatientName, image.PatientID, image.Modality = f"Test^{number}", str(number), "CR"
        image.BodyPartExamined, image.ViewPosition, image.PhotometricInterpretation = "CHEST", "PA", "MONOCHROME2"
        image.Rows, image.Columns, image.SamplesPerPixel, image.PixelRepresentation = ROWS, COLUMNS, 1, 0
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelData = 16, 16, 15, pixels
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.save_as(folder / f"{number:05}", enforce_file_format=True)


def measure(folder: Path) -> tuple[float, float]:
    """Wall-clock time, and CPU time of this process without the child, of one collection, in milliseconds."""
    start, used = perf_counter(), os.times()
    collect_studies([folder])
    wall, after = perf_counter() - start, os.times()
    return wall * 1000, (after.user + after.system - used.user - used.system) * 1000


def main() -> None:
    """Print the samples and their median for each file as one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--files", type=int, default=200, metavar="N", help="number of files of 10 MB (default 200)")
    parser.add_argument("--samples", type=int, default=10, metavar="N", help="number of samples (default 10)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        write_studies(Path(scratch), options.files)
        first, *samples = (measure(Path(scratch)) for _ in range(1 + options.samples))
    record = {
        "files": options.files,
        "machine": f"{processor_name()}, {available_cores()} cores",
        "first_ms": round(first[0], 1),
        "samples_ms": [round(wall, 1) for wall, _ in samples],
        "parent_cpu_ms": [round(cpu, 1) for _, cpu in samples],
        "median_ms_per_file": round(statistics.median(wall for wall, _ in samples) / options.files, 3),
    }
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
