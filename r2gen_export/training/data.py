"""Studies of an R2Gen `annotation.json`, their pictures, and batches of unequal numbers of views."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from r2gen_export.bundle import ImageSpec
from r2gen_export.errors import CodedError, R2GenError
from r2gen_export.studies import annotation as study_files
from r2gen_export.studies.images import load_image, preprocess
from r2gen_export.training.hub import PAD_TOKEN_ID
from r2gen_export.training.source_files.preprocessor import image_spec

__all__ = [
    "Batch",
    "Item",
    "Study",
    "StudyDataset",
    "StudyLoader",
    "collate",
    "image_spec",
    "read_studies",
    "read_view",
    "tokenize_reports",
]

SPLITS: Final = ("train", "val", "test")
SUBJECT: Final = "the annotation"


@dataclass(frozen=True)
class Study:
    """One study. `where` is its place in the annotation ("train[3]"), for messages that must not carry its `id`."""

    where: str
    id: str
    report: str
    images: tuple[Path, ...]

    def view(self, number: int) -> str:
        """What messages call one of its images, counted from 0 as in the annotation."""
        return f"{self.where}.image_path[{number}] of {SUBJECT}"


class Item(NamedTuple):
    """A study ready to batch: `pixel_values` [V, 3, H, W], or `features` [T, C] averaged over its views."""

    pixel_values: Tensor | None
    features: Tensor | None
    input_ids: Tensor
    report: str


class Batch(NamedTuple):
    """Studies together: the views of all in `pixel_values` [sum(views), 3, H, W], or `features` [B, T, C].

    `input_ids` int64 [B, L]: report and end symbol, padded right with 0. `reports`: the cleaned texts.
    """

    pixel_values: Tensor | None
    features: Tensor | None
    views: tuple[int, ...]
    input_ids: Tensor
    reports: tuple[str, ...]


def read_studies(
    annotation: Path, base_dir: Path, split: str, clean: Callable[[str], str], limit: int | None = None
) -> list[Study]:
    """The studies of one split of an R2Gen annotation.

    Args:
        annotation: `{"train": [{"id", "report", "image_path": [...]}, ...], "val": [...], "test": [...]}`.
        base_dir: folder the image paths start from.
        split: one of `SPLITS`; the annotation may call it by another name of `study_files.SPLITS`.
        clean: report clean-up, one of `reports.CLEANERS`.
        limit: take the first studies only.

    Raises:
        R2GenError: `R2G-DATA-ANNOTATION` with the entry and what is wrong with it, `R2G-DATA-EMPTY` when the split
            has no study, `R2G-IMAGE-MISSING` with the number of absent images and the first entry concerned.
    """
    base_dir = Path(base_dir)
    splits, _ = study_files.read_splits(Path(annotation), SUBJECT)
    name = study_files.split_named(splits, split, SUBJECT)
    entries = study_files.entries({name: splits[name][:limit]}, name, SUBJECT, needs_report=True)
    studies = [
        Study(
            entry.place,
            entry.id,
            clean(entry.report or ""),
            tuple(study_files.resolve(path, [base_dir]) for path in entry.paths),
        )
        for entry in entries
    ]
    if not studies:
        raise R2GenError("R2G-DATA-EMPTY", f"split {split!r} of {SUBJECT} has no study", "name another annotation")
    absent = [
        study.view(number)
        for study in studies
        for number, path in enumerate(study.images)
        if not os.path.isfile(path)  # noqa: PTH113  says False where Path raises
    ]
    if absent:
        count = sum(len(study.images) for study in studies)
        message = f"{len(absent)} of {count} images of split {split!r} are not under --base-dir, the first {absent[0]}"
        raise R2GenError("R2G-IMAGE-MISSING", message, "correct --base-dir, or the paths in the annotation")
    return studies


def unread_parts(annotation: Path) -> list[str]:
    """What training does not read of an annotation, a line each: splits of other names, keys that are no splits.

    Raises:
        R2GenError: `R2G-DATA-ANNOTATION`.
    """
    splits, others = study_files.read_splits(Path(annotation), SUBJECT)
    remarks = study_files.describe_others(others, SUBJECT)
    unknown = [entries for name, entries in splits.items() if name not in study_files.KNOWN]
    if unknown:
        count = sum(map(len, unknown))
        remarks.append(f"{SUBJECT}: {count} studies in splits other than train, val and test are not read")
    return remarks


def read_view(study: Study, number: int, spec: ImageSpec) -> Tensor:
    """One preprocessed view [1, 3, H, W]. Raises `R2G-IMAGE-*` with its place in the annotation, without its name."""
    return torch.from_numpy(preprocess([load_image(study.images[number], study.view(number))], spec))


def tokenize_reports(
    reports: Sequence[str], tokenizer: PreTrainedTokenizerBase, end_sym: str, max_length: int
) -> list[Tensor]:
    """int64 ids of each report and end symbol, without BOS, cut at `max_length` (published `forward`)."""
    texts = [report + end_sym for report in reports]
    encoded = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=max_length).input_ids
    return [torch.tensor(ids, dtype=torch.long) for ids in encoded]


class StudyDataset(Dataset[Item | CodedError]):
    """Studies with their pictures (`features` None) or with features looked up instead.

    An item whose pictures cannot be read is the error itself: a DataLoader worker could not raise it with its code.

    Args:
        studies: as `read_studies` gives them.
        input_ids: as `tokenize_reports` gives them, one per study.
        spec: preprocessing.
        features: gives [T, C] of a study, averaged over its views.
    """

    def __init__(
        self,
        studies: Sequence[Study],
        input_ids: Sequence[Tensor],
        spec: ImageSpec,
        features: Callable[[Study], Tensor] | None = None,
    ) -> None:
        self.studies = studies
        self.input_ids = input_ids
        self.spec = spec
        self.features = features

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, index: int) -> Item | CodedError:
        study = self.studies[index]
        try:
            if self.features is not None:
                return Item(None, self.features(study), self.input_ids[index], study.report)
            views = [read_view(study, number, self.spec) for number in range(len(study.images))]
            return Item(torch.cat(views), None, self.input_ids[index], study.report)
        except CodedError as error:
            return error


def collate(items: Sequence[Item | CodedError]) -> Batch | CodedError:
    """One batch of studies with unequal numbers of views, on which the published collate breaks; or the first error."""
    good: list[Item] = []
    for item in items:
        if isinstance(item, CodedError):
            return item
        good.append(item)
    ids = torch.nn.utils.rnn.pad_sequence(
        [item.input_ids for item in good], batch_first=True, padding_value=PAD_TOKEN_ID
    )
    pixels = [item.pixel_values for item in good if item.pixel_values is not None]
    features = [item.features for item in good if item.features is not None]
    return Batch(
        torch.cat(pixels) if pixels else None,
        torch.stack(features) if features else None,
        tuple(len(views) for views in pixels),
        ids,
        tuple(item.report for item in good),
    )


class StudyLoader(DataLoader[Item | CodedError]):
    """A DataLoader of `StudyDataset` that raises what its workers found, code and all."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, CodedError):
                raise batch
            yield batch
