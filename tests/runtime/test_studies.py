"""Which studies a call means, from images, folders, lists and annotation files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from r2gen_export.errors import R2GenError
from r2gen_export.runtime.studies import Study, collect_studies, without_names


@pytest.fixture
def folder(tmp_path):
    """Two images, a study of two views in a subfolder, and what is no image."""
    for name in ("b.png", "a.JPG", "smith/2.png", "smith/1.png", ".hidden.png", "notes.csv", "empty/readme"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def _code(*arguments: Path) -> str:
    with pytest.raises(R2GenError) as caught:
        collect_studies(arguments)
    return caught.value.code


def test_images_are_the_views_of_one_study(folder):
    images = (folder / "b.png", folder / "a.JPG")
    found = collect_studies(images)
    assert not found.many
    assert [study.images for study in found.studies] == [images]


def test_a_folder_holds_many(folder):
    found = collect_studies([folder])
    assert found.many
    assert [study.images for study in found.studies] == [
        (folder / "a.JPG",),
        (folder / "b.png",),
        (folder / "smith/1.png", folder / "smith/2.png"),
    ]


def test_a_list_holds_a_study_a_line(folder):
    listing = folder / "studies.txt"
    listing.write_text("\ufeff# comment\nb.png\n\n'a b.png' smith/1.png\nwith blank.png\tb.png\n", encoding="utf-8")
    found = collect_studies([listing])
    assert [[image.name for image in study.images] for study in found.studies] == [
        ["b.png"],
        ["a b.png", "1.png"],
        ["with blank.png", "b.png"],
    ]
    assert found.studies[0].images[0] == folder / "b.png"


def test_an_annotation_holds_all_its_splits(folder):
    splits = {"train": [{"id": "t", "image_path": ["x/0.png"]}], "test": [{"id": 7, "image_path": ["1.png", "2.png"]}]}
    (folder / "annotation.json").write_text(json.dumps(splits))
    beside = collect_studies([folder / "annotation.json"])
    assert beside.studies == (
        Study("t", (folder / "x/0.png",)),
        Study("7", (folder / "1.png", folder / "2.png")),
    )
    (folder / "images").mkdir()
    assert collect_studies([folder]).studies[0].images == (folder / "images/x/0.png",)  # and before the folder's images


def test_what_cannot_be_meant(folder, tmp_path):
    assert _code() == "R2G-DATA-EMPTY"
    assert _code(folder / "absent.png") == "R2G-IMAGE-MISSING"
    assert _code(folder / "b.png", folder) == "R2G-CONFIG-VALUE"
    assert _code(folder / "empty") == "R2G-DATA-EMPTY"


@pytest.mark.parametrize("text", ["[]", "{", '{"train": [{"id": 1}]}', '{"train": 3}', '"a"'])
def test_a_broken_annotation(tmp_path, text):
    (tmp_path / "annotation.json").write_text(text)
    assert _code(tmp_path) == "R2G-DATA-ANNOTATION"


@pytest.mark.parametrize("content", [b"'open quote\n", b"\xff\xfe\x00"])
def test_a_broken_list(tmp_path, content):
    (tmp_path / "list.txt").write_bytes(content)
    assert _code(tmp_path / "list.txt") == "R2G-DATA-ANNOTATION"


def test_messages_lose_their_names():
    study = Study("smith", (Path("ward/smith_1950.png"), Path("ward/smith_1950_lateral.png")))
    for spelling in ("ward/smith_1950_lateral.png", "smith_1950.png", str(Path("ward/smith_1950.png").absolute())):
        message = without_names(R2GenError("R2G-IMAGE-FORMAT", f"{spelling} is no image"), study, 4)
        assert "smith" not in message
        assert "of study 4" in message


def test_aliases_are_not_replaced_again():
    """Names of one letter stand inside the words that replace them."""
    study = Study("s", (Path("a"), Path("i"), Path("1/a")))
    error = R2GenError("R2G-IMAGE-MISSING", "no file 1/a, nor i")
    second = "image 2 of study 7"
    assert without_names(error, study, 7) == f"no f{second}le image 3 of study 7, nor {second}"
