"""The node's folder: images and results on the disk before anything is promised, under names that identify nobody."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from r2gen_export.errors import R2GenError, cause_of
from r2gen_export.system.files import sync_file, sync_path
from r2gen_export.system.locks import file_lock

KEY_BYTES: Final = 32
FIX: Final = "name another folder with --spool, or check its owner and the disk"


@dataclass(frozen=True)
class Spool:
    """Paths of a spool, which is a folder with mode 0700.

    `incoming` holds images that are being received; `images` and `results` hold what is in the queue, one folder for
    each study. All names below them are keyed hashes (HMAC-SHA-256 with a random key of this spool, mode 0600): a plain
    hash of a UID could be matched against a list of UIDs.
    """

    folder: Path
    key: bytes

    @property
    def incoming(self) -> Path:
        """Images that are being received."""
        return self.folder / "incoming"

    @property
    def images(self) -> Path:
        """Images in the queue."""
        return self.folder / "images"

    @property
    def results(self) -> Path:
        """Results that are sent or were sent."""
        return self.folder / "results"

    @property
    def database(self) -> Path:
        """The queue."""
        return self.folder / "queue.sqlite3"

    def pseudonym(self, text: str) -> str:
        """The name by which logs, metrics and files call a study or an image: 16 hex digits."""
        return hmac.new(self.key, text.encode(), hashlib.sha256).hexdigest()[:16]

    def image_path(self, study_uid: str, sop_uid: str, sha256: str) -> Path:
        """Where an image lies. Other bytes under the same UID get another name, so nothing is ever replaced."""
        return self.images / self.pseudonym(study_uid) / f"{self.pseudonym(sop_uid)}-{sha256[:8]}.dcm"

    def result_path(self, study_uid: str, revision: int, form: str) -> Path:
        """Where a result lies."""
        return self.results / self.pseudonym(study_uid) / f"{revision}.{form}.dcm"

    def relative(self, path: Path) -> str:
        """A path as the queue holds it, so that a spool can be moved."""
        return path.relative_to(self.folder).as_posix()

    def free_bytes(self) -> int:
        """Free space of the disk for this user."""
        return shutil.disk_usage(self.folder).free

    def move_in(self, scratch: Path, target: Path) -> None:
        """Put a written file into its place, so that a power cut after this call does not lose it.

        Raises:
            OSError: it is not durable then.
        """
        sync_path(scratch)
        if not target.parent.is_dir():
            target.parent.mkdir(mode=0o700, exist_ok=True)
            sync_path(target.parent.parent)
        scratch.replace(target)
        sync_path(target.parent)

    def write(self, target: Path, data: bytes) -> None:
        """`move_in` of these bytes.

        Raises:
            OSError: it is not durable then.
        """
        scratch = self.incoming / f"{secrets.token_hex(8)}.part"
        try:
            scratch.write_bytes(data)
            self.move_in(scratch, target)
        finally:
            scratch.unlink(missing_ok=True)

    def sweep(self, listed: Iterable[str]) -> int:
        """Remove what an earlier process left behind: half received files, and files that no row of the queue names.

        Args:
            listed: paths of the queue, relative to the spool.

        Returns:
            How many files were removed. Whoever sent them got no answer, and sends them again.
        """
        known = set(listed)
        stale = [path for path in self.incoming.iterdir() if path.is_file()]
        for folder in (self.images, self.results):
            stale += [path for path in folder.rglob("*") if path.is_file() and self.relative(path) not in known]
        for path in stale:
            path.unlink(missing_ok=True)
        return len(stale)


def make_spool(folder: Path) -> Spool:
    """Make a spool, or open one that is there.

    Raises:
        R2GenError: `R2G-NODE-SPOOL`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)  # pixels and names of patients lie below it
        for name in ("incoming", "images", "results"):
            (folder / name).mkdir(exist_ok=True, mode=0o700)
        if not (folder / "key").exists():
            _write_key(folder)
        spool = open_spool(folder)
        probe = spool.incoming / f"{secrets.token_hex(8)}.part"
        probe.touch()
        probe.unlink()
        return spool
    except OSError as error:
        raise R2GenError("R2G-NODE-SPOOL", f"the spool folder cannot be used: {cause_of(error)}", FIX) from error


def open_spool(folder: Path) -> Spool:
    """A spool that is there.

    Raises:
        R2GenError: `R2G-NODE-SPOOL`.
    """
    try:
        key = (folder / "key").read_bytes()
    except OSError as error:
        message = f"there is no spool of a node in the folder: {cause_of(error)}"
        raise R2GenError("R2G-NODE-SPOOL", message, "give the --spool of the node, as the user it runs as") from error
    if len(key) != KEY_BYTES:
        raise R2GenError("R2G-NODE-SPOOL", f"the spool's key has {len(key)} bytes, expected {KEY_BYTES}", FIX)
    return Spool(folder, key)


@contextmanager
def spool_lock(folder: Path) -> Iterator[None]:
    """Hold the spool while the block runs: one node for each.

    Raises:
        R2GenError: `R2G-NODE-SPOOL` when another node holds it.
    """

    def refuse() -> None:
        raise R2GenError("R2G-NODE-SPOOL", "another node uses this spool", "stop it first, or name another --spool")

    with file_lock(folder / "lock", waiting=refuse):
        yield


def _write_key(folder: Path) -> None:
    """A key appears whole or not at all: with half of one all names would change."""
    scratch = folder / f".key.{secrets.token_hex(4)}"
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, secrets.token_bytes(KEY_BYTES))
        sync_file(descriptor)
    finally:
        os.close(descriptor)
    scratch.rename(folder / "key")
    sync_path(folder)
