"""Who may ask: named keys from a file that is read again when it changes, a rate for each; and the rules for Host and
Origin that protect a service without keys from pages of other sites."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from r2gen_export.errors import R2GenError, cause_of
from r2gen_export.serving.http_errors import HttpError, busy
from r2gen_export.serving.log import EventLog

SHORTEST_KEY: Final = 16
CHECK_SECONDS: Final = 1.0
MOST_BYTES: Final = 1 << 20
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class Key:
    """One key: its name, which logs show, the SHA-256 of the secret, and reports a minute (None: no limit)."""

    name: str
    digest: bytes
    per_minute: float | None = None


def parse_keys(text: str) -> tuple[Key, ...]:
    """Keys of a file: a line each, `NAME KEY` or `NAME KEY REPORTS-A-MINUTE`; `#` begins a comment line.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE`, with the number of the line and nothing of what stands there.
    """
    keys: list[Key] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) not in (2, 3) or not _NAME.fullmatch(words[0]):
            raise _wrong(number, "is not NAME KEY [REPORTS-A-MINUTE]")
        if len(words[1]) < SHORTEST_KEY or not words[1].isascii():
            raise _wrong(number, f"has a key of fewer than {SHORTEST_KEY} ASCII characters")
        rate = None
        if len(words) == 3:
            if not re.fullmatch(r"\d{1,6}(\.\d{1,3})?", words[2]) or float(words[2]) <= 0:
                raise _wrong(number, "has a rate that is no number above 0")
            rate = float(words[2])
        if any(key.name == words[0] for key in keys):
            raise _wrong(number, "has a name that another line has")
        keys.append(Key(words[0], _digest(words[1]), rate))
    if not keys:
        raise R2GenError("R2G-CONFIG-VALUE", "the file of --api-key-file has no key", "write lines NAME KEY")
    return tuple(keys)


class KeyFile:
    """The keys of a file, as it is now.

    A file that cannot be read, or not understood, when it changes leaves the keys that were read last in force, and the
    log says so once: a mistake in an editor must not stop a hospital's service. One that cannot be read is tried again.

    Args:
        path: the file.
        log: is told of changes.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE` when it cannot be used at the start.
    """

    def __init__(self, path: Path, log: EventLog) -> None:
        self._path, self._log = path, log
        self._state = _state_of(path)
        self._keys = read_keys(path)
        self._checked = time.monotonic()
        self._unread: tuple[int, ...] | None = ()
        self._warn()

    @property
    def keys(self) -> tuple[Key, ...]:
        """Those in force; looks at the file at most once in `CHECK_SECONDS`."""
        now = time.monotonic()
        if now - self._checked >= CHECK_SECONDS:
            self._checked = now
            self._read_again()
        return self._keys

    def _read_again(self) -> None:
        state = _state_of(self._path)
        changed = state != self._state
        if changed:
            try:
                self._keys = read_keys(self._path)
                self._log("keys read again", count=len(self._keys))
            except R2GenError as error:
                if state != self._unread:
                    self._log.failure("key file not read, the earlier keys stay", error)
                if isinstance(error.__cause__, OSError):  # for want of a descriptor, say, and not for long
                    self._unread = state
                    return
        self._state, self._unread = state, ()
        if changed:
            self._warn()

    def _warn(self) -> None:
        if self._state is not None and self._state[3] & 0o077:
            self._log("key file readable by others", "warning")

    def named(self, presented: str) -> Key | None:
        """The key with this secret. Every key is compared, each in constant time, so the time tells nothing."""
        digest, match = _digest(presented), None
        for key in self.keys:
            if hmac.compare_digest(key.digest, digest):
                match = key
        return match


def read_keys(path: Path) -> tuple[Key, ...]:
    """The keys of a file.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise R2GenError("R2G-CONFIG-VALUE", "the file of --api-key-file is larger than 1 MiB", "shorten it")
        return parse_keys(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise R2GenError("R2G-CONFIG-VALUE", "the file of --api-key-file is no text", "write lines NAME KEY") from error
    except OSError as error:
        message = f"the file of --api-key-file cannot be read: {cause_of(error)}"
        raise R2GenError("R2G-CONFIG-VALUE", message, "check its path and its permissions") from error


class Rates:
    """Token buckets, one for each key's name: so many reports a minute, of which a sixth may come at once."""

    def __init__(self) -> None:
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, key: Key, share: float = 1) -> None:
        """Count one report, or a `share` of one.

        Raises:
            HttpError: 429 when the key has used its rate.
        """
        if key.per_minute is None:
            return
        now, most = time.monotonic(), max(1.0, key.per_minute / 6)
        level, since = self._buckets.get(key.name, (most, now))
        level = min(most, level + (now - since) * key.per_minute / 60)
        if level < share:
            self._buckets[key.name] = level, now
            raise busy("this key has used its reports a minute", (share - level) * 60 / key.per_minute)
        self._buckets[key.name] = level - share, now


def bearer(headers: Mapping[str, str]) -> str:
    """The key of `Authorization: Bearer KEY`, empty without one."""
    kind, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if kind.lower() == "bearer" else ""


def check_origin(headers: Mapping[str, str], names: tuple[str, ...] | None) -> None:
    """Refuse what a page of another site sends, and names that point here by DNS rebinding.

    Args:
        headers: of the request.
        names: names and addresses that may stand in Host; None takes any.

    Raises:
        HttpError: 403.
    """
    host = headers.get("host", "")
    if names is not None and _name(host) not in names:
        fix = "use the address the service listens on, or --allow-host NAME"
        raise HttpError(403, "R2G-HTTP-ORIGIN", "the Host header has a name that is not this service's", fix)
    origin = headers.get("origin")
    if (origin is not None and _netloc(origin) != host.lower()) or headers.get("sec-fetch-site") == "cross-site":
        raise HttpError(403, "R2G-HTTP-ORIGIN", "a page of another site sent this", "open the service's own page")


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:  # half an IPv6 address
        return None


def _name(host: str) -> str:
    """A Host header without its port."""
    name = host.rpartition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
    return name.lower()


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def _state_of(path: Path) -> tuple[int, int, int, int] | None:
    try:
        facts = os.stat(path)  # noqa: PTH116  follows links, as secrets are mounted
    except OSError:
        return None
    return facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_mode


def _wrong(number: int, what: str) -> R2GenError:
    return R2GenError("R2G-CONFIG-VALUE", f"line {number} of the file of --api-key-file {what}", "write NAME KEY")
