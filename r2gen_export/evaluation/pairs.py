"""Predictions and references brought together, study by study; what does not belong together is refused."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from r2gen_export.errors import R2GenError
from r2gen_export.evaluation.predictions import Prediction, Predictions
from r2gen_export.evaluation.references import Reference, ReferenceSet
from r2gen_export.studies.annotation import resolve
from r2gen_export.studies.images import content_sha256
from r2gen_export.studies.refusal import RefusedError

ONE_SPLIT = "r2gen infer --split writes the reports of one split"


@dataclass(frozen=True)
class Pairs:
    """The studies of an evaluation, in the order of the references.

    Attributes:
        ids: may identify patients; not for messages nor results.
        hypotheses, references: the texts as they were given.
        patients: of each study; None where the ids do not tell.
        token_ids: of each hypothesis, where known.
        failed: studies that have no report; `empty`: studies whose report is empty, those included.
        left_out: studies of the set that have no reference.
        images: number of images of each study; None where the references do not tell.
        other_references: reports that bring a reference of their own, and of those how many have another text than the
            reference that is used.
    """

    ids: tuple[str, ...]
    hypotheses: tuple[str, ...]
    references: tuple[str, ...]
    patients: tuple[str, ...] | None
    token_ids: tuple[tuple[int, ...] | None, ...]
    failed: int
    left_out: int
    images: tuple[int, ...] | None = None
    other_references: tuple[int, int] = (0, 0)

    @property
    def empty(self) -> int:
        """Number of hypotheses without a word."""
        return sum(not text.strip() for text in self.hypotheses)

    def sha256(self) -> str:
        """Of ids and references: two evaluations with the same one are of the same studies."""
        return hashlib.sha256(json.dumps([self.ids, self.references]).encode()).hexdigest()


def pair(predictions: Predictions, references: ReferenceSet | None, images: Path | None = None) -> Pairs:
    """Bring predictions and references together by id.

    Args:
        predictions: as read.
        references: None where the predictions bring their own.
        images: folder that the images of an annotation are in; predictions without ids (`infer` without `--names`) are
            then told by the content of their images.

    Raises:
        R2GenError: `R2G-EVAL-STUDIES`.
    """
    own = references is None
    if references is None:
        references = _own_references(predictions)
    by_id = _by_id(predictions, references, images)
    studies = references.studies
    expected = {reference.id for reference in studies}
    missing = [reference for reference in studies if reference.id not in by_id]
    extra = [entry for key, entry in by_id.items() if key not in expected | references.left_out_ids]
    if missing or extra:
        raise _mismatch(missing, extra, references, predictions, len(by_id))
    entries = [by_id[reference.id] for reference in studies]
    patients = tuple(reference.patient or "" for reference in studies)
    return Pairs(
        ids=tuple(reference.id for reference in studies),
        hypotheses=tuple(entry.text for entry in entries),
        references=tuple(reference.text for reference in studies),
        patients=patients if all(patients) else None,
        token_ids=tuple(entry.token_ids for entry in entries),
        failed=sum(entry.failed for entry in entries),
        left_out=references.left_out,
        images=tuple(len(reference.paths) for reference in studies) if all(study.paths for study in studies) else None,
        other_references=(0, 0) if own else _other_references(entries, studies),
    )


def _other_references(entries: Sequence[Prediction], studies: Sequence[Reference]) -> tuple[int, int]:
    both = [
        (entry.reference, study.text)
        for entry, study in zip(entries, studies, strict=True)
        if entry.reference is not None and entry.reference.strip()
    ]
    return len(both), sum(theirs.split() != ours.split() for theirs, ours in both)


def _own_references(predictions: Predictions) -> ReferenceSet:
    studies = []
    for entry in predictions.entries:
        if entry.reference is None or entry.id is None:
            message = f"{entry.place} has no reference to be compared with"
            raise R2GenError("R2G-EVAL-STUDIES", message, "give --annotation or --references")
        studies.append(Reference(entry.place, entry.id, entry.reference))
    texts = tuple(study for study in studies if study.text.strip())
    if not texts:
        raise R2GenError("R2G-DATA-EMPTY", "no study of the predictions has a reference", "give --annotation")
    left_out = frozenset(study.id for study in studies if not study.text.strip())
    return ReferenceSet(texts, left_out_ids=left_out)


def _by_id(predictions: Predictions, references: ReferenceSet, images: Path | None) -> dict[str, Prediction]:
    entries = predictions.entries
    if any(entry.id is None for entry in entries):
        identities = _ids_by_images(entries, references, images)
    else:
        identities = [entry.id or "" for entry in entries]
        known = {reference.id for reference in references.studies} | references.left_out_ids
        if not known & set(identities):  # MIMIC-CXR's ids are written with `s` and without
            identities = [name[1:] if name[:1] == "s" and name[1:] in known else name for name in identities]
    by_id: dict[str, Prediction] = {}
    for identity, entry in zip(identities, entries, strict=True):
        if identity in by_id:
            message = f"{by_id[identity].place} and {entry.place} are of the same study"
            raise R2GenError("R2G-EVAL-STUDIES", message, "keep one report a study")
        by_id[identity] = entry
    return by_id


def _ids_by_images(entries: Sequence[Prediction], references: ReferenceSet, images: Path | None) -> list[str]:
    """Ids of reports that have none, by the SHA-256 of their images. Failures have no images: by their number."""
    fix = "write them with infer --names, or give --annotation with --base-dir"
    if images is None:
        raise R2GenError("R2G-EVAL-STUDIES", "the predictions have no ids, and no images to tell studies by", fix)
    owners = _owners(references, images, fix)
    first: int | None = None
    identities: list[str | None] = []
    positions = {reference.id: at for at, reference in enumerate(references.studies)}
    for entry in entries:
        identity = entry.id or owners.get(entry.inputs)
        if identity is None and not entry.failed:
            message = f"the images of {entry.place} are not those of any study of the annotation's split"
            raise R2GenError(
                "R2G-EVAL-STUDIES", message, f"name the annotation and the split they were made from; {ONE_SPLIT}"
            )
        if identity is not None and entry.number is not None and identity in positions:
            shift = entry.number - positions[identity]
            first = shift if first in (None, shift) else -1
        identities.append(identity)
    return [
        identity or _by_number(entry, references, first) for identity, entry in zip(identities, entries, strict=True)
    ]


def _by_number(entry: Prediction, references: ReferenceSet, first: int | None) -> str:
    at = -1 if first is None or first < 0 or entry.number is None else entry.number - first
    if references.left_out or not 0 <= at < len(references.studies):
        message = f"{entry.place} says that a study has no report, and not which"
        raise R2GenError("R2G-EVAL-STUDIES", message, "write the predictions with infer --names")
    return references.studies[at].id


def _owners(references: ReferenceSet, images: Path, fix: str) -> Mapping[tuple[str, ...], str]:
    hashes: dict[tuple[str, ...], str] = {}
    twice: Counter[tuple[str, ...]] = Counter()
    for reference in references.studies:
        try:
            key = tuple(content_sha256(resolve(path, [images])) for path in reference.paths)
        except RefusedError as error:
            message = f"an image of {reference.place} {error.what}"
            raise R2GenError("R2G-EVAL-STUDIES", message, fix) from error
        twice[key] += 1
        hashes[key] = reference.id
    if any(count > 1 for count in twice.values()):
        raise R2GenError("R2G-EVAL-STUDIES", "several studies have the same images, and the reports no ids", fix)
    return hashes


def _mismatch(
    missing: Sequence[Reference],
    extra: Sequence[Prediction],
    references: ReferenceSet,
    predictions: Predictions,
    given: int,
) -> R2GenError:
    total = len(references.studies)
    splits = Counter((references.elsewhere or {}).get(entry.id or "", "") for entry in extra)
    other = [f"{count} of split {name}" for name, count in splits.items() if name in ("train", "val", "test")]
    parts = []
    if missing:
        parts.append(f"{len(missing)} of {total} references have no prediction (first: {missing[0].place})")
    if extra:
        belongs = f", {' and '.join(other)} of the annotation" if other else ""
        parts.append(f"{len(extra)} of {given} predictions have no reference (first: {extra[0].place}){belongs}")
    fix = "compare reports and references of the same studies" + (f"; {ONE_SPLIT}" if other else "")
    return R2GenError("R2G-EVAL-STUDIES", "; ".join(parts), fix)
