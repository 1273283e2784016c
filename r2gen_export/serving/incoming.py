"""An image while it is received: written to the spool as it comes in, hashed, and never larger than is allowed.

pynetdicom writes a C-STORE data set to a `NamedTemporaryFile` of its own module as it arrives. `received_into` puts
`IncomingFile` in its place: a full disk, or a data set that is too large, then ends in an answered status and not in an
exception inside pynetdicom, and what is left behind lies in the spool.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from r2gen_export.serving.settings import Limits
from r2gen_export.serving.spool import Spool


class IncomingFile:
    """What pynetdicom asks of a temporary file: `name`, `write`, `close`, and `file.flush`.

    Attributes:
        problem: why the bytes were dropped: `full`, `large`, or empty. The file is empty then.
        size, sha256: of what was written, the file's meta information included.
    """

    def __init__(self, spool: Spool, limits: Limits) -> None:
        self.name = str(spool.incoming / f"{secrets.token_hex(8)}.dcm")
        self.problem = ""
        self.size = 0
        self._limit = limits.object_bytes
        self._hash = hashlib.sha256()
        self._file: int | None = None
        try:
            if spool.free_bytes() < limits.reserve_bytes:
                self.problem = "full"
            else:
                self._file = os.open(self.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError:
            self.problem = "full"

    @property
    def path(self) -> Path:
        """The file, which is there unless there is a problem."""
        return Path(self.name)

    @property
    def sha256(self) -> str:
        """Hash of what was written, as hex."""
        return self._hash.hexdigest()

    @property
    def file(self) -> Self:
        """What pynetdicom flushes; nothing is buffered here."""
        return self

    def flush(self) -> None:
        """Nothing is buffered."""

    def tell(self) -> int:
        """Bytes that were written, for pydicom's writer of the meta information."""
        return self.size

    def write(self, data: bytes) -> int:
        """Append; after a problem, drop. Never raises."""
        if self._file is None:
            return len(data)
        if self.size + len(data) > self._limit:
            self._drop("large")
            return len(data)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            self._drop("full")
            return len(data)
        self._hash.update(data)
        self.size += len(data)
        return len(data)

    def close(self) -> None:
        """Close the file, which stays."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def remove(self) -> None:
        """Close the file and remove it, unless it was moved away."""
        self.close()
        self.path.unlink(missing_ok=True)

    def _drop(self, problem: str) -> None:
        """Free the space at once: the rest of the data set may take minutes to arrive."""
        self.problem = problem
        self.remove()


@contextmanager
def received_into(spool: Spool, limits: Limits) -> Iterator[None]:
    """Inside the block pynetdicom writes data sets that it receives, in this process, to the spool."""
    from pynetdicom import _config, dimse_messages

    module: Any = dimse_messages
    before = _config.STORE_RECV_CHUNKED_DATASET, module.NamedTemporaryFile
    _config.STORE_RECV_CHUNKED_DATASET = True
    module.NamedTemporaryFile = lambda **_: IncomingFile(spool, limits)
    try:
        yield
    finally:
        _config.STORE_RECV_CHUNKED_DATASET, module.NamedTemporaryFile = before
