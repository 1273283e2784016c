"""`r2gen infer --format sr, pdf, ...`: each report as a file of its own, whole or not there."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from r2gen_export.commands.console import write_bytes
from r2gen_export.errors import CodedError, R2GenError
from r2gen_export.system.files import atomic_file, write_error

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from r2gen_export.commands.infer_results import InferRequest
    from r2gen_export.reporting.predecessor import Predecessor
    from r2gen_export.reporting.report import Report
    from r2gen_export.reporting.writers import Form
    from r2gen_export.runtime.outcome import Outcome
    from r2gen_export.runtime.pipeline import Pipeline
    from r2gen_export.studies.dicom.types import DicomSettings
    from r2gen_export.studies.study import Study, StudyList

OURS: Final = re.compile(r"study-\d{4,}\.[a-z0-9]+")
"""Files of a folder of results, by the numbers of the studies: names of images may identify patients."""


def written_form(request: InferRequest) -> Form | None:
    """The form of the call's files; None for text and json, which are no documents."""
    if request.format in ("text", "json"):
        return None
    from r2gen_export.reporting.writers import FORMS

    release = "-r5" if request.format == "fhir" and request.fhir_version == "R5" else ""
    return FORMS[request.format + release]


def check_request(request: InferRequest, form: Form) -> None:
    """Refuse, before any work, what cannot be written.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE`, `R2G-OUTPUT-WRITE`, `R2G-OUTPUT-EXISTS`, `R2G-DEPENDENCY-MISSING`.
    """
    from r2gen_export.reporting.writers import check_installed

    if request.resume:
        message = f"--resume goes on with a file of --format text or json, not with {form.name}"
        raise R2GenError(
            "R2G-CONFIG-VALUE", message, "leave --resume out, and name another --out DIR or add --overwrite"
        )
    if request.replaces is not None and not form.is_dicom:
        message = f"--replaces names a DICOM result, and --format {request.format} has no place for it"
        raise R2GenError("R2G-CONFIG-VALUE", message, "take --format sr, dicom-pdf or kos")
    check_installed(form)
    if request.out is None:
        if not form.is_text and sys.stdout is not None and sys.stdout.isatty():
            message = f"--format {form.name} is not for a terminal"
            raise R2GenError("R2G-CONFIG-VALUE", message, f"give --out report{form.suffix}, or a pipe")
    elif request.out.exists() and not request.overwrite:
        if not request.out.is_dir() or any(request.out.iterdir()):
            what = "is there already" if request.out.is_file() else "is a folder with files in it"
            raise R2GenError("R2G-OUTPUT-EXISTS", f"{request.out} {what}", "name another, or add --overwrite")
    elif request.out.exists() and not (request.out.is_dir() or request.out.is_file()):
        raise R2GenError("R2G-OUTPUT-WRITE", f"{request.out} is not a regular file", "name a file or a folder")


@dataclass(frozen=True)
class Documents:
    """Where the documents of a call go.

    Attributes:
        form: of the documents.
        dicom: how DICOM files are read.
        file: of the only study, None when that goes to stdout or to the folder.
        folder: a file for each study goes there, named by its number.
        replaces: the earlier result that the only study's replaces.
    """

    form: Form
    dicom: DicomSettings
    file: Path | None
    folder: Path | None
    replaces: Predecessor | None

    @classmethod
    def of(cls, request: InferRequest, studies: StudyList, form: Form) -> Documents:
        """Where they will go.

        Raises:
            R2GenError: `R2G-CONFIG-VALUE`, `R2G-OUTPUT-WRITE`, `R2G-DICOM-FORMAT`, `R2G-DICOM-STUDY`;
                `R2G-DICOM-SOURCE` when the form needs DICOM files and no study has any.
        """
        out = request.out
        if studies.many and (out is None or out.is_file()):
            message = f"--format {form.name} writes a file for each study"
            raise R2GenError("R2G-CONFIG-VALUE", message, "give a folder: --out DIR")
        if studies.many and request.replaces is not None:
            message = "--replaces names the result of one study, and this call is about many"
            raise R2GenError("R2G-CONFIG-VALUE", message, "report that study alone")
        check_sources(form, studies.studies)
        replaces = None
        if request.replaces is not None:
            from r2gen_export.reporting.predecessor import read_predecessor
            from r2gen_export.reporting.source import Source
            from r2gen_export.reporting.writers import check_predecessor

            replaces = read_predecessor(request.replaces)
            check_predecessor(form, Source(studies.studies[0].identity, (), ""), replaces)
        folder = out if out is not None and (studies.many or out.is_dir()) else None
        return cls(form, request.dicom, None if folder else out, folder, replaces)

    def clear(self) -> None:
        """Remove the results of an earlier run from the folder, which `check_request` allows with `--overwrite` only:
        one of them could be taken for that of a study that fails this time.

        Raises:
            R2GenError: `R2G-OUTPUT-WRITE`.
        """
        if self.folder is None or not self.folder.is_dir():
            return
        try:
            for path in self.folder.iterdir():
                if OURS.fullmatch(path.name) and path.suffix == self.form.suffix and path.is_file():
                    path.unlink()
        except OSError as error:
            raise write_error(self.folder, error) from error

    def write_single(self, pipeline: Pipeline, study: Study, report: Report) -> None:
        """The document of the only study, to stdout, the file or the folder of `--out`.

        Raises:
            R2GenError: what `render` raises; `R2G-OUTPUT-WRITE`.
        """
        data = self._rendered(pipeline, study, report, "")
        self.clear()
        if self.folder is not None:
            self._put(self.folder / self.name(1), data)
        elif self.file is not None:
            self._put(self.file, data)
        else:
            write_bytes(data)

    def write(self, pipeline: Pipeline, study: Study, outcome: Outcome) -> Outcome:
        """The document of one of many studies; the outcome, with an error where it cannot be written in this form.

        Raises:
            R2GenError: `R2G-OUTPUT-WRITE`, which ends the call.
        """
        from r2gen_export.runtime.outcome import Outcome, coded

        if outcome.report is None:
            return outcome
        subject = f"study {outcome.study}"
        try:
            data = self._rendered(pipeline, study, outcome.report, subject)
        except Exception as error:
            failure = coded(error)
            named = failure if failure.message.startswith(subject) else failure.about(subject)
            return Outcome(outcome.study, error=named)
        assert self.folder is not None
        self._put(self.folder / self.name(outcome.study), data)
        return outcome

    def _rendered(self, pipeline: Pipeline, study: Study, report: Report, subject: str) -> bytes:
        from r2gen_export.bundle import bundle_sha256
        from r2gen_export.reporting.source import Source
        from r2gen_export.reporting.writers import render

        pictures = _pictures(study, report, subject, self.dicom) if self.form.needs_pictures else ()
        source = Source(study.identity, pictures, bundle_sha256(pipeline.manifest))
        return render(self.form.name, report, source, replaces=self.replaces)

    def name(self, number: int) -> str:
        """The name of a study's file in the folder."""
        return f"study-{number:04d}{self.form.suffix}"

    @staticmethod
    def _put(path: Path, data: bytes) -> None:
        with atomic_file(path) as scratch:
            scratch.write_bytes(data)


def check_sources(form: Form, studies: Sequence[Study]) -> None:
    """Refuse, before any report is generated, a call in which no study can be written in this form.

    Raises:
        R2GenError: `R2G-DICOM-SOURCE`.
    """
    from r2gen_export.reporting.source import Source
    from r2gen_export.reporting.writers import check_source

    refusals: list[CodedError] = []
    for study in studies:
        try:
            check_source(form, Source(study.identity, (), ""))
        except R2GenError as error:
            refusals.append(error)
    if len(refusals) == len(studies):
        raise refusals[0]


def _pictures(study: Study, report: Report, subject: str, dicom: DicomSettings) -> tuple[NDArray[np.uint8], ...]:
    """The views as the report was made from them, [H, W] uint8 each: read again, and the same bytes as then."""
    from r2gen_export.runtime.pictures import read_pictures
    from r2gen_export.studies.pixels import grey_levels

    pictures = read_pictures(study, subject, dicom).pictures
    if tuple(picture.sha256 for picture in pictures) != report.inputs:
        message = f"{subject or 'the study'}: an image changed while its report was written"
        raise R2GenError("R2G-IMAGE-FORMAT", message, "run the command again")
    return tuple(grey_levels(picture.pixels) for picture in pictures)
