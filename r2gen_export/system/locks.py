"""A lock file that holds other processes off. The system releases it when its process ends, however it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from r2gen_export.system.files import write_error


@contextmanager
def file_lock(path: Path, *, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a lock file while the block runs.

    Args:
        path: the lock file, made when it is not there; its folder is. A link is followed, as in a model hub's cache.
        waiting: called once when another process holds it and this one begins to wait.

    Raises:
        R2GenError: `R2G-OUTPUT-WRITE` when the lock file cannot be made or locked.
    """
    from filelock import FileLock, Timeout  # 40 ms, and most commands need no lock

    lock = FileLock(path.resolve())  # filelock opens no links itself
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waiting()
            lock.acquire()
    except OSError as error:
        raise write_error(path, error) from error
    try:
        yield
    finally:
        lock.release()
