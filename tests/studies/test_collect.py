"""Which studies a call means, from images, folders, lists and annotation files, and what it says of the rest."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from r2gen_export.errors import R2GenError
from r2gen_export.studies.collect import Study, StudyList, collect_studies

PHANTOM = Path(__file__).parents[1] / "data/phantom.png"
NAMES = ("b.png", "a.JPG", "smith/2.png", "smith/1.png", ".hidden.png", "notes.csv", "empty/readme")


@pytest.fixture
def folder(tmp_path):
    """Two images, a study of two views in a subfolder, and what is no image."""
    for name in NAMES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def _error(*arguments: Path, together: bool = False) -> R2GenError:
    with pytest.raises(R2GenError) as caught:
        collect_studies(arguments, together=together)
    return caught.value


def _images(listed: StudyList, base: Path) -> list[list[str]]:
    return [[os.fspath(image.relative_to(base)) for image in study.images] for study in listed.studies]


def test_each_image_is_a_study(folder):
    images = (folder / "b.png", folder / "a.JPG")
    listed = collect_studies(images)
    assert listed.many
    assert [study.images for study in listed.studies] == [(image,) for image in images]
    assert not collect_studies(images[:1]).many


def test_images_are_one_study_where_that_is_said(folder):
    images = (folder / "b.png", folder / "a.JPG")
    listed = collect_studies(images, together=True)
    assert not listed.many
    assert [study.images for study in listed.studies] == [images]
    assert _error(folder, together=True).code == "R2G-CONFIG-VALUE"


def test_a_folder_holds_many(folder):
    listed = collect_studies([folder])
    assert listed.many
    assert _images(listed, folder) == [["a.JPG"], ["b.png"], ["smith/1.png", "smith/2.png"]]
    assert listed.warnings == ("passed over: hidden images and folders: 1",)
    assert listed.remarks == ("passed over: other files: 2",)


def test_images_beside_folders_and_lists(folder):
    (folder / "list.txt").write_text("smith/1.png\n")
    listed = collect_studies([folder / "b.png", folder / "smith", folder / "list.txt"])
    assert _images(listed, folder) == [["b.png"], ["smith/1.png"], ["smith/2.png"], ["smith/1.png"]]


def test_the_innermost_folder_is_a_study(tmp_path):
    """The layout of MIMIC-CXR-JPG."""
    names = ["p10/p100/s50/a.jpg", "p10/p100/s50/b.jpg", "p10/p100/s51/a.jpg", "p11/p110/s60/a.jpg", "p11/p110/top.jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    listed = collect_studies([tmp_path])
    expected = [names[:2], names[2:3], ["p11/p110/top.jpg"], ["p11/p110/s60/a.jpg"]]
    assert _images(listed, tmp_path) == expected
    assert (listed.warnings, listed.remarks) == ((), ())


def test_files_without_suffix_count_by_their_content(tmp_path):
    shutil.copy(PHANTOM, tmp_path / "IM0001")
    shutil.copy(PHANTOM, tmp_path / "1.2.840.113619.2")
    shutil.copy(PHANTOM, tmp_path / "old.bak")
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "x.dcm").write_bytes(b"")
    (tmp_path / "LICENSE").write_bytes(b"text")
    listed = collect_studies([tmp_path])
    assert _images(listed, tmp_path) == [["1.2.840.113619.2"], ["IM0001"], ["x.dcm"]]
    assert [study.refusal and study.refusal.code for study in listed.studies] == [None, None, "R2G-DICOM-FORMAT"]
    (warning,) = listed.warnings
    assert "DICOMDIR files: 1" in warning
    assert "images with another suffix than .png, .jpg, .tif: 1" in warning
    assert listed.remarks == ("passed over: other files: 1",)


def test_links_list_nothing_twice_and_loops_end(tmp_path):
    (tmp_path / "data/s1").mkdir(parents=True)
    (tmp_path / "data/s1/a.png").write_bytes(b"")
    (tmp_path / "data/s1/up").symlink_to(tmp_path / "data")
    (tmp_path / "data/s2").symlink_to(tmp_path / "data/s1")
    (tmp_path / "data/z.png").symlink_to(tmp_path / "data/s1/a.png")
    (tmp_path / "data/gone.png").symlink_to(tmp_path / "nothing")
    listed = collect_studies([tmp_path / "data", tmp_path / "data/s1"])
    assert _images(listed, tmp_path) == [["data/s1/a.png"]]
    assert listed.warnings == (
        "passed over: files and folders that cannot be read: 1; links to what is listed already: 4",
    )


def test_a_deep_tree_is_walked(tmp_path):
    """Deeper than Python recurses."""
    place = tmp_path.joinpath(*["d"] * 150)
    place.mkdir(parents=True)
    (place / "a.png").write_bytes(b"")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 100)
    try:
        assert len(collect_studies([tmp_path]).studies) == 1
    finally:
        sys.setrecursionlimit(limit)


def test_a_list_holds_a_study_a_line(folder):
    listing = folder / "studies.txt"
    for name in ("a b.png", "with blank.png", "o'brien.png", "#1.png"):
        (folder / name).write_bytes(b"")
    listing.write_text(
        "\ufeff# comment\nb.png\n\n'a b.png' smith/1.png\nwith blank.png\tb.png\na b.png\no'brien.png\n#1.png\n"
        'a\\ b.png smith/2.png\nb.png smith\\2.png\n"a b.png"\t"b.png"\n',
        encoding="utf-8",
    )
    assert _images(collect_studies([listing]), folder) == [
        ["b.png"],
        ["a b.png", "smith/1.png"],
        ["with blank.png", "b.png"],
        ["a b.png"],
        ["o'brien.png"],
        ["#1.png"],
        ["a b.png", "smith/2.png"],
        ["b.png", "smith/2.png"],
        ["a b.png", "b.png"],
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lists_and_annotations_in_every_encoding(folder, encoding, end):
    (folder / "list.txt").write_bytes(f"b.png{end}smith\\1.png{end}".encode(encoding))
    record = {"train": [{"id": "\u00e9", "image_path": ["b.png"]}, {"id": 2, "image_path": ["smith\\1.png"]}]}
    (folder / "annotation.json").write_bytes(json.dumps(record, indent=1).replace("\n", end).encode(encoding))
    for name in ("list.txt", "annotation.json"):
        assert _images(collect_studies([folder / name]), folder) == [["b.png"], ["smith/1.png"]]


def test_a_list_of_bytes_that_are_no_text(folder):
    name = os.fsdecode(b"lat\xe4n.png")
    (folder / name).write_bytes(b"")
    (folder / "list.txt").write_bytes(b"lat\xe4n.png\n")
    assert _images(collect_studies([folder / "list.txt"]), folder) == [[name]]


def test_an_annotation_holds_all_its_splits(folder):
    splits = {
        "train": [{"id": "t", "image_path": ["b.png"]}],
        "validation": [{"id": "v", "image_path": ["a.JPG"]}],
        "test": [{"id": 7, "image_path": ["smith/1.png", "smith/2.png"]}],
        "extra": [{"id": "x", "image_path": ["gone.png"]}],
        "about": {"version": 1},
        "empty": [],
    }
    (folder / "annotation.json").write_text(json.dumps(splits))
    beside = collect_studies([folder / "annotation.json"])
    assert beside.studies == (
        Study("t", (folder / "b.png",)),
        Study("v", (folder / "a.JPG",)),
        Study("7", (folder / "smith/1.png", folder / "smith/2.png")),
        Study("x", (folder / "gone.png",)),
    )
    assert beside.remarks == ("the annotation: 2 keys hold no studies and are not read",)
    (folder / "images").mkdir()
    (folder / "images/b.png").write_bytes(b"")
    taken = collect_studies([folder])  # before the folder's images
    assert [study.images[0].relative_to(folder) for study in taken.studies[:2]] == [Path("images/b.png"), Path("a.JPG")]
    assert taken.remarks[0] == "the folder's annotation.json names its studies; other files are not looked at"


def test_what_cannot_be_meant(folder):
    assert _error().code == "R2G-DATA-EMPTY"
    assert _error(folder / "absent.png").code == "R2G-IMAGE-MISSING"
    empty = _error(folder / "empty")
    assert empty.code == "R2G-DATA-EMPTY"
    assert empty.message == "no study: no image is there; passed over: other files: 1"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "holds a list"),
        ("{", "is not JSON: line 1"),
        ("[" * 100_000, "is not JSON"),
        ("{}", "has no split: neither train, val nor test; it is empty"),
        ('{"doe^john": 1}', "it has 1 other keys"),
        ('{"doe^john": [{"image_path": ["a.png"]}]}', "split 1[0] of the annotation: lacks id"),
        ('{"train": [{"id": 1}]}', "train[0] of the annotation: lacks image_path"),
        ('{"train": [{"id": 1, "image_path": []}]}', "image_path is not a list of one or more paths"),
        ('{"train": 3}', "has a number as split 'train'"),
        ('{"train": [], "train": []}', "names a key twice"),
        ('"a"', "holds text"),
    ],
    ids=range(11),
)
def test_a_broken_annotation(tmp_path, text, said):
    (tmp_path / "annotation.json").write_text(text)
    error = _error(tmp_path)
    assert error.code == "R2G-DATA-ANNOTATION"
    assert said in error.message
    assert error.fix
    assert "doe" not in error.render() and str(tmp_path) not in error.render()


def test_a_broken_list(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"# comment\n'open quote\n")
    error = _error(tmp_path / "list.txt")
    assert (error.code, error.message) == ("R2G-DATA-ANNOTATION", "line 2 of the list: no closing quotation")
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00")
    assert _error(tmp_path / "list.txt").message == "the list is not UTF-16 text"


def test_a_list_of_which_nothing_is_there(tmp_path):
    (tmp_path / "list.txt").write_text("doe^john.png\nsub\\doe.png\n")
    error = _error(tmp_path / "list.txt")
    assert (error.code, error.message) == ("R2G-IMAGE-MISSING", "none of the 2 images that the list names is there")
    assert "tabs" in error.fix


def test_one_split_of_an_annotation(folder):
    for name in ("a.png", "b.png", "c.png"):
        (folder / name).write_bytes(b"")
    splits = {
        "train": [{"id": "one", "image_path": ["a.png"]}],
        "validation": [{"id": "two", "image_path": ["b.png"]}],
        "test": [{"id": "three", "image_path": ["c.png"]}],
    }
    (folder / "annotation.json").write_text(json.dumps(splits))
    for split, name in (("train", "one"), ("val", "two"), ("test", "three")):
        assert [study.name for study in collect_studies([folder], split=split).studies] == [name]
    with pytest.raises(R2GenError, match="no argument is one"):
        collect_studies([folder / "a.png"], split="test")
    (folder / "annotation.json").write_text(json.dumps({"train": splits["train"]}))
    with pytest.raises(R2GenError, match="has no split 'test', only train"):
        collect_studies([folder], split="test")
