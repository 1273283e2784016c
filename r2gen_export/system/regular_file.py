"""Opening a file that others named: it may be a link, and must be a regular file."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from io import BufferedReader
from pathlib import Path

from r2gen_export.errors import cause_of, errno_text


class NotRegularError(OSError):
    """A FIFO or a device stands where a file should."""


def why_unread(error: OSError) -> str:
    """Why a file cannot be read, without its path."""
    return "it is no regular file" if isinstance(error, NotRegularError) else errno_text(error) or cause_of(error)


def open_regular(path: Path) -> BufferedReader:
    """Open a file to read bytes; links are followed. A FIFO, a device or a folder is refused and never waited for.

    Raises:
        OSError: when it cannot be opened, or is no regular file.
    """
    _require_regular(path.stat())  # opening a device may already do something
    file = open(path, "rb", opener=_open_at_once)  # noqa: SIM115
    try:
        _require_regular(os.fstat(file.fileno()))  # another file may lie there by now
    except OSError:
        file.close()
        raise
    return file


def size_and_sha256(path: Path, expected: int) -> tuple[int, str | None]:
    """Bytes of a file, and its SHA-256 as hex: None, and nothing is read, where they are not as many as expected.

    Raises:
        OSError: as `open_regular`.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        return size, hashlib.file_digest(file, "sha256").hexdigest() if size == expected else None


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _require_regular(state: os.stat_result) -> None:
    if stat.S_ISDIR(state.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(state.st_mode):
        raise NotRegularError(errno.EINVAL, "it is no regular file")
