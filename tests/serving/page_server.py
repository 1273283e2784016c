"""A small HTTP service for the page's tests: it speaks the contract of `r2gen serve`, and stops where a test says.

Reports are those of the demo bundle. The service itself has its own tests; here a stream must be held in its middle,
and an error come when it is called for.
"""

from __future__ import annotations

import json
import select
import socket
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import numpy as np

from r2gen_export.bundle import demo_bundle
from r2gen_export.errors import CodedError
from r2gen_export.reporting.report import Report
from r2gen_export.reporting.source import Source
from r2gen_export.reporting.writers import render
from r2gen_export.runtime.pipeline import Pipeline
from r2gen_export.serving.http_preview import preview
from r2gen_export.studies.dicom.types import DicomSettings
from tests.serving.page_files import PAGE

PREFIX: Final = "/somewhere/r2gen"
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
KINDS: Final = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".png": "image/png"}


@dataclass
class Site:
    """What a test sets, and what it sees.

    Attributes:
        gate: while it is not set, a stream waits behind its third piece.
        key: what requests must carry, if anything.
        error: status and fields of the answer to every report, instead of it. `picture_error`: of every picture.
        picture_gate: while it is not set, pictures wait.
        cut: streams end behind their third piece.
        fail: streams end with an error event behind their third piece.
        left: set when a client went away from a stream.
        picture_left: set when a client went away from a picture that waits.
        pictures: the file of each request for a picture.
        posts: Accept header, fields and number of files of each request for a report.
        reports: what was sent.
    """

    gate: threading.Event = field(default_factory=threading.Event)
    key: str | None = None
    error: tuple[int, dict[str, str]] | None = None
    picture_error: tuple[int, dict[str, str]] | None = None
    picture_gate: threading.Event = field(default_factory=threading.Event)
    picture_left: threading.Event = field(default_factory=threading.Event)
    pictures: list[bytes] = field(default_factory=list)
    cut: bool = False
    fail: bool = False
    left: threading.Event = field(default_factory=threading.Event)
    posts: list[tuple[str, dict[str, str], int]] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate.set()
        self.picture_gate.set()


class PageServer(ThreadingHTTPServer):
    """The service on a free port of this machine."""

    daemon_threads = True

    def __init__(self) -> None:
        self.pipeline = Pipeline.from_bundle(demo_bundle(), device="cpu", threads=1)
        self.lock = threading.Lock()
        self.site = Site()
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """Of the page."""
        return f"http://127.0.0.1:{self.server_port}{PREFIX}/"

    def report(self, files: list[bytes], preset: str | None) -> tuple[Report, list[str]]:
        """A report and its pieces of text."""
        pieces: list[str] = []
        with self.lock, tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / f"view-{number}" for number in range(len(files))]
            for path, data in zip(paths, files, strict=True):
                path.write_bytes(data)
            report = self.pipeline.generate(paths, preset=preset, on_text=pieces.append)
        return report, pieces


class _Handler(BaseHTTPRequestHandler):
    server: PageServer

    def log_message(self, *_: Any) -> None:
        """Nothing: what a test sees is in `Site`."""

    def do_GET(self) -> None:
        """The page, and what it asks for."""
        path = self.path.removeprefix(PREFIX)
        manifest = self.server.pipeline.manifest
        if path == "/ready":
            self._json(200, {"ready": True, "notice": manifest.notice})
        elif path == "/v1/models":
            model = {"id": manifest.model_id, "object": "model", "bundle_id": self.server.pipeline.bundle_id}
            extra = {"presets": sorted(manifest.presets), "precision": "fp32"}
            if self._may():
                self._json(200, {"object": "list", "data": [{**model, **extra}], "notice": manifest.notice})
        else:
            file = PAGE / (path.removeprefix("/") or "index.html")
            if self.path.startswith(PREFIX) and file.is_file():
                self._answer(200, KINDS[file.suffix], file.read_bytes())
            else:
                self._json(404, {"error": {"code": "R2G-HTTP-PATH", "message": "no such path", "fix": ""}})

    def do_POST(self) -> None:
        """A report or a picture."""
        accept = self.headers["Accept"]
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self._may():
            return
        fields, files = _parts(self.headers["Content-Type"], body)
        if self.path == f"{PREFIX}/v1/pictures":
            self._picture(files)
            return
        site = self.server.site
        site.posts.append((accept, fields, len(files)))
        if site.error is not None:
            self._json(site.error[0], {"error": site.error[1]})
            return
        try:
            report, pieces = self.server.report(files, fields.get("preset"))
        except CodedError as error:
            self._refuse(error)
            return
        site.reports.append(report)
        if accept == "text/event-stream":
            with suppress(ConnectionError):
                self._stream(report, pieces)
        else:
            data = render("pdf", report, Source(None, (np.zeros((8, 8), np.uint8),), "0" * 64))
            self._answer(200, accept, data if fields["format"] == "pdf" else b"DICM of " + report.text.encode())

    def _picture(self, files: list[bytes]) -> None:
        site = self.server.site
        site.pictures.extend(files)
        while not site.picture_gate.wait(0.05):
            if select.select([self.connection], [], [], 0)[0] and not self.connection.recv(1, socket.MSG_PEEK):
                site.picture_left.set()
                return
        if site.picture_error is not None:
            self._json(site.picture_error[0], {"error": site.picture_error[1]})
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "view"
            path.write_bytes(files[0])
            try:
                self._answer(200, "image/png", preview(path, DicomSettings()))
            except CodedError as error:
                self._refuse(error)

    def _refuse(self, error: CodedError) -> None:
        self._json(422, {"error": {"code": error.code, "message": error.message, "fix": error.fix}})

    def _stream(self, report: Report, pieces: list[str]) -> None:
        site = self.server.site
        self._head(200, "text/event-stream; charset=utf-8")
        for number, piece in enumerate(pieces):
            if number == 3 and site.cut:
                return
            if number == 3 and site.fail:
                self._event("error", {"code": "R2G-HTTP-READY", "message": "the worker ended", "fix": "send it again"})
                return
            while number == 3 and not site.gate.wait(0.05):
                try:
                    self.wfile.write(b": waiting\n\n")
                except ConnectionError:
                    site.left.set()
                    raise
            self._event("text", {"text": piece})
        self._event("report", report.to_dict())

    def _event(self, name: str, fields: dict[str, Any]) -> None:
        self.wfile.write(f"event: {name}\ndata: {json.dumps(fields)}\n\n".encode())

    def _may(self) -> bool:
        key = self.server.site.key
        if key is None or self.headers.get("Authorization") == f"Bearer {key}":
            return True
        fix = "send Authorization: Bearer KEY"
        self._json(401, {"error": {"code": "R2G-HTTP-KEY", "message": "there is no key of this service", "fix": fix}})
        return False

    def _json(self, status: int, fields: dict[str, Any]) -> None:
        self._answer(status, "application/json", json.dumps(fields).encode())

    def _answer(self, status: int, kind: str, data: bytes) -> None:
        self._head(status, kind)
        self.wfile.write(data)

    def _head(self, status: int, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()


def _parts(kind: str, body: bytes) -> tuple[dict[str, str], list[bytes]]:
    message = BytesParser(policy=HTTP).parsebytes(f"Content-Type: {kind}\r\n\r\n".encode() + body)
    fields: dict[str, str] = {}
    files: list[bytes] = []
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        data = part.get_payload(decode=True)
        if name == "images":
            files.append(data)
        else:
            fields[str(name)] = data.decode()
    return fields, files
