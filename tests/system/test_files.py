"""Atomic writes reach the disk: content first, then the rename, then the folder that names it."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from r2gen_export.errors import R2GenError
from r2gen_export.system import files
from r2gen_export.system.files import atomic_dir, atomic_file, growing_file

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names open files by /proc")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """`fsync NAME` and `rename NAME` as they happen, names relative to the test's folder, scratch names shortened."""
    events: list[str] = []
    fsync = os.fsync

    def name(path: str | Path) -> str:
        parts = Path(path).relative_to(tmp_path).parts
        return "/".join("SCRATCH" if part.endswith(".part") else part for part in parts) or "."

    def recorded_fsync(descriptor: int) -> None:
        events.append(f"fsync {name(Path(f'/proc/self/fd/{descriptor}').readlink())}")
        fsync(descriptor)

    def recorded(rename):
        def call(source, target):
            events.append(f"rename {name(source)} {name(target)}")
            return rename(source, target)

        return call

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    for function in ("rename", "replace"):  # what pathlib calls
        monkeypatch.setattr(os, function, recorded(getattr(os, function)))
    return events


def test_a_file_is_synced_before_its_rename_and_its_folder_after(tmp_path: Path, calls: list[str]) -> None:
    with atomic_file(tmp_path / "folder/file") as scratch:
        scratch.write_text("content", encoding="utf-8")
    assert calls == ["fsync folder/SCRATCH", "rename folder/SCRATCH folder/file", "fsync folder"]
    assert (tmp_path / "folder/file").read_text(encoding="utf-8") == "content"


def test_a_folder_is_synced_with_all_it_holds(tmp_path: Path, calls: list[str]) -> None:
    with atomic_dir(tmp_path / "bundle") as scratch:
        (scratch / "inner").mkdir()
        for name in ("file", "inner/file"):
            (scratch / name).write_text("content", encoding="utf-8")
        (scratch / "link").symlink_to(tmp_path)
    before, after = calls[:-2], calls[-2:]
    assert sorted(before) == ["fsync SCRATCH", "fsync SCRATCH/file", "fsync SCRATCH/inner", "fsync SCRATCH/inner/file"]
    assert before.index("fsync SCRATCH/inner/file") < before.index("fsync SCRATCH/inner")
    assert before[-1] == "fsync SCRATCH"
    assert after == ["rename SCRATCH bundle", "fsync ."]


def test_an_interrupted_write_neither_syncs_nor_renames(tmp_path: Path, calls: list[str]) -> None:
    for write in (atomic_file, atomic_dir):
        with pytest.raises(KeyboardInterrupt), write(tmp_path / "target"):
            raise KeyboardInterrupt
    assert calls == []
    assert list(tmp_path.iterdir()) == []


def test_a_growing_file_is_synced_in_batches(tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.1, 0.2, 1.3, 1.3, 1.4])
    monkeypatch.setattr(files, "monotonic", lambda: next(clock))
    with growing_file(tmp_path / "out") as append:
        for piece in "abcd":
            append(piece)
    assert calls == ["fsync out.partial", "fsync out.partial", "rename out.partial out", "fsync ."]


@pytest.mark.parametrize("write", [atomic_file, atomic_dir])
@pytest.mark.parametrize(("number", "refused"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_file_system_without_fsync_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write, number: int, refused: bool
) -> None:
    def failing(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", failing)
    target = tmp_path / "target"
    try:
        with write(target) as scratch:
            (scratch if write is atomic_file else scratch / "file").write_text("content", encoding="utf-8")
    except (OSError, R2GenError):
        assert refused
        assert list(tmp_path.iterdir()) == []
    else:
        assert not refused
        assert target.exists()
