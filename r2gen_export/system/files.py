"""Write beside, then rename: an interrupted command leaves the old artefact or none, never half of one.

A power failure too: what was written is on the disk before the rename, and the rename before the command goes on.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Final

from r2gen_export.errors import R2GenError, errno_text
from r2gen_export.system.interrupts import signals_held

OUT_FOLDER: Final = "the folder of --out"
OUT_FILE: Final = "the file of --out"
"""What messages call an output whose name the user gave: the option says which it is, its path stays out of logs."""


def write_error(path: Path, error: OSError, subject: str = "") -> R2GenError:
    """The coded error for a failed write: what was written (`subject`, else the file's name) and why it failed."""
    cause = errno_text(error) or type(error).__name__
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        cause = "the disk is full"
    elif error.errno == errno.EBADF:
        cause = "it is closed"
    return R2GenError("R2G-OUTPUT-WRITE", f"{subject or path.name}: {cause}", "free space or choose another --out")


UNSUPPORTED: Final = (errno.EINVAL, errno.ENOTSUP)
"""What file systems answer that cannot sync a folder, or this kind of file (some network shares, FUSE)."""


def sync_file(descriptor: int) -> None:
    """Put an open file, or an open folder's list of names, on the disk, where its file system can."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def sync_path(path: Path) -> None:
    """`sync_file` of a file or a folder by its path."""
    if sys.platform == "win32" and path.is_dir():
        return  # Windows opens no folders
    # Windows syncs only what is open for writing.
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        sync_file(descriptor)
    finally:
        os.close(descriptor)


def _sync_parent(target: Path) -> None:
    """Put the names of the folder that `target` lies in on the disk; a folder may be writable but not readable."""
    with suppress(PermissionError):
        sync_path(target.parent)


def _sync_tree(folder: Path) -> None:
    """Put everything in a folder on the disk, then the folder itself. Links are not followed."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            _sync_tree(path)
        elif path.is_file() and not path.is_symlink():
            sync_path(path)
    sync_path(folder)


@contextmanager
def atomic_dir(target: Path, *, overwrite: bool = False, subject: str = OUT_FOLDER) -> Iterator[Path]:
    """A scratch folder beside `target` that becomes `target` when the block ends without an exception.

    Args:
        target: the folder to write.
        overwrite: replace an existing folder (it is moved aside first and put back when the rename fails).
        subject: what errors call it.

    Yields:
        The scratch folder to write into.

    Raises:
        R2GenError: `R2G-OUTPUT-EXISTS` when `target` is there and `overwrite` is false; `R2G-OUTPUT-WRITE` when the
            disk is full or the folder is not writable.
    """
    target = Path(target)
    if target.exists() and not overwrite and (not target.is_dir() or any(target.iterdir())):
        raise R2GenError("R2G-OUTPUT-EXISTS", f"{subject} exists already", "name another folder or remove this one")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    except OSError as error:
        raise write_error(target, error, subject) from error
    try:
        yield scratch
        _sync_tree(scratch)
        _swap(scratch, target)
        _sync_parent(target)
    except OSError as error:
        # Only a failed write is ours to translate; a missing input keeps its own message.
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM, errno.EFBIG):
            raise write_error(target, error, subject) from error
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _swap(scratch: Path, target: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    scratch.chmod(0o777 & ~umask)  # mkdtemp made it 0700
    if not target.exists():
        scratch.rename(target)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
    target.rename(aside / "old")
    try:
        scratch.rename(target)
    except OSError:
        (aside / "old").rename(target)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """A scratch path beside `target` that replaces `target` when the block ends without an exception.

    Raises:
        R2GenError: `R2G-OUTPUT-WRITE` when the disk is full or the folder is not writable.
    """
    target = Path(target)
    scratch = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield scratch
        sync_path(scratch)
        scratch.replace(target)
        _sync_parent(target)
    except OSError as error:
        raise write_error(target, error) from error
    finally:
        with suppress(OSError):  # such as a file where the folder should be: what the block raised says so
            scratch.unlink(missing_ok=True)


PARTIAL: Final = ".partial"

SYNC_SECONDS: Final = 1.0
"""Seconds of finished work that a power cut may take."""


def partial_path(target: Path) -> Path:
    """Where `growing_file` writes until it is done."""
    return target.with_name(target.name + PARTIAL)


@contextmanager
def growing_file(target: Path, *, append: bool = False) -> Iterator[Callable[[str], None]]:
    """A function that appends pieces of text to `FILE.partial`, which becomes `target` when the block ends.

    Each piece is in the file when the function returns, whole whatever signal comes, and on the disk at most
    `SYNC_SECONDS` after the next one. When the block ends by an exception, `FILE.partial` keeps the pieces that are
    whole, and is removed when there is none.

    Args:
        target: the file.
        append: keep what `FILE.partial` holds already.

    Raises:
        R2GenError: `R2G-OUTPUT-WRITE` when the disk is full or the folder is not writable.
    """
    scratch = partial_path(target)
    whole, synced = 0, monotonic()

    def write(text: str) -> None:
        nonlocal whole, synced
        data = text.encode("utf-8", "backslashreplace")
        rest = memoryview(data)
        with signals_held():
            try:
                while rest:
                    rest = rest[file.write(rest) :]
                if monotonic() - synced > SYNC_SECONDS:
                    sync_file(file.fileno())
                    synced = monotonic()
            except OSError as error:
                raise write_error(target, error, OUT_FILE) from error
            whole += len(data)

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        file = scratch.open("ab" if append else "wb", buffering=0)
        whole = file.tell()
    except OSError as error:
        raise write_error(target, error, OUT_FILE) from error
    with file:
        try:
            yield write
        except BaseException:
            with suppress(OSError):
                file.truncate(whole)
                if not whole:
                    scratch.unlink()
            raise
        try:
            sync_file(file.fileno())
            scratch.replace(target)
            _sync_parent(target)
        except OSError as error:
            raise write_error(target, error, OUT_FILE) from error
