"""DICOM files grouped into studies by what their headers say, and studies that must not be reported refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from r2gen_export.errors import CodedError, R2GenError
from r2gen_export.studies.dicom.terms import NOT_IMAGES
from r2gen_export.studies.dicom.types import DicomHeader, DicomSettings
from r2gen_export.studies.identity import Identity
from r2gen_export.studies.study import Study

Progress = Callable[[int, int], None]
"""Called with the number of headers read and of those to read."""

OTHER_PICTURES: Final = frozenset(
    "BDUS BI BMD CFM CT DMS EMG ES FA GM IO IVOCT IVUS LEN LS MG MR NM OAM OCT OP OPM OPR OPT OPTBSV "  # noqa: SIM905
    "OPTENF OPV PA POS PT PX RF RTIMAGE SM TG US XA XC".split()
)
"""Modalities of pictures that are no radiographs of the chest (PS3.3 C.7.3.1.1.1)."""

OBJECTS: Final = "DICOM objects ({})"
SAME_INSTANCE: Final = "DICOM instances that are listed already"
"""Kinds of what is passed over. Modalities that are not in the list are not shown: they may hold any text."""

VIEW_ORDER: Final = {"frontal": 0, "unknown": 1, "lateral": 2}
"""A view of unknown direction is far more often frontal than lateral, so it comes before those known to be lateral."""

SUBJECT: Final = "the file"
"""What errors of a header call it: views have no number before their studies are known."""

LATERAL_BY_FORCE: Final = "lateral views only, read with --force"

ACCESSION_NUMBER: Final = "00080050"

LAST: Final = 1 << 62
"""For numbers that a header lacks."""


@dataclass(frozen=True)
class DicomFile:
    """A file of a call. `name`: what `--names` shows. `named`: the call or a list names it itself."""

    path: Path
    name: str
    named: bool = False


@dataclass(frozen=True)
class GivenStudy:
    """Images that a call, a list or an annotation says are one study, of which some are DICOM files."""

    name: str
    files: tuple[DicomFile, ...]
    others: tuple[Path, ...]


@dataclass(frozen=True)
class ReadFile:
    """A file with what reading its header gave: exactly one of `header` and `error` is set."""

    file: DicomFile
    header: DicomHeader | None = None
    error: CodedError | None = None


def read_files(files: Sequence[DicomFile], settings: DicomSettings, progress: Progress | None = None) -> list[ReadFile]:
    """The headers of files, each read once, in their order.

    Raises:
        R2GenError: `R2G-DEPENDENCY-MISSING`; what is wrong with a file itself is in its `ReadFile`.
    """
    if not files:
        return []
    from r2gen_export.studies.dicom.reader import read_header

    read = []
    for number, file in enumerate(files):
        if progress is not None:
            progress(number, len(files))
        try:
            read.append(ReadFile(file, header=read_header(file.path, SUBJECT, settings)))
        except CodedError as error:
            if error.code == "R2G-DEPENDENCY-MISSING":
                raise
            read.append(ReadFile(file, error=error))
    if progress is not None:
        progress(len(files), len(files))
    return read


def passed_over(read: ReadFile, settings: DicomSettings) -> str:
    """The kind under which an object is counted that is no radiograph, empty for one that belongs to a study.

    What a call names itself is never passed over; with `force`, no picture is.
    """
    if read.header is None or read.file.named:
        return ""
    uid = read.header.source.sop_class_uid
    if kind := next((name for root, name in NOT_IMAGES if uid.startswith(root)), ""):
        return OBJECTS.format(kind)
    modality = read.header.modality
    return OBJECTS.format(f"modality {modality}") if modality in OTHER_PICTURES and not settings.force else ""


def grouped(
    read: Sequence[ReadFile], settings: DicomSettings, counts: Counter[str]
) -> Iterator[tuple[DicomFile, Study]]:
    """The studies that files belong to, by StudyInstanceUID, each with its first file; a file without one is alone.

    Args:
        read: files in the order of the call.
        settings: how they are read.
        counts: is given the number of instances that are there twice.
    """
    groups: dict[str, list[ReadFile]] = {}
    for number, file in enumerate(read):
        uid = file.header.study_instance_uid if file.header is not None else ""
        groups.setdefault(uid or f"file {number}", []).append(file)
    for group in groups.values():
        yield group[0].file, make_study(group[0].file.name, group, (), settings, counts)


def make_study(
    name: str, read: Sequence[ReadFile], others: Sequence[Path], settings: DicomSettings, counts: Counter[str]
) -> Study:
    """One study of the given files: frontal views first, then those of unknown direction, then lateral ones; inside
    each by series number, instance number and the given order. Images that are not DICOM come behind.

    Args:
        name: of the study.
        read: its DICOM files, at least one.
        others: its other images.
        settings: how they are read. With `force`, refused images are views where there is no other DICOM view.
        counts: is given the number of instances that are there twice.

    Returns:
        The study with its identity. Images that must not be read, beside others that may, are left out with a warning.
        It has a refusal when a file cannot be parsed (that file's error), files are of several studies or patients
        (`R2G-DICOM-STUDY`), no view may be used (`R2G-DICOM-REFUSED`, `R2G-DICOM-PIXELS`) or all are lateral
        (`R2G-DICOM-REFUSED`).
    """
    headers = [file.header for file in read if file.header is not None]
    images = (*(file.file.path for file in read), *others)
    if refusal := next((file.error for file in read if file.error is not None), None) or mixture(headers):
        return Study(name, images, refusal=refusal)
    files = _distinct(read, counts)
    headers = [_header(file) for file in files]
    images = (*(file.file.path for file in files), *others)
    usable = [file for file in files if not _header(file).problem]
    if settings.force and not usable:
        usable = [file for file in files if _header(file).problem_code == "R2G-DICOM-REFUSED"]
    used = set(map(id, usable))
    rest = [_header(file) for file in files if id(file) not in used]
    if not usable and not others:
        return Study(name, images, _identity(headers), refusal=_refused(rest))
    warnings = _left_out(rest, len(images)) + _several_orders([_header(file) for file in usable])
    usable.sort(key=_place)
    ordered = [_header(file) for file in usable]
    refusal = None
    if not others and all(header.view == "lateral" for header in ordered):
        refusal = lateral_only(settings)
        warnings += (LATERAL_BY_FORCE,) if refusal is None else ()
    images = (*(file.file.path for file in usable), *others)
    return Study(name, images, _identity(ordered) if ordered else None, warnings, refusal)


def mixture(headers: Sequence[DicomHeader]) -> R2GenError | None:
    """Why files are not of one study and one patient, None when they are. `force` does not lift this."""
    studies = len({header.study_instance_uid for header in headers})
    patients = len({header.patient for header in headers})
    fix = "give the files of one study only; without --study, r2gen tells studies apart itself"
    if studies > 1:
        message = f"its files are of {studies} studies by their StudyInstanceUID"
        return R2GenError("R2G-DICOM-STUDY", message, fix)
    if patients > 1:
        message = f"its files are of {patients} patients by their names, identifiers and birth dates"
        return R2GenError("R2G-DICOM-STUDY", message, "correct the patient's data where the images come from")
    places = {(header.source, header.view, header.series_number, header.instance_number) for header in headers}
    if max(Counter(place[0].sop_instance_uid for place in places if place[0].sop_instance_uid).values(), default=1) > 1:
        message = "different images of it have the same SOPInstanceUID"
        return R2GenError("R2G-DICOM-STUDY", message, "correct the images where they come from")
    return None


def lateral_only(settings: DicomSettings) -> R2GenError | None:
    """The refusal of a study of lateral views, None with `force`."""
    if settings.force:
        return None
    message = "there are lateral views only, and reports are written for frontal ones"
    return R2GenError("R2G-DICOM-REFUSED", message, "add the frontal view, or read it with --force")


def _distinct(read: Sequence[ReadFile], counts: Counter[str]) -> list[ReadFile]:
    """Each instance once: the first file of it."""
    seen: set[str] = set()
    distinct = []
    for file in read:
        uid = file.header.source.sop_instance_uid if file.header is not None else ""
        if uid and uid in seen:
            counts[SAME_INSTANCE] += 1
            continue
        seen.add(uid)
        distinct.append(file)
    return distinct


def _header(file: ReadFile) -> DicomHeader:
    assert file.header is not None
    return file.header


def _place(file: ReadFile) -> tuple[int, int, int]:
    header = _header(file)
    series = LAST if header.series_number is None else header.series_number
    instance = LAST if header.instance_number is None else header.instance_number
    return VIEW_ORDER[header.view], series, instance


def _identity(headers: Sequence[DicomHeader]) -> Identity:
    first = headers[0]
    return Identity(first.attributes, first.character_set, tuple(header.source for header in headers))


def _refused(headers: Sequence[DicomHeader]) -> R2GenError:
    """The error of a study of which no image may be used."""
    problems = _problems(headers)
    which = "the image" if len(headers) == 1 else f"each of its {len(headers)} images"
    what = problems[0] if len(problems) == 1 else f"is refused: one {'; one '.join(problems)}"
    if all(header.problem_code == "R2G-DICOM-PIXELS" for header in headers):
        return R2GenError("R2G-DICOM-PIXELS", f"{which} {what}", "export it again from its source")
    return R2GenError("R2G-DICOM-REFUSED", f"{which} {what}", "--force reads what can be read, and the report says so")


def _left_out(headers: Sequence[DicomHeader], total: int) -> tuple[str, ...]:
    """A warning about images that are not used."""
    problems = _problems(headers)
    return (f"{len(headers)} of {total} images not used: one {'; one '.join(problems)}",) if problems else ()


def _several_orders(headers: Sequence[DicomHeader]) -> tuple[str, ...]:
    """A warning about images of one study that name different orders: a result is filed under one of them."""
    orders = {str((header.attributes.get(ACCESSION_NUMBER) or {}).get("Value") or "") for header in headers} - {""}
    return (f"its images have {len(orders)} accession numbers: results name that of view 1",) if len(orders) > 1 else ()


def _problems(headers: Sequence[DicomHeader]) -> list[str]:
    """Each once; they continue a sentence that begins with the image."""
    return list(dict.fromkeys(header.problem for header in headers))
