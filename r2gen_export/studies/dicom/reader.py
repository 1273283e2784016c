"""DICOM files, read in a child process: headers, and pixels as a viewer shows them."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from r2gen_export.errors import InternalError, R2GenError, cause_of
from r2gen_export.studies.dicom.codecs import missing
from r2gen_export.studies.dicom.limits import Limits
from r2gen_export.studies.dicom.process import ChildProcess, DiedError, MissingPackageError, NotStartedError, SlowError
from r2gen_export.studies.dicom.types import DicomHeader, DicomImage, DicomSettings
from r2gen_export.studies.identity import SourceImage
from r2gen_export.studies.refusal import AGAIN, RefusedError

VIEWS: Final[dict[str, Literal["frontal", "lateral", "unknown"]]] = {
    "frontal": "frontal",
    "lateral": "lateral",
    "unknown": "unknown",
}


class DicomReader:
    """Reads DICOM files in a child process of its own. Safe to share between threads.

    Args:
        limits: what one file may take.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.process = ChildProcess(limits or Limits())

    def read_header(self, path: Path, subject: str, settings: DicomSettings) -> DicomHeader:
        """As the function `read_header`."""
        answer, _ = self._ask("header", path, subject, settings)
        fields = answer.get("header")
        try:
            return _header(fields)
        except (KeyError, TypeError) as error:
            raise InternalError(f"the process that reads DICOM gave no header of {subject}") from error

    def read_dicom(self, path: Path, subject: str, settings: DicomSettings) -> DicomImage:
        """As the function `read_dicom`."""
        answer, raw = self._ask("image", path, subject, settings)
        try:
            shape = (int(answer["rows"]), int(answer["columns"]))
            pixels = np.frombuffer(raw, np.uint8).reshape(shape)
            return DicomImage(pixels, str(answer["sha256"]), _texts(answer["warnings"]), _text(answer["header_sha256"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InternalError(f"the process that reads DICOM gave no pixels of {subject}") from error

    def close(self) -> None:
        """End the child process. Reading again starts another."""
        self.process.close()

    def _ask(self, task: str, path: Path, subject: str, settings: DicomSettings) -> tuple[dict[str, Any], bytearray]:
        # The child keeps the working directory it was started in.
        request = {"task": task, "path": os.path.abspath(path), "polarity": settings.polarity, "force": settings.force}  # noqa: PTH100
        try:
            answer, raw = self._answer(request)
            if "code" not in answer:
                return answer, raw
            error = RefusedError(str(answer["code"]), str(answer["what"]), str(answer["fix"]))
        except RefusedError as refused:
            error = refused
        raise R2GenError(error.code, f"{subject} {error.what}", error.fix)

    def _answer(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytearray]:
        if importlib.util.find_spec("pydicom") is None:
            raise missing("pydicom")
        try:
            return self.process.ask(request)
        except MissingPackageError as error:
            raise missing(error.package) from error
        except SlowError as error:
            what = f"was not read within {self.process.limits.seconds:g} seconds"
            raise RefusedError("R2G-DICOM-LIMIT", what, AGAIN) from error
        except NotStartedError as error:
            cause = f" ({cause_of(error.__cause__)})" if error.__cause__ else ""
            raise InternalError(f"the process that reads DICOM does not start{cause}") from error
        except DiedError as error:
            what = "ended the process that reads DICOM: it is damaged"
            raise RefusedError("R2G-DICOM-PIXELS", what, AGAIN) from error


_reader: Final = DicomReader()


def read_header(path: Path, subject: str, settings: DicomSettings) -> DicomHeader:
    """What the header of a DICOM file says; its pixels are not read.

    Args:
        path: the file. No error names it.
        subject: what errors call the image, such as "study 3, view 1".
        settings: `force` and `polarity` change nothing here: `problem` is stated in any case.

    Raises:
        R2GenError: `R2G-DICOM-FORMAT`, `R2G-DICOM-LIMIT`, `R2G-DEPENDENCY-MISSING`, `R2G-IMAGE-MISSING`;
            `R2G-DICOM-PIXELS` when parsing ends the child process.
    """
    return _reader.read_header(path, subject, settings)


def read_dicom(path: Path, subject: str, settings: DicomSettings) -> DicomImage:
    """The pixels of a DICOM file as a viewer shows them (see DICOM.md beside this module).

    Args:
        path: the file. No error names it.
        subject: what errors call the image.
        settings: with `force`, an image that is refused otherwise is read where it has grey pixels, with a warning.

    Raises:
        R2GenError: as `read_header`, and `R2G-DICOM-REFUSED`, `R2G-DICOM-PIXELS`, `R2G-IMAGE-BLANK`.
    """
    return _reader.read_dicom(path, subject, settings)


def _header(fields: Any) -> DicomHeader:
    uids = ("sop_class_uid", "sop_instance_uid", "series_instance_uid")
    source = SourceImage(*(_text(fields[key]) for key in (*uids, "header_sha256")))
    attributes = fields["attributes"]
    if not isinstance(attributes, dict):
        raise TypeError
    return DicomHeader(
        source=source,
        study_instance_uid=_text(fields["study_instance_uid"]),
        patient=_text(fields["patient"]),
        modality=_text(fields["modality"]),
        view=VIEWS[_text(fields["view"])],
        series_number=_number(fields["series_number"]),
        instance_number=_number(fields["instance_number"]),
        problem=_text(fields["problem"]),
        warnings=_texts(fields["warnings"]),
        attributes=attributes,
        character_set=_texts(fields["character_set"]),
        problem_code=_text(fields["problem_code"]),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(_text(part) for part in value)


def _number(value: Any) -> int | None:
    if value is not None and not isinstance(value, int):
        raise TypeError
    return value
