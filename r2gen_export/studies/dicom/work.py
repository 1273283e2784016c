"""What the child process does with one file: its header as JSON, or its pixels."""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import numpy as np
from numpy.typing import NDArray

from r2gen_export.errors import errno_text
from r2gen_export.studies.dicom.codecs import missing
from r2gen_export.studies.dicom.grey import grey_table
from r2gen_export.studies.dicom.identity_attributes import character_set, identity_attributes, patient_text
from r2gen_export.studies.dicom.judge import Verdict, judge
from r2gen_export.studies.dicom.limits import Limits
from r2gen_export.studies.dicom.parse import Bounded, Parsed, parse
from r2gen_export.studies.dicom.stored import Format, pixel_format, stored_pixels
from r2gen_export.studies.dicom.types import Polarity
from r2gen_export.studies.dicom.values import code, integer_or_none, text
from r2gen_export.studies.pixels import few_levels
from r2gen_export.studies.refusal import AGAIN, RefusedError
from r2gen_export.system.regular_file import open_regular

MOST_CHARACTERS: Final = 256
"""Of a UID, which has 64 at most, and of other short attributes."""

FORCE: Final = "--force reads it all the same, and the report says so"


def serve(request: dict[str, Any], limits: Limits) -> tuple[dict[str, Any], memoryview]:
    """Answer one request: `{"task": "header" | "image", "path": ..., "polarity": ..., "force": ...}`.

    Returns:
        What `reader` makes its result of, and the pixels. An error is `{"code": ..., "what": ..., "fix": ...}`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with _opened(Path(request["path"]), limits) as file:
                if request["task"] == "header":
                    size = os.fstat(file.fileno()).st_size
                    return {"header": header(cast(BinaryIO, Bounded(file, size)), size, limits)}, memoryview(b"")
                pixels, answer = image(file.read(), limits, request["polarity"], request["force"])
                return answer, pixels.data.cast("B")
    except RefusedError as error:
        return _error(error)
    except MemoryError:
        what = f"needs more than {limits.memory_bytes >> 20} MiB to be read"
        answer, raw = _error(RefusedError("R2G-DICOM-LIMIT", what, AGAIN))
        return {**answer, "last": True}, raw
    except ModuleNotFoundError as error:
        return _error(missing((error.name or "a package").partition(".")[0]))
    except BaseException as error:  # a panic of a Rust library is no Exception
        what = f"cannot be parsed ({type(error).__name__}): it is damaged"
        return _error(RefusedError("R2G-DICOM-FORMAT", what, AGAIN))


def _error(error: RefusedError) -> tuple[dict[str, Any], memoryview]:
    return {"code": error.code, "what": error.what, "fix": error.fix}, memoryview(b"")


def _opened(path: Path, limits: Limits) -> BinaryIO:
    missing_ = "R2G-IMAGE-MISSING"
    try:
        file = open_regular(path)
    except FileNotFoundError as error:
        raise RefusedError(missing_, "is not there", "check the path") from error
    except PermissionError as error:
        raise RefusedError(missing_, "may not be read", "check its permissions") from error
    except (OSError, ValueError) as error:
        reason = errno_text(error) or "no path"
        raise RefusedError(missing_, f"cannot be read ({reason})", "check the path and its disk") from error
    if os.fstat(file.fileno()).st_size > limits.file_bytes:
        file.close()
        what = f"is larger than {limits.file_bytes >> 20} MiB"
        raise RefusedError("R2G-DICOM-LIMIT", what, "give a smaller image")
    return cast(BinaryIO, file)


def header(file: BinaryIO, size: int, limits: Limits) -> dict[str, Any]:
    """The fields of `DicomHeader`, without reading the pixels."""
    parsed = parse(file, size, limits)
    verdict, pixel_problem, _ = examine(parsed, limits)
    dataset = parsed.dataset
    whose = _whose(parsed, verdict.warnings)
    return {
        **whose,
        "header_sha256": _header_sha256(whose),
        "modality": code(dataset, "Modality")[:MOST_CHARACTERS],
        "view": verdict.view,
        "series_number": integer_or_none(dataset, "SeriesNumber"),
        "instance_number": integer_or_none(dataset, "InstanceNumber"),
        "problem": verdict.problem or pixel_problem,
        "problem_code": "R2G-DICOM-PIXELS" if pixel_problem and not verdict.problem else "R2G-DICOM-REFUSED",
        "warnings": verdict.warnings,
    }


def _whose(parsed: Parsed, remarks: list[str]) -> dict[str, Any]:
    """The fields of `DicomHeader` that say which instance it is and whom it belongs to."""
    dataset = parsed.dataset
    return {
        "sop_class_uid": parsed.sop_class[:MOST_CHARACTERS],
        "sop_instance_uid": text(dataset, "SOPInstanceUID")[:MOST_CHARACTERS],
        "series_instance_uid": text(dataset, "SeriesInstanceUID")[:MOST_CHARACTERS],
        "study_instance_uid": text(dataset, "StudyInstanceUID")[:MOST_CHARACTERS],
        "patient": patient_text(dataset),
        "attributes": identity_attributes(dataset, remarks),
        "character_set": character_set(dataset)[:MOST_CHARACTERS],
    }


def _header_sha256(whose: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(whose, sort_keys=True).encode()).hexdigest()


def examine(parsed: Parsed, limits: Limits) -> tuple[Verdict, str, Format | None]:
    """The verdict on the header, and what is wrong with its pixels.

    Raises:
        RefusedError: `R2G-DICOM-LIMIT`.
    """
    verdict = judge(parsed.dataset, parsed.sop_class)
    if parsed.problem:
        verdict.refusals.append(parsed.problem)
    try:
        return verdict, "", pixel_format(parsed, limits)
    except RefusedError as error:
        if error.code != "R2G-DICOM-PIXELS":
            raise
        return verdict, error.what, None


def image(data: bytes, limits: Limits, polarity: Polarity, force: bool) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """Pixels uint8 [H, W] as a viewer shows them, and the other fields of `DicomImage`.

    Raises:
        RefusedError: why there are none.
    """
    parsed = parse(io.BytesIO(data), len(data), limits)
    verdict, _, _ = examine(parsed, limits)
    if verdict.problem and not force:
        raise RefusedError("R2G-DICOM-REFUSED", verdict.problem, FORCE)
    shape = pixel_format(parsed, limits)
    if integer_or_none(parsed.dataset, "SamplesPerPixel") not in (None, 1):
        raise RefusedError("R2G-DICOM-PIXELS", "is in colour, which is not read", "export it in grey")
    if code(parsed.dataset, "PhotometricInterpretation") not in ("MONOCHROME1", "MONOCHROME2"):
        raise RefusedError("R2G-DICOM-PIXELS", "is in colour, which is not read", "export it in grey")
    remarks = list(verdict.warnings)
    if verdict.problem:
        remarks.append(f"read by --force although it {verdict.problem}")
    table, odd = grey_table(parsed.dataset, shape.bits_stored, shape.signed, polarity)
    stored, more = _decoded(parsed, shape)
    pixels, present = _looked_up(table, stored)
    if len(present) == 1:
        level = f"of one grey value ({present[0]})" if present[0] else "black"
        raise RefusedError("R2G-IMAGE-BLANK", f"is all {level}", "export it again from its source")
    remarks += [*odd, *more, *few_levels(present)]
    header_sha256 = _header_sha256(_whose(parsed, remarks))
    sha256 = hashlib.sha256(data).hexdigest()
    fields = {"rows": shape.rows, "columns": shape.columns, "sha256": sha256, "header_sha256": header_sha256}
    return pixels, {**fields, "warnings": remarks}


def _looked_up(table: NDArray[np.uint8], stored: NDArray[np.uint16]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """`table[stored]`, in blocks of rows because numpy makes 64-bit indices of them; and the levels that are in it."""
    pixels = np.empty(stored.shape, np.uint8)
    counts = np.zeros(256, np.int64)
    step = max(1, (1 << 22) // stored.shape[1])
    for row in range(0, len(stored), step):
        pixels[row : row + step] = table[stored[row : row + step]]
        counts += np.bincount(pixels[row : row + step].reshape(-1), minlength=256)
    return pixels, np.flatnonzero(counts).astype(np.uint8)


def _decoded(parsed: Parsed, shape: Format) -> tuple[NDArray[np.uint16], list[str]]:
    """`stored_pixels`; what a decoder raises is the file's fault."""
    try:
        return stored_pixels(parsed, shape)
    except (RefusedError, MemoryError, ModuleNotFoundError):
        raise
    except BaseException as error:
        what = "has pixels that cannot be decoded: they are truncated or damaged"
        raise RefusedError("R2G-DICOM-PIXELS", what, AGAIN) from error
