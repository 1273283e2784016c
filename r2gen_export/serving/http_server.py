"""The HTTP service as a whole: its private folder, TLS, connections, signals, and the order of start and end."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import shutil
import signal
import socket
import ssl
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from r2gen_export.bundle import bundle_id, bundle_path, load_manifest
from r2gen_export.errors import R2GenError, cause_of
from r2gen_export.runtime.settings import prompt_length
from r2gen_export.serving.audit import Audit
from r2gen_export.serving.http_app import make_app
from r2gen_export.serving.http_auth import KeyFile, Rates
from r2gen_export.serving.http_fields import Most
from r2gen_export.serving.http_front import answer_to_no_http
from r2gen_export.serving.http_jobs import Jobs
from r2gen_export.serving.http_metrics import HttpMetrics
from r2gen_export.serving.http_settings import HttpLimits, ServeSettings
from r2gen_export.serving.http_site import Site
from r2gen_export.serving.http_worker import HttpWorkerSettings
from r2gen_export.serving.log import EventLog

PREFIX: Final = "r2gen-serve-"
LOCK: Final = "in-use"
KEEP_ALIVE_SECONDS: Final = 15
STOP_SECONDS: Final = 0.3
"""For the answers to requests that a second signal ends."""


@contextmanager
def private_folder(base: Path | None) -> Iterator[Path]:
    """A folder for uploads that only this user may read, removed at the end.

    Folders that services of this user left behind when they were killed are removed first: the system releases the lock
    of a process that has ended, however it ended.

    Raises:
        R2GenError: `R2G-OUTPUT-WRITE` when it cannot be made.
    """
    parent = base or Path(tempfile.gettempdir())
    try:
        for old in parent.glob(f"{PREFIX}*"):
            if not old.is_symlink() and old.is_dir() and old.stat().st_uid == os.getuid():
                _remove_if_left(old)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        message = f"the folder of uploads cannot be made: {cause_of(error)}"
        raise R2GenError("R2G-OUTPUT-WRITE", message, "give --scratch DIR that this user may write to") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _remove_if_left(folder: Path) -> None:
    with suppress(OSError):
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """For clients of HTTPS, TLS 1.2 or newer.

    Raises:
        R2GenError: `R2G-NODE-NETWORK` when the files cannot be used or the certificate is out of date.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # An empty password: OpenSSL would else ask for one on the terminal.
        context.load_cert_chain(certificate, key, password="")
    except (OSError, ssl.SSLError, ValueError) as error:
        message = f"the files of --tls-cert and --tls-key cannot be used: {cause_of(error)}"
        raise R2GenError("R2G-NODE-NETWORK", message, "give PEM files, the key without a password") from error
    facts = ssl._ssl._test_decode_cert(str(certificate))  # type: ignore[attr-defined]  # no public reader of a file
    now = time.time()
    if not ssl.cert_time_to_seconds(facts["notBefore"]) <= now <= ssl.cert_time_to_seconds(facts["notAfter"]):
        message = f"the certificate of --tls-cert is valid from {facts['notBefore']} to {facts['notAfter']}, not now"
        raise R2GenError("R2G-NODE-NETWORK", message, "renew the certificate, or set the clock")
    return context


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        R2GenError: `R2G-NODE-NETWORK`.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        message = f"the service cannot listen on port {port}: {cause_of(error)}"
        raise R2GenError("R2G-NODE-NETWORK", message, "choose another --port or --host") from error
    listener.setblocking(False)
    return listener


def serve(settings: ServeSettings) -> None:
    """Serve until a signal ends it: the first lets open requests finish, the second stops at once.

    Raises:
        R2GenError: `R2G-BUNDLE-*`, `R2G-CONFIG-VALUE`, `R2G-NODE-NETWORK`, `R2G-OUTPUT-WRITE`, before it listens; and
            what loading the model raises at the first time.
    """
    settings.check()
    log = EventLog()
    _silence()
    manifest = load_manifest(bundle_path(str(settings.bundle) if settings.bundle else None))
    context = None
    if settings.certificate is not None and settings.private_key is not None:
        context = tls_context(settings.certificate, settings.private_key)
    keys = KeyFile(settings.key_file, log) if settings.key_file is not None else None
    most = Most.of(manifest, settings.limits.most_beams, settings.limits.most_tokens)
    worker = HttpWorkerSettings(
        str(settings.bundle) if settings.bundle else None, settings.device, settings.threads, settings.draft,
        settings.batch, most.beams, most.tokens,
    )  # fmt: skip
    audit = Audit(settings.audit_file, log)
    metrics = HttpMetrics()
    with private_folder(settings.scratch) as folder:
        jobs = Jobs(worker, settings.limits, folder, metrics, log)
        site = Site(
            settings=settings, manifest=manifest, bundle_id=bundle_id(manifest), positions=prompt_length(manifest),
            most=most, jobs=jobs, metrics=metrics, keys=keys, rates=Rates(), audit=audit, log=log,
        )  # fmt: skip
        listener = listen(settings.host, settings.port)
        asyncio.run(_run(site, listener, context))
    audit.close()
    log("stopped")
    if jobs.problem is not None and not jobs.was_ready:
        raise R2GenError(jobs.problem["code"], jobs.problem["message"], jobs.problem["fix"])


async def _run(site: Site, listener: socket.socket, context: ssl.SSLContext | None) -> None:
    import uvicorn

    config = uvicorn.Config(
        make_app(site), http=_protocol(site), ws="none", lifespan="off", log_config=None,
        access_log=False, proxy_headers=False, server_header=False, timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )  # fmt: skip
    config.load()
    if context is not None:
        config.ssl = context
    server = uvicorn.Server(config)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, facts: _task_failed(site.log, facts))
    worker = asyncio.create_task(site.jobs.run())
    sweeper = asyncio.create_task(_sweep(server, site.settings.limits))

    def end() -> None:
        """The first signal drains, the second stops."""
        if server.should_exit:
            server.force_exit = True
            site.jobs.kill()
            site.log("stopping at once", "warning")
        else:
            site.log("stopping, open requests are finished")
        server.should_exit = True

    def end_without_worker(_: asyncio.Task[None]) -> None:
        """Requests that are open have their answer: it ends by itself where the model cannot be loaded."""
        server.should_exit = True

    worker.add_done_callback(end_without_worker)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, end)
    site.log("listening", port=listener.getsockname()[1], tls="yes" if context else "no",
             keys=len(site.keys.keys) if site.keys else 0, bundle=site.bundle_id)  # fmt: skip
    try:
        await server._serve([listener])  # `serve` would take the signals itself
    finally:
        sweeper.cancel()
        site.jobs.kill()
        if server.force_exit:
            await asyncio.sleep(STOP_SECONDS)
        worker.cancel()
        with suppress(asyncio.CancelledError):
            await worker


def _task_failed(log: EventLog, facts: Mapping[str, Any]) -> None:
    error = facts.get("exception")
    log("task failed", "error", reason=cause_of(error) if isinstance(error, BaseException) else "unknown")


def _protocol(site: Site) -> Any:
    """HTTP/1.1 for so many connections; further ones are closed at once."""
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Limited(H11Protocol):
        quiet_since: float | None = None
        closing_since: float | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > site.settings.limits.connections:
                transport.abort()

        def send_400_response(self, msg: str) -> None:
            """What is no HTTP gets an error of ours, unless an answer has begun: then the connection is cut."""
            if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
                self.transport.abort()
                return
            headers, body = answer_to_no_http(site)
            head = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
            with suppress(h11.LocalProtocolError):  # an answer to HEAD has no body
                for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                    self.transport.write(self.conn.send(event))
            self.transport.close()

    return Limited


async def _sweep(server: Any, limits: HttpLimits) -> None:
    """Cut connections whose headers do not come to an end, and those whose last bytes nobody takes."""
    while True:
        await asyncio.sleep(min(1.0, limits.head_seconds / 2))
        now = time.monotonic()
        for connection in list(server.server_state.connections):
            busy = connection.cycle is not None and not connection.cycle.response_complete
            connection.quiet_since = None if busy else connection.quiet_since or now
            if connection.transport.is_closing():
                connection.closing_since = connection.closing_since or now
            # uvicorn closes a connection that stays idle behind an answer by itself.
            slow_head = connection.quiet_since is not None and now - connection.quiet_since > limits.head_seconds
            waits = connection.timeout_keep_alive_task is not None
            stuck = connection.closing_since is not None and now - connection.closing_since > limits.idle_seconds
            if (slow_head and not waits) or stuck:
                connection.transport.abort()


def _silence() -> None:
    """Let libraries write nothing: their messages hold paths, headers and tracebacks."""
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio", "python_multipart", "multipart"):
        logger = logging.getLogger(name)
        logger.handlers = [logging.NullHandler()]
        logger.propagate = False
        logger.setLevel(logging.CRITICAL + 1)
