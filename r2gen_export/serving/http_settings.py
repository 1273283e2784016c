"""What the HTTP service is told: its address, keys, model, and how much a client may take of it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from r2gen_export.errors import R2GenError

MEBI: Final = 2**20


@dataclass(frozen=True)
class HttpLimits:
    """What a request may take; all of it is checked before an image is decoded.

    Attributes:
        body_bytes: of a whole request. `parts`: fields and files of a multipart body.
        views: images of a study. `pixels`: of one image, by its header. `most_tokens`, `most_beams`: of a report; None
            takes the largest of the bundle's presets, which is what the running batch has room for.
        queue: requests that wait, in all. `queue_each`: of one key, or of one address where there are no keys.
        connections: open at the same time.
        head_seconds: from the first byte of a request, or the connection, to the end of its headers.
        idle_seconds: without a byte of the body, or without a byte of the answer being taken.
        upload_seconds: for the whole body. `deadline_seconds`: from then until the report.
    """

    body_bytes: int = 256 * MEBI
    parts: int = 64
    views: int = 8
    pixels: int = 100_000_000
    most_tokens: int | None = None
    most_beams: int | None = None
    queue: int = 64
    queue_each: int = 32
    connections: int = 512
    head_seconds: float = 10
    idle_seconds: float = 20
    upload_seconds: float = 120
    deadline_seconds: float = 300


@dataclass(frozen=True)
class ServeSettings:
    """One service.

    Attributes:
        host, port: where it listens; port 0 takes a free one.
        bundle, device, threads, draft: as `Pipeline.from_bundle` takes them.
        batch: studies decoded together.
        key_file: keys of those who may ask (`http_auth.KeyFile`); None asks for no key.
        certificate, private_key: PEM files of TLS; None of both speaks plain HTTP.
        insecure: another address than loopback without keys and TLS.
        root_path: the prefix under which a reverse proxy shows the service.
        names: further names in the Host header that are taken where no key is asked for.
        audit_file: where audit lines go; None writes them into the log.
        scratch: the folder in which the private folder of uploads is made; None takes the system's.
    """

    host: str = "127.0.0.1"
    port: int = 8321
    bundle: Path | None = None
    device: str = "auto"
    threads: int | None = None
    draft: bool | None = None
    batch: int = 8
    key_file: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None
    insecure: bool = False
    root_path: str = ""
    names: tuple[str, ...] = ()
    audit_file: Path | None = None
    scratch: Path | None = None
    limits: HttpLimits = field(default_factory=HttpLimits)

    @property
    def tls(self) -> bool:
        """Whether it speaks HTTPS."""
        return self.certificate is not None

    def check(self) -> None:
        """Refuse what would let strangers in, or what excludes itself.

        Raises:
            R2GenError: `R2G-CONFIG-VALUE`.
        """
        if (self.certificate is None) != (self.private_key is None):
            raise _wrong("TLS needs the certificate and its key", "give --tls-cert and --tls-key")
        if self.root_path and (not self.root_path.startswith("/") or self.root_path.endswith("/")):
            raise _wrong(f"--root-path {self.root_path!r}", "give it as /prefix")
        if not self.root_path.isascii() or any(letter in self.root_path for letter in "?# \"'<>"):
            raise _wrong("--root-path has characters that a path must not have", "give it as /prefix")
        open_to_all = not is_loopback(self.host) and not (self.key_file is not None and self.tls)
        if open_to_all and not self.insecure:
            message = f"--host {self.host} can be reached from other machines: it needs keys and TLS"
            fix = "give --api-key-file, --tls-cert and --tls-key; or --insecure, behind a proxy that does both"
            raise _wrong(message, fix)


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only. A name counts as such when it is `localhost`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _wrong(message: str, fix: str) -> R2GenError:
    return R2GenError("R2G-CONFIG-VALUE", message, fix)
