"""What tests share is made once, by whoever comes first, and made anew when it is not what was made."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.shared import ROOT, key_of, made_once


def test_a_folder_is_made_once_and_again_when_a_test_changed_it(tmp_path: Path) -> None:
    calls = []

    def make(folder: Path) -> None:
        calls.append(folder)
        (folder / "inner").mkdir(parents=True)
        (folder / "inner/file").write_text("made")

    for _ in range(2):
        assert made_once("thing", make, place=tmp_path) == tmp_path / "thing"
    assert len(calls) == 1
    for change in (
        lambda: (tmp_path / "thing/inner/file").write_text("spoilt"),
        (tmp_path / "thing/drafts").mkdir,
        (tmp_path / "thing/inner/file").unlink,
    ):
        change()
        made_once("thing", make, place=tmp_path)
        assert (tmp_path / "thing/inner/file").read_text() == "made"
    assert len(calls) == 4


def test_what_fails_is_tried_again(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        folder.mkdir()
        (folder / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made_once("thing", fail, place=tmp_path)
    made_once("thing", Path.mkdir, place=tmp_path)
    assert list((tmp_path / "thing").iterdir()) == []


def test_processes_wait_for_the_one_that_makes_it(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; from tests.helpers.shared import made_once\n"
        "def make(folder): folder.mkdir(); time.sleep(0.3); (folder / str(os.getpid())).touch()\n"
        "print(*[path.name for path in made_once('thing', make, place=Path(sys.argv[1])).iterdir()])\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    running = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    told = [process.communicate()[0].split() for process in running]
    assert told[0] == told[1] == told[2]
    assert len(told[0]) == 1


def test_another_source_is_another_key(tmp_path: Path) -> None:
    source = tmp_path / "source.py"
    source.write_text("1")
    before = key_of(source)
    source.write_text("2")
    assert key_of(source) != before
