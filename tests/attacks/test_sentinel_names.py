"""A name in folder, file, list, annotation and report is in no output, whatever fails; only `--names` shows it.

Failures of the system are raised by the file's `open` of the standard library, with the path in their text as the
system's own have it. Commands run in this process, so that they meet these.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from r2gen_export.bundle import demo_bundle
from tests.helpers.loaded_once import loaded_once
from tests.helpers.sentinel import FAULTS, NAME, PHANTOM, Site, assert_nameless, failing, make_site, run, written

SHORT = ("--preset", "fast", "--min-new-tokens", "3", "--max-new-tokens", "4")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return make_site(tmp_path)


@pytest.fixture(autouse=True, scope="module")
def demo_loaded_once() -> Iterator[None]:
    with loaded_once():
        yield


VERBOSITY = [("-q",), (), ("--verbose",)]
FORMS = ["text", "json"]


def infer_everywhere(site: Site, out: Path, first: int) -> Iterator[tuple[int, str]]:
    """`infer` at each verbosity in each format, to stdout and to a file, from a different source each time."""
    sources = site.sources()
    for number, (form, verbosity) in enumerate((form, verbosity) for form in FORMS for verbosity in VERBOSITY):
        to = ["--out", out / f"{number}.out"] if (first + number) % 2 else []
        source = sources[(first + number) % len(sources)]
        status, text = run("infer", *source, *SHORT, "--device", "cpu", "--format", form, *verbosity, *to)
        yield status, text + written(out)
        shutil.rmtree(out, ignore_errors=True)


@pytest.mark.parametrize("kind", FAULTS)
def test_infer_when_reading_an_image_fails(site: Site, tmp_path: Path, kind: str) -> None:
    with failing(FAULTS[kind]) as hit:
        for status, text in infer_everywhere(site, tmp_path / "out", list(FAULTS).index(kind)):
            assert status in ((130,) if kind == "Ctrl-C" else (1, 2, 4)), text
            assert_nameless(text)
            assert "interrupted" in text if kind == "Ctrl-C" else "view" in text
        assert len(hit) >= 6


DAMAGED: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "dangling link": lambda path: path.symlink_to(path.with_name(f"{NAME}-gone.png")),
    "link to itself": lambda path: path.symlink_to(path),
    "directory": lambda path: path.mkdir(),
    "pipe": os.mkfifo,
    "truncated": lambda path: path.write_bytes(PHANTOM.read_bytes()[:5000]),
    "empty": lambda path: path.write_bytes(b""),
    "not an image": lambda path: path.write_text(f"{NAME} is no image"),
    "blank": lambda path: Image.new("L", (64, 64)).save(path),
    "DICOM": lambda path: path.write_bytes(bytes(128) + b"DICM"),
    "too large": lambda path: (path.touch(), os.truncate(path, (1 << 30) + 1)),
}
"""What stands in the place of the second image."""


@pytest.mark.parametrize("kind", DAMAGED)
def test_infer_when_an_image_is_damaged(site: Site, tmp_path: Path, kind: str) -> None:
    site.victim.unlink()
    DAMAGED[kind](site.victim)
    statuses = set()
    for status, text in infer_everywhere(site, tmp_path / "out", list(DAMAGED).index(kind)):
        statuses.add(status)
        assert_nameless(text)
    assert statuses & {2, 4}
    status, text = run("infer", site.list, *SHORT, "--names", "--format", "json")
    assert status == 4
    assert text.count(NAME) >= 3, "one report, and the failure on stderr and in its place"
    assert f"{NAME}-2.png" in text


def test_names_are_there_when_asked_for(site: Site) -> None:
    for form in FORMS:
        status, text = run("infer", site.annotation, *SHORT, "--names", "--format", form)
        assert status == 0
        assert f"{NAME}-0" in text, "the entry's id"
    site.victim.write_text("not an image")
    status, text = run("infer", "--study", *site.images, *SHORT, "--names")
    assert status == 2
    assert f"view 2: {site.victim}" in text


HOLDERS = {
    "text.json": f'{{"train": [{{"id": "{NAME}", "report": "{NAME}"',
    "no split.json": json.dumps({NAME: {NAME: NAME}}),
    "split.json": json.dumps({"train": NAME, NAME: []}),
    "entry.json": json.dumps({"train": [{"id": NAME, NAME: 1}]}),
    "id.json": json.dumps({"train": [{"id": [NAME], "image_path": [NAME]}]}),
    "path.json": json.dumps({"train": [{"id": NAME, "image_path": [{NAME: NAME}]}]}),
    "gone.json": json.dumps({NAME: [{"id": NAME, "image_path": [f"{NAME}.png"]}]}),
    "quote.txt": f"'{NAME}.png\n",
    "gone.txt": f"{NAME}.png\n",
    "binary.txt": "\ufeff",
    "comments.txt": f"# {NAME}\n",
}
"""Lists and annotations that cannot be used."""


def test_lists_and_annotations_that_cannot_be_used(site: Site) -> None:
    for name, content in HOLDERS.items():
        path = site.folder / f"{NAME} {name}"
        path.write_bytes(b"\xff\xfe\x00" if content == "\ufeff" else content.encode())
        for form in FORMS:
            status, text = run("infer", path, *SHORT, "--format", form, "--verbose")
            assert status == 2, text
            assert_nameless(text)


@pytest.mark.parametrize("kind", FAULTS)
def test_reading_a_list_or_an_annotation_fails(site: Site, kind: str) -> None:
    with failing(FAULTS[kind], ".txt", ".json") as hit:
        for form in FORMS:
            for source in (site.list, site.annotation):
                status, text = run("infer", source, *SHORT, "--format", form)
                assert status in ((130,) if kind == "Ctrl-C" else (1, 2)), text
                assert_nameless(text)
            status, text = run("drafts", "build", demo_bundle(), "--reports", site.annotation)
            assert status in ((130,) if kind == "Ctrl-C" else (1, 2)), text
            assert_nameless(text)
        assert len(hit) == 6


@pytest.mark.parametrize("kind", FAULTS)
def test_listing_a_folder_or_a_library_fails(site: Site, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A folder of a share that has gone, and an exception behind the reader, in a library that knows the path."""

    def fails(*_: Any, **__: Any) -> Any:
        raise FAULTS[kind](site.victim)

    for module, function in ((os, "scandir"), (Image, "fromarray")):
        with monkeypatch.context() as patched:
            patched.setattr(module, function, fails)
            for source in ([site.folder / "images"], [site.victim]):
                status, text = run("infer", *source, *SHORT)
                assert status in (0, 1, 2, 4, 130), text
                assert_nameless(text)


def test_the_traceback_of_debugging_says_what_it_may_hold(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R2GEN_DEBUG", "1")
    with failing(FAULTS["stale handle"]):
        _, text = run("infer", site.victim, *SHORT, "-q")
    assert text.startswith("R2GEN_DEBUG=1: the traceback may hold names of files, which may identify patients")


def test_drafts_from_reports(site: Site, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(demo_bundle(), tmp_path / "bundle"))
    for name, content in (
        ("reports.txt", f"{NAME} is well .\n"),
        ("bad.json", f'[{{"report": "{NAME}'),
        ("other.json", json.dumps([{NAME: NAME}])),
        ("half.json", '[{"report": "' + NAME + ' \\ud800"}]'),
        ("empty.txt", ""),
        ("bytes.txt", "\ufeff"),
    ):
        path = site.folder / f"{NAME}-{name}"
        path.write_bytes(b"\xff\xfe\x00" if content == "\ufeff" else content.encode())
        status, text = run("drafts", "build", bundle, "--reports", path)
        assert status == (0 if name == "reports.txt" else 2), text
        assert_nameless(text)
    assert run("drafts", "build", bundle, "--reports", site.annotation)[0] == 0
    assert_nameless(run("drafts", "show", bundle)[1], written(bundle / "drafts"))
