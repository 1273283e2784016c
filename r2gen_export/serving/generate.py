"""From the files of a study to the bytes of its results: the one place where the node meets reading and writing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from r2gen_export.bundle import bundle_sha256
from r2gen_export.errors import InternalError


@dataclass(frozen=True, repr=False)
class Job:
    """A report to be made.

    Attributes:
        paths: DICOM files of one study.
        forms: of `reporting.writers`, DICOM objects all.
        replaces: by form, the file of the earlier result that the new one names as its predecessor.
    """

    paths: tuple[Path, ...]
    forms: tuple[str, ...]
    replaces: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class Written:
    """A result: the bytes of a DICOM file, with the study, SOP class and instance that it says itself."""

    form: str
    study_uid: str
    sop_class: str
    sop_uid: str
    data: bytes


@dataclass(frozen=True, repr=False)
class Made:
    """The results of a study, in the order of the forms; `timings_ms` and `warnings` are the report's.

    `text` is the report with its warnings and notice.
    """

    results: tuple[Written, ...]
    timings_ms: dict[str, float]
    warnings: tuple[str, ...]
    text: str = ""


class Generator:
    """A loaded pipeline and what its results need beside its reports."""

    def __init__(
        self, bundle: str | None = None, device: str = "auto", preset: str | None = None, threads: int | None = None
    ) -> None:
        """Load the bundle.

        Raises:
            R2GenError: as `Pipeline.from_bundle`.
        """
        from r2gen_export.runtime.pipeline import Pipeline

        # A node learns no drafts: token ids of reports are patient data, and its bundle may be read-only.
        decoding = {"preset": preset} if preset else {}
        self._pipeline: Any = Pipeline.from_bundle(
            bundle, device=device, threads=threads, learn=False, decoding=decoding
        )
        self._preset = preset
        self._bundle_sha256 = bundle_sha256(self._pipeline.manifest)

    def make(self, job: Job) -> Made:
        """Read, report and write one study.

        Raises:
            R2GenError: `R2G-DICOM-*`, `R2G-IMAGE-*`, `R2G-GENERATE-*`; messages name views by number, and no patient.
        """
        from r2gen_export.reporting.predecessor import read_predecessor
        from r2gen_export.reporting.source import Source
        from r2gen_export.reporting.writers import render
        from r2gen_export.runtime.pictures import read_pictures
        from r2gen_export.studies.dicom.types import DicomSettings
        from r2gen_export.studies.dicom_studies import DicomFile, make_study, read_files

        settings = DicomSettings()
        files = [DicomFile(path, f"image {number}", named=True) for number, path in enumerate(job.paths, start=1)]
        study = make_study("study", read_files(files, settings), (), settings, Counter())
        read = read_pictures(study)
        report = self._pipeline.generate([picture.pixels for picture in read.pictures], preset=self._preset)
        # The pictures go into the results too, so they are decoded here, once; the report says what the files were.
        added = {stage: report.timings_ms[stage] + read.read_ms for stage in ("preprocess", "total")}
        timings = {**report.timings_ms, **added}
        inputs = tuple(picture.sha256 for picture in read.pictures)
        report = replace(report, inputs=inputs, warnings=read.warnings, timings_ms=timings)
        source = Source(study.identity, tuple(picture.pixels[..., 0] for picture in read.pictures), self._bundle_sha256)
        results = []
        for form in job.forms:
            earlier = job.replaces.get(form)
            data = render(form, report, source, replaces=read_predecessor(earlier) if earlier else None)
            results.append(Written(form, *_instance(data), data))
        return Made(tuple(results), dict(report.timings_ms), report.warnings, report.to_text())


def _instance(data: bytes) -> tuple[str, str, str]:
    """Study, SOP class and instance of a DICOM file.

    Raises:
        InternalError: it lacks one of them.
    """
    from io import BytesIO

    from pydicom import dcmread

    names = ["StudyInstanceUID", "SOPClassUID", "SOPInstanceUID"]
    head = dcmread(BytesIO(data), stop_before_pixels=True, specific_tags=names)
    study_uid, sop_class, sop_uid = (str(head.get(name) or "") for name in names)
    if not (study_uid and sop_class and sop_uid):
        raise InternalError("a result has no study, SOP class or instance")
    return study_uid, sop_class, sop_uid
