"""Write beside, then rename: an interrupted command leaves the old artefact or none, never half of one."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Final

from r2gen_export.errors import R2GenError


def write_error(path: Path, error: OSError) -> R2GenError:
    """The coded error for a failed write: names the artefact and the cause (disk full, no permission)."""
    cause = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        cause = "the disk is full"
    elif error.errno == errno.EBADF:
        cause = "it is closed"
    return R2GenError("R2G-OUTPUT-WRITE", f"{path.name}: {cause}", "free space or choose another --out")


@contextmanager
def atomic_dir(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A scratch folder beside `target` that becomes `target` when the block ends without an exception.

    Args:
        target: the folder to write.
        overwrite: replace an existing folder (it is moved aside first and put back when the rename fails).

    Yields:
        The scratch folder to write into.

    Raises:
        R2GenError: `R2G-OUTPUT-EXISTS` when `target` is there and `overwrite` is false; `R2G-OUTPUT-WRITE` when the
            disk is full or the folder is not writable.
    """
    target = Path(target)
    if target.exists() and not overwrite and (not target.is_dir() or any(target.iterdir())):
        raise R2GenError("R2G-OUTPUT-EXISTS", f"{target} exists already", "name another folder or remove this one")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    except OSError as error:
        raise write_error(target, error) from error
    try:
        yield scratch
        _swap(scratch, target)
    except OSError as error:
        # Only a failed write is ours to translate; a missing input keeps its own message.
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM, errno.EFBIG):
            raise write_error(target, error) from error
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
        scratch.replace(target)
    except OSError as error:
        raise write_error(target, error) from error
    finally:
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

    Each piece is in the file when the function returns, and on the disk at most `SYNC_SECONDS` after the next one. When
    the block ends by an exception, `FILE.partial` keeps the pieces that are whole, and is removed when there is none.

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
        try:
            while rest:
                rest = rest[file.write(rest) :]
            if monotonic() - synced > SYNC_SECONDS:
                os.fsync(file.fileno())
                synced = monotonic()
        except OSError as error:
            raise write_error(target, error) from error
        whole += len(data)

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        file = scratch.open("ab" if append else "wb", buffering=0)
        whole = file.tell()
    except OSError as error:
        raise write_error(target, error) from error
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
            os.fsync(file.fileno())
            scratch.replace(target)
        except OSError as error:
            raise write_error(target, error) from error
