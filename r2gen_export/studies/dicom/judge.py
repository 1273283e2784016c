"""Whether a report may be written for a DICOM object, by its header: refused, flagged or sound. Nothing is guessed."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from r2gen_export.studies.dicom import terms
from r2gen_export.studies.dicom.values import UnreadableError, code, integer, items, numbers, text, texts

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

View = Literal["frontal", "lateral", "unknown"]


@dataclass
class Verdict:
    """What is wrong with an object (`refusals`, each continuing a sentence: "is in colour") and what is odd about it
    (`warnings`, whole sentences)."""

    refusals: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    view: View = "unknown"

    @property
    def problem(self) -> str:
        """All refusals as one sentence's end."""
        return ", and ".join(self.refusals)


def judge(dataset: Dataset, sop_class: str) -> Verdict:
    """Judge an object by its attributes; pixels are not looked at."""
    verdict = Verdict()
    kind = next((name for uid, name in terms.NOT_IMAGES if sop_class == uid or _below(sop_class, uid)), "")
    if kind:
        verdict.refusals.append(f"is {kind}, not an image")
        return verdict
    _judge_kind(dataset, sop_class, verdict)
    _judge_subject(dataset, verdict)
    _judge_body_part(dataset, verdict)
    _judge_format(dataset, verdict)
    verdict.view = _view(dataset, verdict)
    return verdict


def _below(uid: str, root: str) -> bool:
    return uid.startswith(root if root.endswith(".") else root + ".")


def _judge_kind(dataset: Dataset, sop_class: str, verdict: Verdict) -> None:
    modality = code(dataset, "Modality")
    if modality == "OT":
        verdict.warnings.append("its modality is OT (other): it may not be a radiograph")
    elif not modality:
        verdict.refusals.append("does not state its modality")
    elif modality not in ("CR", "DX"):
        shown = modality if modality in terms.MODALITIES else "of an unknown kind"
        verdict.refusals.append(f"has modality {shown}, not CR or DX")
    intent = code(dataset, "PresentationIntentType")
    if sop_class == terms.DX_FOR_PROCESSING or intent == "FOR PROCESSING":
        verdict.refusals.append("is for processing, not for presentation")
    elif sop_class in terms.SECONDARY_CAPTURES:
        verdict.warnings.append("it is a secondary capture: it may be a copy of a screen or a scanned film")
    elif not sop_class:
        verdict.warnings.append("it does not state its SOP class")
    elif sop_class not in (terms.CR, terms.DX_FOR_PRESENTATION):
        verdict.refusals.append("is not of the SOP class of a CR or DX image")
    for keyword, name in (("PatientID", "patient ID"), ("StudyInstanceUID", "study UID")):
        if not text(dataset, keyword):
            verdict.warnings.append(f"it has no {name}")
    if code(dataset, "BurnedInAnnotation") == "YES":
        verdict.refusals.append("has burnt-in annotation")
    if code(dataset, "QualityControlSubject") == "YES":
        verdict.warnings.append("it is a quality control image")


def _judge_subject(dataset: Dataset, verdict: Verdict) -> None:
    """A veterinary image by species, breed, or an owner (PS3.3 C.7.1.1)."""
    species = code(dataset, "PatientSpeciesDescription")
    codes = [code(item, "CodeValue") for item in items(dataset, "PatientSpeciesCodeSequence")]
    animal = (
        (species and species not in terms.HUMAN_WORDS)
        or any(value and value not in terms.HUMAN_CODES for value in codes)
        or text(dataset, "PatientBreedDescription")
        or items(dataset, "PatientBreedCodeSequence")
        or code(dataset, "ResponsiblePersonRole") == "OWNER"
    )
    if animal:
        verdict.refusals.append("is of an animal")


def _judge_body_part(dataset: Dataset, verdict: Verdict) -> None:
    part = code(dataset, "BodyPartExamined")
    words = [word for word in re.split(r"[^A-Z0-9Ó]+", part) if word]
    parts = {word.replace("Ó", "O") for word in words if word not in terms.VIEW_WORDS}
    regions = [region for item in items(dataset, "AnatomicRegionSequence") if (region := _region(item)) is not None]
    if parts and not parts <= terms.CHEST_WORDS:
        known = len(parts) == 1 and parts <= terms.OTHER_PARTS
        verdict.refusals.append(f"has body part {parts.pop()}, not the chest" if known else "is not of the chest")
    elif False in regions:
        verdict.refusals.append("has an anatomic region that is not the chest")
    elif not parts and not regions:
        verdict.warnings.append("it does not state its body part")


def _region(item: Dataset) -> bool | None:
    """Whether a code is of the chest; None when it is of no scheme that is known here."""
    scheme = terms.SCHEMES.get(code(item, "CodingSchemeDesignator"))
    value = code(item, "CodeValue")
    return value in terms.CHEST_CODES[scheme] if scheme and value else None


def _judge_format(dataset: Dataset, verdict: Verdict) -> None:
    try:
        samples, frames = integer(dataset, "SamplesPerPixel"), integer(dataset, "NumberOfFrames")
    except UnreadableError:
        verdict.refusals.append("does not state its number of colours and frames")
        return
    photometric = code(dataset, "PhotometricInterpretation")
    if photometric not in ("MONOCHROME1", "MONOCHROME2") or samples not in (None, 1):
        missing = not photometric and samples in (None, 1)
        verdict.refusals.append("does not state its photometric interpretation" if missing else "is in colour")
    if frames is not None and frames > 1:
        verdict.refusals.append("has several frames")
    try:
        aspect = numbers(dataset, "PixelAspectRatio") or numbers(dataset, "PixelSpacing")
    except UnreadableError:
        aspect = []
    if len(aspect) == 2 and min(aspect) > 0 and max(aspect) > 1.02 * min(aspect):
        verdict.warnings.append("its pixels are not square: the picture is shown distorted")


def _view(dataset: Dataset, verdict: Verdict) -> View:
    """By ViewPosition, else ViewCodeSequence, else PatientOrientation, which states the direction of rows."""
    position = code(dataset, "ViewPosition")
    views = {code(item, "CodeValue") for item in items(dataset, "ViewCodeSequence")}
    orientation = [value.upper() for value in texts(dataset, "PatientOrientation")]
    view: View = "unknown"
    if position in terms.FRONTAL or (not position and views & terms.FRONTAL_CODES):
        view = "frontal"
    elif position in terms.LATERAL or (not position and views & terms.LATERAL_CODES):
        view = "lateral"
    elif position or views - {""}:
        verdict.warnings.append("its view is neither frontal nor lateral, or unknown")
    else:
        verdict.warnings.append("it does not state its view")
        if len(orientation) == 2 and orientation[0][:1] in ("L", "R"):
            view = "frontal"
        elif len(orientation) == 2 and orientation[0][:1] in ("A", "P"):
            view = "lateral"
    other = {"frontal": terms.LATERAL_CODES, "lateral": terms.FRONTAL_CODES}.get(view, frozenset())
    if position and views & other:
        verdict.warnings.append("its ViewPosition and its ViewCodeSequence contradict each other")
    _check_orientation(orientation, view, verdict)
    return view


def _check_orientation(orientation: list[str], view: View, verdict: Verdict) -> None:
    """PatientOrientation: rows towards the patient's left, columns towards the feet (PS3.3 C.7.6.1.1.1)."""
    if len(orientation) != 2 or not all(orientation):
        return
    rows, columns = orientation[0][0], orientation[1][0]
    if rows in {"frontal": "AP", "lateral": "LR"}.get(view, ""):
        verdict.warnings.append("its view and its PatientOrientation contradict each other")
    if columns == "H" or (view == "frontal" and rows == "R"):
        verdict.warnings.append("its PatientOrientation says that it is mirrored or upside down")
    elif columns != "F":
        verdict.warnings.append("its PatientOrientation says that it is rotated")
