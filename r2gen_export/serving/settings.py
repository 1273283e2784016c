"""What the node is told: its own title and address, whom it hears, where results go, and its limits."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from r2gen_export.errors import R2GenError

FORMS: Final = {"sr": "sr", "pdf": "dicom-pdf", "kos": "kos"}
"""Names of `--format`, and the forms of `reporting` they stand for: a PACS takes a PDF inside a DICOM object only."""

MEBI: Final = 2**20
_TITLE: Final = re.compile(r"[\x21-\x5b\x5d-\x7e]([\x20-\x5b\x5d-\x7e]{0,14}[\x21-\x5b\x5d-\x7e])?")
_DIMSE: Final = re.compile(r"(?P<title>[^@]+)@(?P<host>\[[0-9a-fA-F:.]+\]|[^:\[\]@]+):(?P<port>\d+)")


@dataclass(frozen=True)
class Destination:
    """Where results are sent.

    Attributes:
        name: `AET@host:port` or the URL, as it was given; the key in the queue.
        title, host, port: of a C-STORE peer; `title` is empty where results go to `url` by STOW-RS.
    """

    name: str
    title: str = ""
    host: str = ""
    port: int = 0
    url: str = ""


@dataclass(frozen=True)
class Limits:
    """What one peer may take of the node.

    Attributes:
        associations, associations_per_peer: connections open at the same time, in all and from one address.
        object_bytes, association_bytes: of one image, and of all that an association sends.
        association_seconds: how long one may last.
        acse_seconds: between the connection and the association's request, the TLS handshake included.
        idle_seconds: without a byte; a PDU that has begun must be complete within twice that time.
        pdu_bytes: longest PDU that is read; what is offered to peers is 128 KiB.
        reserve_bytes: free space of the spool's disk below which images are answered 0xA700.
    """

    associations: int = 100
    associations_per_peer: int = 20
    object_bytes: int = 256 * MEBI
    association_bytes: int = 4096 * MEBI
    association_seconds: float = 3600
    acse_seconds: float = 5
    idle_seconds: float = 30
    pdu_bytes: int = 1 * MEBI
    reserve_bytes: int = 1024 * MEBI


@dataclass(frozen=True)
class Tls:
    """Files in PEM form: the node's certificate chain and key, and the authorities whose peers are trusted."""

    certificate: Path
    key: Path
    authorities: Path


@dataclass(frozen=True)
class Retry:
    """When a failed delivery is tried again: after `first_seconds`, doubled each time up to `most_seconds`, with
    jitter; given up `give_up_seconds` after the results were ready. An answer is waited for `answer_seconds`."""

    first_seconds: float = 5
    most_seconds: float = 900
    give_up_seconds: float = 72 * 3600
    answer_seconds: float = 60


@dataclass(frozen=True)
class NodeSettings:
    """One node.

    Attributes:
        title: its own application entity title; calls to another one are rejected.
        allowed: titles of the peers that may send.
        destinations: at least one; every result is sent to each.
        forms: of `reporting`, in the order in which they are sent.
        close_after: seconds without a new image after which a study is complete.
        keep_days: days after which pixels and results of finished studies are removed; None keeps them.
        watch: a folder whose DICOM files are taken in.
        metrics_port: loopback port of /metrics and /health; None opens none.
        study_seconds: how long one study may take to report.
    """

    title: str
    allowed: tuple[str, ...]
    destinations: tuple[Destination, ...]
    spool: Path
    host: str = "127.0.0.1"
    port: int = 11112
    forms: tuple[str, ...] = ("sr", "dicom-pdf")
    close_after: float = 60
    bundle: Path | None = None
    device: str = "auto"
    preset: str | None = None
    tls: Tls | None = None
    keep_days: float | None = None
    watch: Path | None = None
    metrics_port: int | None = None
    study_seconds: float = 900
    retry: Retry = field(default_factory=Retry)
    limits: Limits = field(default_factory=Limits)


def parse_title(text: str) -> str:
    """An application entity title: 1 to 16 characters of ASCII, no backslash (PS3.5 section 6.2).

    Raises:
        R2GenError: `R2G-CONFIG-VALUE`.
    """
    title = text.strip()
    if not _TITLE.fullmatch(title):
        raise R2GenError("R2G-CONFIG-VALUE", f"{text!r} is no application entity title", "give 1 to 16 ASCII letters")
    return title


def parse_dimse(text: str) -> Destination:
    """A C-STORE peer from `AET@host:port`.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE`.
    """
    match = _DIMSE.fullmatch(text.strip())
    port = int(match["port"]) if match else 0
    if match is None or not 0 < port < 65536:
        raise R2GenError("R2G-CONFIG-VALUE", f"{text!r} is no destination", "give --forward AET@host:port")
    return Destination(text.strip(), parse_title(match["title"]), match["host"].strip("[]"), port)


def parse_url(text: str) -> Destination:
    """A STOW-RS service from its base URL (`http://pacs/dicom-web`) or that of its `studies`.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE`.
    """
    url = text.strip().rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise R2GenError("R2G-CONFIG-VALUE", "--forward-web needs the URL of a DICOMweb service", "http://HOST/PATH")
    if parts.username or parts.password:
        message = "--forward-web must not hold a password: the command line can be read by every user"
        raise R2GenError("R2G-CONFIG-VALUE", message, "put the header's value into R2GEN_WEB_AUTHORIZATION")
    return Destination(url, url=url if url.endswith("/studies") else f"{url}/studies")


def parse_forms(text: str) -> tuple[str, ...]:
    """The forms of `--format sr,pdf`.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE`.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in FORMS and name not in FORMS.values()]
    if unknown or not names:
        raise R2GenError(
            "R2G-CONFIG-VALUE", f"--format {text!r}: the node sends sr, pdf and kos", "give --format sr,pdf"
        )
    return tuple(dict.fromkeys(FORMS.get(name, name) for name in names))
