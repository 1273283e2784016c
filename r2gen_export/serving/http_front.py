"""Around every request: its id, keys and origin; headers of every answer; errors as answers; a line in the log."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Container, Mapping
from typing import Any, Final

from r2gen_export.errors import CodedError, InternalError
from r2gen_export.serving.http_auth import bearer, check_origin
from r2gen_export.serving.http_errors import HttpError, bad_body, no_path
from r2gen_export.serving.http_settings import is_loopback
from r2gen_export.serving.http_site import Caller, Site
from r2gen_export.serving.http_upload import ClientGoneError, Receive

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "[::1]")
METHODS: Final = ("GET", "HEAD", "POST")
REPORTS: Final = ("/v1/reports", "/v1/chat/completions")
"""Paths whose answers the metrics count."""
WORK: Final = (*REPORTS, "/v1/pictures")
"""Paths that are called by POST."""
OPEN: Final = ("/", "/health", "/ready", "/openapi.json")
"""Paths for which no key is asked; for any other one it is, where there are keys."""
CLOSED_AFTER: Final = (b"connection", b"close")
SHOWN: Final = (*WORK, "/v1/models", "/metrics", *OPEN)
"""Paths that the log shows as they are; any other is `other`."""


class Front:
    """ASGI application around the routes.

    Args:
        app: the routes.
        site: the service.
        files: names of the page's files, for which no key is asked.
    """

    def __init__(self, app: Any, site: Site, files: Container[str]) -> None:
        self._app, self._site, self._files = app, site, files
        settings = site.settings
        # With keys, a page of another site knows none, and neither does one behind a rebound name.
        names = (*LOOPBACK_NAMES, settings.host.lower(), *(name.lower() for name in settings.names))
        closed = site.keys is None and (is_loopback(settings.host) or bool(settings.names))
        self._names = names if closed else None

    async def __call__(self, scope: Any, receive: Receive, send: Any) -> None:
        """Answer one request, whatever it is."""
        if scope["type"] != "http":
            return
        site, started, request_id = self._site, time.monotonic(), secrets.token_hex(12)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        path = self._path(scope)
        answer = _Answer(site, request_id, send)
        key, outcome = None, ""
        try:
            if "transfer-encoding" in headers and "content-length" in headers:
                raise _two_lengths()
            check_origin(headers, self._names)
            if not (path.isascii() and path.isprintable()):
                # A router's pattern may match before a newline at the end, where a comparison does not.
                raise no_path(404)
            key = self._key(headers, path)
            client = scope["client"][0] if scope.get("client") else ""
            owner = f"key {key.name}" if key is not None else client
            caller = Caller(request_id, owner, key, headers)
            inner = {**scope, "r2gen": caller, "path": path, "raw_path": path.encode(), "root_path": ""}
            await self._app(inner, receive, answer.send)
            outcome = caller.failures[0] if caller.failures else "ok" if answer.status < 400 else "refused"
        except ClientGoneError:
            outcome = "left"
        except Exception as error:
            outcome = await self._fail(answer, error)
        if path in REPORTS and scope["method"] == "POST":
            site.metrics.answered(outcome, answer.status)
        site.log("request", id=request_id, method=scope["method"] if scope["method"] in METHODS else "other",
                 path=path if path in SHOWN else "other", status=answer.status, outcome=outcome,
                 ms=round((time.monotonic() - started) * 1000), key=key.name if key is not None else None)  # fmt: skip

    def _path(self, scope: Any) -> str:
        """The path without the prefix of a reverse proxy, whether that takes it away or not."""
        path, prefix = str(scope["path"]), self._site.settings.root_path
        if prefix and (path == prefix or path.startswith(f"{prefix}/")):
            return path[len(prefix) :] or "/"
        return path

    def _key(self, headers: Mapping[str, str], path: str) -> Any:
        if self._site.keys is None or path in OPEN or path.removeprefix("/") in self._files:
            return None
        key = self._site.keys.named(bearer(headers))
        if key is None:
            fix = "send Authorization: Bearer KEY"
            raise HttpError(401, "R2G-HTTP-KEY", "this needs a key", fix, {"WWW-Authenticate": "Bearer"})
        return key

    async def _fail(self, answer: _Answer, error: Exception) -> str:
        """The error as an answer, where none has begun. Returns the outcome for the log."""
        if isinstance(error, CodedError):
            shown = HttpError.of(error)
        elif isinstance(error, HttpError):
            shown = error
        else:
            shown = HttpError.of(InternalError("the service failed"))
        if shown.status == 500:
            self._site.log.failure("request failed", error, id=answer.request_id)
        if answer.status:
            raise ClientGoneError  # the connection is cut: what was sent must not look whole
        try:
            await answer.error(shown)
        except ClientGoneError:
            return "left"
        return shown.code


def answer_to_no_http(site: Site) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and body of the 400 for bytes that are no HTTP request, which never come to the application."""
    answer = _Answer(site, secrets.token_hex(12), None)
    error = bad_body("what was sent is no HTTP/1.1 request", "use a client that speaks HTTP/1.1")
    headers, body = answer.written(error)
    site.log("request", id=answer.request_id, method="other", path="other", status=400, outcome="R2G-HTTP-BODY", ms=0,
             key=None)  # fmt: skip
    return [*headers, *answer.headers(), CLOSED_AFTER], body


def _two_lengths() -> HttpError:
    """For a body whose end a proxy may see elsewhere than this service does (RFC 9112, 6.1)."""
    name, value = CLOSED_AFTER
    message = "the body has both Content-Length and Transfer-Encoding"
    return HttpError(400, "R2G-HTTP-BODY", message, "send one of them", {name.decode(): value.decode()})


class _Answer:
    """The way back to the client. `status`: 0 until the answer has begun."""

    def __init__(self, site: Site, request_id: str, send: Any) -> None:
        self._site, self._send = site, send
        self.request_id = request_id
        self.status = 0

    async def send(self, message: Any) -> None:
        """A message of ASGI.

        Raises:
            ClientGoneError: the client does not take it.
        """
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", []), *self.headers()]}
        from h11 import LocalProtocolError

        try:
            async with asyncio.timeout(self._site.settings.limits.idle_seconds):
                await self._send(message)
        except (TimeoutError, LocalProtocolError):  # the latter where what is no HTTP got its answer meanwhile
            raise ClientGoneError from None

    async def error(self, error: HttpError) -> None:
        """An error as JSON."""
        headers, body = self.written(error)
        await self.send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

    def written(self, error: HttpError) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """Headers of an error, without those of every answer, and its JSON."""
        fields = {"error": error.fields(), "notice": self._site.manifest.notice, "request_id": self.request_id}
        body = json.dumps(fields).encode()
        more = [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
        return [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *more], body

    def headers(self) -> list[tuple[bytes, bytes]]:
        return [
            (b"x-request-id", self.request_id.encode()),
            (b"x-r2gen-bundle", self._site.bundle_id.encode()),
            (b"x-r2gen-notice", b"research use only; AI-generated; unverified; not for diagnosis"),
            (b"content-security-policy", POLICY.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
            (b"cross-origin-resource-policy", b"same-origin"),
        ]
