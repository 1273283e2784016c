"""An earlier result of the same study, which a new one replaces."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from r2gen_export.errors import R2GenError
from r2gen_export.reporting.unvalidated import unvalidated
from r2gen_export.system.extras import needs

MOST_BYTES: Final = 64 << 20
"""Larger files are no result of ours."""

MANUFACTURER: Final = "r2gen"
"""Of all our DICOM documents."""

FIX: Final = "give the file that an earlier r2gen infer --format sr, dicom-pdf or kos wrote for this study"


@dataclass(frozen=True, repr=False)
class Predecessor:
    """The DICOM instance of an earlier result.

    Attributes:
        sop_class_uid, sop_instance_uid, series_instance_uid, study_instance_uid: as the instance has them.
        instance_number: its number in its series; the next revision has the number after it.
    """

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    instance_number: int = 1


def read_predecessor(path: Path) -> Predecessor:
    """The earlier result in a file.

    Raises:
        R2GenError: `R2G-DICOM-FORMAT` when it is no DICOM document; `R2G-DEPENDENCY-MISSING` without pydicom.
    """
    try:
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            raise R2GenError("R2G-DICOM-FORMAT", "the file of --replaces is not a result of r2gen", FIX)
        data = path.read_bytes()
    except OSError as error:
        raise R2GenError("R2G-DICOM-FORMAT", "the file of --replaces cannot be read", FIX) from error
    return predecessor_of(data)


def predecessor_of(document: bytes) -> Predecessor:
    """The earlier result whose bytes are given, as `render` returned them.

    Raises:
        R2GenError: as `read_predecessor`.
    """
    with needs("dicom"):
        import pydicom

    try:
        with unvalidated():
            dataset = pydicom.dcmread(io.BytesIO(document), stop_before_pixels=True)
            number = str(dataset.get("InstanceNumber") or "")
            maker = str(dataset.get("Manufacturer") or "")
            predecessor = Predecessor(
                sop_class_uid=str(dataset.SOPClassUID),
                sop_instance_uid=str(dataset.SOPInstanceUID),
                series_instance_uid=str(dataset.SeriesInstanceUID),
                study_instance_uid=str(dataset.StudyInstanceUID),
                instance_number=int(number) if number.isdecimal() else 1,
            )
    except Exception as error:  # whatever pydicom raises about a user's file is the file's fault
        raise R2GenError("R2G-DICOM-FORMAT", "the result to replace is not a DICOM document", FIX) from error
    if maker != MANUFACTURER:
        # Such as a radiologist's report, or an image of the study: an archive would take it for outdated.
        raise R2GenError("R2G-DICOM-FORMAT", "the result to replace was not written by r2gen", FIX)
    if "" in (predecessor.sop_class_uid, predecessor.sop_instance_uid, predecessor.study_instance_uid):
        raise R2GenError("R2G-DICOM-FORMAT", "the result to replace lacks its UIDs", FIX)
    return predecessor
