"""A watched folder as input: files that no longer change are copied into the spool as if they had been received."""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from r2gen_export.errors import R2GenError, cause_of
from r2gen_export.serving.receive import CR, DX, read_uids
from r2gen_export.serving.settings import Limits

if TYPE_CHECKING:
    from r2gen_export.serving.parts import Parts
    from r2gen_export.serving.receive import Receiver

STABLE_SECONDS: Final = 2.0
DONE: Final = "r2gen-done"
REFUSED: Final = "r2gen-refused"


@dataclass(frozen=True)
class _Copied:
    path: Path
    sha256: str
    size: int


class Watch:
    """Looks at a folder and its subfolders; what was taken in goes to `r2gen-done`, the rest to `r2gen-refused`.

    A file is taken when its size and time of change were the same in two looks `STABLE_SECONDS` apart. It is moved
    after its row is on the disk, so a crash in between only takes it in twice, which the queue notices.
    """

    def __init__(self, folder: Path, receiver: Receiver, parts: Parts, limits: Limits) -> None:
        """Check the folder.

        Raises:
            R2GenError: `R2G-NODE-SPOOL` when it cannot be used.
        """
        self._folder = folder
        self._spool = parts.spool
        self._receiver = receiver
        self._log = parts.log
        self._limits = limits
        self._seen: dict[Path, tuple[int, int]] = {}
        try:
            for name in (DONE, REFUSED):
                (folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            message = f"the folder of --watch cannot be used: {cause_of(error)}"
            raise R2GenError("R2G-NODE-SPOOL", message, "name a folder that this user may write to") from error

    def run(self, stop: threading.Event) -> None:
        """Look until `stop` is set."""
        while not stop.wait(STABLE_SECONDS):
            try:
                self.step()
            except (OSError, sqlite3.Error) as error:
                self._log.failure("watched folder", error)

    def step(self) -> int:
        """Look once; returns how many files were taken in or refused. On a full disk they stay where they are."""
        if self._spool.free_bytes() < self._limits.reserve_bytes:
            return 0
        seen, settled = self._seen, 0
        self._seen = {}
        for path in sorted(self._folder.rglob("*")):
            if path.relative_to(self._folder).parts[0] in (DONE, REFUSED) or path.is_symlink() or not path.is_file():
                continue
            facts = path.stat()
            state = (facts.st_size, facts.st_mtime_ns)
            if seen.get(path) != state:
                self._seen[path] = state
                continue
            settled += 1
            self._move(path, DONE if self._take(path) else REFUSED)
        return settled

    def _take(self, path: Path) -> bool:
        """Copy a file into the spool and enter it; False when it is no CR or DX image with a study, or too large."""
        if path.stat().st_size > self._limits.object_bytes:
            self._log("watched file refused", "warning", reason="too large")
            return False
        uids = read_uids(path)
        if uids is None or uids[1] not in (CR, DX) or not all(uids):
            self._log("watched file refused", "warning", reason="no CR or DX image with a study")
            return False
        digest = hashlib.sha256()
        scratch, size = self._spool.incoming / f"{secrets.token_hex(8)}.dcm", 0
        try:
            with path.open("rb") as source, scratch.open("wb") as copy:
                while part := source.read(1 << 20):
                    digest.update(part)
                    size += copy.write(part)
            self._receiver.take_in(_Copied(scratch, digest.hexdigest(), size), uids[0], uids[2])
        finally:
            scratch.unlink(missing_ok=True)
        return True

    def _move(self, path: Path, where: str) -> None:
        target = self._folder / where / path.name
        if target.exists():
            target = target.with_name(f"{secrets.token_hex(4)}-{path.name}")
        path.rename(target)
