"""What the parts of one HTTP service share, and the way of a request through it: its place, its events, its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from r2gen_export.bundle import Manifest
from r2gen_export.errors import R2GenError
from r2gen_export.serving.audit import Audit
from r2gen_export.serving.http_auth import Key, KeyFile, Rates
from r2gen_export.serving.http_errors import HttpError, not_ready
from r2gen_export.serving.http_fields import Most, PictureRequest, ReportRequest
from r2gen_export.serving.http_jobs import Job, Jobs
from r2gen_export.serving.http_metrics import HttpMetrics
from r2gen_export.serving.http_settings import ServeSettings
from r2gen_export.serving.http_upload import ClientGoneError, Receive
from r2gen_export.serving.log import EventLog

NOT_STORED: Final = (b"cache-control", b"no-store")


@dataclass(frozen=True)
class Caller:
    """Who sent a request. `owner`: whose turn in the fair order it takes; `headers` by their names in small
    letters; `failures`: codes of errors that ended an answer by events."""

    request_id: str
    owner: str
    key: Key | None
    headers: Mapping[str, str]
    failures: list[str] = field(default_factory=list)

    @property
    def key_name(self) -> str:
        """Of the key, empty where none is asked for."""
        return self.key.name if self.key is not None else ""

    @property
    def body_kind(self) -> str:
        """The media type of the body, in small letters and without parameters; empty where none is named."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


@dataclass(eq=False, repr=False)
class Exchange:
    """A request whose body was read. `told`: what the worker is told; `receive`, `send`: of ASGI; `begun`: whether an
    answer by events has begun, whose status cannot be changed any more."""

    job: Job
    request: ReportRequest | PictureRequest
    told: Mapping[str, Any]
    receive: Receive
    send: Any
    begun: bool = False

    async def answer(self, kind: str, body: bytes) -> None:
        """A whole answer."""
        headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode()), NOT_STORED]
        await self.send({"type": "http.response.start", "status": 200, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

    async def say(self, event: str, *, more: bool = True) -> None:
        """One server-sent event, its lines as they are sent; the first one after the head of the answer."""
        if not self.begun:
            self.begun = True
            kind = (b"content-type", b"text/event-stream; charset=utf-8")
            headers = [kind, (b"x-accel-buffering", b"no"), NOT_STORED]
            await self.send({"type": "http.response.start", "status": 200, "headers": headers})
        await self.send({"type": "http.response.body", "body": f"{event}\n\n".encode(), "more_body": more})


@dataclass(frozen=True)
class Site:
    """A running service. `positions`: of the bundle's prompt."""

    settings: ServeSettings
    manifest: Manifest
    bundle_id: str
    positions: int
    most: Most
    jobs: Jobs
    metrics: HttpMetrics
    keys: KeyFile | None
    rates: Rates
    audit: Audit
    log: EventLog

    @contextmanager
    def place(self, caller: Caller, share: float = 1) -> Iterator[Job]:
        """A place for a request, until the block ends. `share`: of a report, for the rate of its key.

        Raises:
            HttpError: 429 when the key has used its rate or the queue is full, 503 when the disk is.
        """
        if caller.key is not None:
            self.rates.take(caller.key, share)
        job = self.jobs.place(caller.request_id, caller.owner, caller.key_name)
        try:
            yield job
        finally:
            caller.failures.extend([job.failed] if job.failed else [])
            self.jobs.leave(job)

    def told(self, request: ReportRequest | PictureRequest, paths: Sequence[Path], *, streams: bool) -> dict[str, Any]:
        """What the worker is told of a request whose images are in the files `paths`."""
        return {
            **request.told(),
            "paths": [str(path) for path in paths],
            "streams": streams,
            "pixels": self.settings.limits.pixels,
        }

    async def events(self, exchange: Exchange) -> AsyncGenerator[dict[str, Any], None]:
        """`{"text"}` for each piece, then `{"report", "file"}`, once the request has had its turn; for a picture
        `{"picture"}` alone, the path of its PNG.

        Raises:
            HttpError: what became of it instead: the worker's error; 503 when the worker ended; 504 after the deadline.
            ClientGoneError: the client went away.
        """
        job = exchange.job
        watch = asyncio.create_task(_until_gone(exchange.receive, job))
        deadline = self.settings.limits.deadline_seconds
        timer = asyncio.get_running_loop().call_later(deadline, job.events.put_nowait, {"late": True})
        try:
            self.jobs.queue(job, exchange.told)
            while True:
                event = await job.next_event()
                if "left" in event:
                    raise ClientGoneError
                if "late" in event:
                    message = f"the request was not done within {deadline:g} s"
                    raise HttpError(504, "R2G-HTTP-TIME", message, "send the request again when there are fewer")
                if "lost" in event:
                    raise not_ready(event.get("message", "the process that writes reports ended while it wrote"))
                if "error" in event:
                    raise HttpError.of_fields(event["error"])
                yield event
                if "report" in event or "picture" in event:
                    return
        finally:
            watch.cancel()
            timer.cancel()

    async def last_event(self, exchange: Exchange) -> dict[str, Any]:
        """The event that ends a request, for an answer that is given whole.

        Raises:
            HttpError, ClientGoneError: as `events`.
        """
        async with aclosing(self.events(exchange)) as events:
            async for event in events:
                last = event
        return last

    def given(self, exchange: Exchange, report: Mapping[str, Any]) -> dict[str, Any]:
        """The report as it is given out, once its audit line is written.

        Raises:
            HttpError: 503 when the audit cannot be written: no report then.
        """
        job = exchange.job
        try:
            self.audit.report(job.key, job.request_id, exchange.request.form, report)
        except R2GenError as error:
            raise HttpError.of(error) from error
        whole = time.monotonic() - job.arrived
        self.metrics.reported(report, self.positions, whole, (job.first or time.monotonic()) - job.arrived)
        return {**report, "request_id": job.request_id}


async def _until_gone(receive: Receive, job: Job) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    job.events.put_nowait({"left": True})
