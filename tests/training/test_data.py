"""Annotations, preprocessing settings and batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from r2gen_export.bundle import ImageSpec
from r2gen_export.errors import R2GenError
from r2gen_export.studies.images import load_views
from r2gen_export.studies.report_cleaning import clean_iu_xray, clean_none
from r2gen_export.training.data import (
    Batch,
    Item,
    Study,
    StudyDataset,
    StudyLoader,
    collate,
    image_spec,
    read_studies,
    tokenize_reports,
    unread_parts,
)
from r2gen_export.training.hub import load_tokenizer
from tests.helpers.dicom_studies import write
from tests.helpers.tiny import MEAN, STD, make_annotation, make_tiny_tokenizer, make_tiny_vision

SPEC = ImageSpec(32, 32, 3, 1 / 255, MEAN, STD)


@pytest.fixture
def annotation(tmp_path: Path) -> Path:
    return make_annotation(tmp_path, train=5, val=2, test=1)


def test_dicom_files_are_images(tmp_path: Path) -> None:
    write(tmp_path / "images/1.dcm")
    write(tmp_path / "images/2", 2, BodyPartExamined="HAND")
    studies = [
        Study(f"train[{n}]", "id", "report", (tmp_path / "images" / name,)) for n, name in enumerate(("1.dcm", "2"))
    ]
    item, refused = dataset(studies)[0], dataset(studies)[1]
    assert isinstance(item, Item)
    assert item.pixel_values is not None
    expected = load_views(studies[0].images, SPEC)
    torch.testing.assert_close(item.pixel_values, torch.from_numpy(expected), rtol=0, atol=0)
    assert isinstance(refused, R2GenError)
    assert refused.code == "R2G-DICOM-REFUSED"
    assert refused.message.startswith("train[1].image_path[0] of the annotation has body part HAND")


def edit(annotation: Path, change: dict[str, Any]) -> None:
    """Change the third training entry; None removes a key."""
    record = json.loads(annotation.read_text())
    record["train"][2] = {k: v for k, v in {**record["train"][2], **change}.items() if v is not None}
    annotation.write_text(json.dumps(record))


def dataset(studies: list[Study]) -> StudyDataset:
    return StudyDataset(studies, [torch.arange(3 + number) + 1 for number in range(len(studies))], SPEC)


def test_studies_of_a_split(annotation: Path) -> None:
    base = annotation.parent / "images"
    studies = read_studies(annotation, base, "train", clean_iu_xray)
    entries = json.loads(annotation.read_text())["train"]
    assert [study.id for study in studies] == [entry["id"] for entry in entries]
    assert [study.report for study in studies] == [clean_iu_xray(entry["report"]) for entry in entries]
    assert [study.where for study in studies] == [f"train[{number}]" for number in range(5)]
    assert studies[2].images == tuple(base / name for name in entries[2]["image_path"])
    assert [study.id for study in read_studies(annotation, base, "train", clean_none, 2)] == ["train0", "train1"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"id": None}, "lacks id"),
        ({"report": None, "image_path": None}, "lacks report, image_path"),
        ({"report": 5}, "report is a number"),
        ({"id": ["a"]}, "id is a list"),
        ({"image_path": []}, "image_path is not"),
        ({"image_path": "a.png"}, "image_path is not"),
        ({"image_path": ["a.png", 3]}, "image_path is not"),
    ],
)
def test_a_broken_entry_is_named_by_its_place(annotation: Path, change: dict[str, Any], named: str) -> None:
    edit(annotation, change)
    with pytest.raises(R2GenError, match=named) as caught:
        read_studies(annotation, annotation.parent / "images", "train", clean_none)
    assert caught.value.code == "R2G-DATA-ANNOTATION"
    assert caught.value.message.startswith("train[2]")
    assert "train2" not in str(caught.value)  # the study's id


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (None, "cannot be read"),
        ("{", "is not JSON"),
        ("[]", "holds a list"),
        ("{}", "has no split: neither train, val nor test; it is empty"),
        ('{"val": []}', "has no split 'train', only val"),
        ('{"train": {}}', "has an object as split 'train', expected a list"),
        ('{"train": [], "train": []}', "names a key twice"),
        ('{"train": [7]}', r"train\[0\] of the annotation: is a number"),
    ],
)
def test_a_broken_annotation(tmp_path: Path, text: str | None, named: str) -> None:
    path = tmp_path / "annotation.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(R2GenError, match=named) as caught:
        read_studies(path, tmp_path, "train", clean_none)
    assert caught.value.code == "R2G-DATA-ANNOTATION"


def test_an_annotation_from_windows(annotation: Path) -> None:
    """A byte order mark or UTF-16, `\\` between folders, and `validation` for `val`."""
    base = annotation.parent / "images"
    record = json.loads(annotation.read_text())
    (base / "sub").mkdir()
    (base / "train0_0.png").rename(base / "sub/train0_0.png")
    record["train"][0]["image_path"] = ["sub\\train0_0.png"]
    record["validation"] = record.pop("val")
    record["extra"], record["about"] = record["validation"][:1], {}
    for encoding in ("utf-8-sig", "utf-16"):
        annotation.write_text(json.dumps(record), encoding=encoding)
        (first, *_) = read_studies(annotation, base, "train", clean_none)
        assert first.images == (base / "sub/train0_0.png",)
        assert len(read_studies(annotation, base, "val", clean_none)) == 2
    assert unread_parts(annotation) == [
        "the annotation: 1 keys hold no studies and are not read",
        "the annotation: 1 studies in splits other than train, val and test are not read",
    ]
    annotation.write_text(json.dumps({**record, "dev": []}))
    with pytest.raises(R2GenError, match="under several names: validation, dev"):
        read_studies(annotation, base, "val", clean_none)


def test_empty_split_and_absent_images(annotation: Path) -> None:
    base = annotation.parent / "images"
    (base / "train2_1.png").unlink()
    (base / "train4_0.png").unlink()
    with pytest.raises(R2GenError, match=r"2 of 9 images .* the first train\[2\]\.image_path\[1\]") as caught:
        read_studies(annotation, base, "train", clean_none)
    assert caught.value.code == "R2G-IMAGE-MISSING"
    annotation.write_text('{"train": []}')
    with pytest.raises(R2GenError) as caught:
        read_studies(annotation, base, "train", clean_none)
    assert caught.value.code == "R2G-DATA-EMPTY"


def test_unequal_numbers_of_views_in_one_batch(annotation: Path) -> None:
    studies = read_studies(annotation, annotation.parent / "images", "train", clean_none)
    batch = collate([dataset(studies)[number] for number in (2, 0, 1)])
    assert isinstance(batch, Batch)
    assert batch.views == (3, 1, 2)
    assert batch.pixel_values is not None
    expected = [torch.from_numpy(load_views(studies[number].images, SPEC)) for number in (2, 0, 1)]
    assert torch.equal(batch.pixel_values, torch.cat(expected))
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5], [1, 2, 3, 0, 0], [1, 2, 3, 4, 0]]
    assert batch.reports == tuple(studies[number].report for number in (2, 0, 1))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_keeps_its_code_and_hides_its_name(annotation: Path, workers: int) -> None:
    base = annotation.parent / "images"
    Image.new("L", (40, 36)).save(base / "train1_1.png")
    studies = read_studies(annotation, base, "train", clean_none)
    loader = StudyLoader(dataset(studies), batch_size=2, collate_fn=collate, num_workers=workers)
    with pytest.raises(R2GenError, match=r"train\[1\]\.image_path\[1\]") as caught:
        list(loader)
    assert caught.value.code == "R2G-IMAGE-BLANK"
    assert "train1_1" not in str(caught.value)


def test_report_ids(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(make_tiny_tokenizer(tmp_path))
    whole, cut = (tokenize_reports(["the heart is enlarged ."], tokenizer, "</s>", length)[0] for length in (50, 3))
    assert whole[-1] == 2
    assert 1 not in whole
    assert tokenizer.decode(whole[:-1]) == "the heart is enlarged ."
    assert cut.tolist() == whole[:3].tolist()


def write_processor(folder: Path, **config: Any) -> Path:
    make_tiny_vision(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    return folder


def test_image_spec_of_the_published_swin(tmp_path: Path) -> None:
    """The file of microsoft/swin-base-patch4-window7-224: size as a number, no rescaling named."""
    folder = write_processor(
        tmp_path, do_normalize=True, do_resize=True, feature_extractor_type="ViTFeatureExtractor", resample=3, size=224,
        image_mean=list(MEAN), image_std=list(STD),
    )  # fmt: skip
    assert image_spec(folder) == ImageSpec(224, 224, 3, 1 / 255, MEAN, STD)


def test_image_spec_defaults_are_those_of_transformers(tmp_path: Path) -> None:
    from transformers import ViTImageProcessor

    spec, processor = image_spec(write_processor(tmp_path)), ViTImageProcessor()
    assert (spec.height, spec.width) == (processor.size["height"], processor.size["width"])
    assert spec.resample == processor.resample
    assert spec.rescale_factor == processor.rescale_factor
    assert (list(spec.mean), list(spec.std)) == (processor.image_mean, processor.image_std)
    plain = image_spec(write_processor(tmp_path, do_normalize=False, do_rescale=False))
    assert (plain.rescale_factor, plain.mean, plain.std) == (1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    "config",
    [
        {"image_processor_type": "ConvNextImageProcessor"},
        {"size": {"shortest_edge": 224}},
        {"do_center_crop": True},
        {"do_resize": False},
        {"size": 0},
    ],
)
def test_unsupported_preprocessing(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(R2GenError) as caught:
        image_spec(write_processor(tmp_path, **config))
    assert caught.value.code == "R2G-MODEL-UNSUPPORTED"


def test_no_preprocessing(tmp_path: Path) -> None:
    (make_tiny_vision(tmp_path) / "preprocessor_config.json").unlink()
    with pytest.raises(R2GenError) as caught:
        image_spec(tmp_path)
    assert caught.value.code == "R2G-MODEL-MISSING"
