"""`POST /v1/reports`: a study's images in, its report out, in the form the client asks for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from r2gen_export.reporting.report import closing
from r2gen_export.serving.http_errors import HttpError, bad_body
from r2gen_export.serving.http_fields import MEDIA, STREAM, TEXT, form_of, parse_request
from r2gen_export.serving.http_jobs import Job
from r2gen_export.serving.http_settings import HttpLimits
from r2gen_export.serving.http_site import Caller, Exchange, Site
from r2gen_export.serving.http_upload import Receive, Upload, read_json, read_multipart, save_data_urls


class Reports:
    """The ASGI application of the path.

    Args:
        site: the service.
    """

    def __init__(self, site: Site) -> None:
        self._site = site

    async def __call__(self, scope: Any, receive: Receive, send: Any) -> None:
        """Answer one request.

        Raises:
            HttpError, CodedError: before the answer has begun; an answer by events that has begun ends with an error
                event instead.
            ClientGoneError: the client went away.
        """
        site, caller = self._site, scope["r2gen"]
        try:
            query = parse_qs(scope["query_string"].decode("latin-1"), True, max_num_fields=8)
        except ValueError:
            raise bad_body("the query has more than 8 parameters", "?format= is the only one") from None
        if unknown := query.keys() - {"format"}:
            raise bad_body(f"the query has {len(unknown)} parameters that are not known", "?format= is the only one")
        form = form_of(caller.headers.get("accept", ""), query.get("format", [None])[-1])
        with site.place(caller) as job:
            upload = await read_upload(caller, job, receive, site.settings.limits)
            request = parse_request(site.manifest, site.most, upload.fields, form)
            told = site.told(request, upload.paths, streams=request.form == STREAM)
            exchange = Exchange(job, request, told, receive, send)
            await (self._stream(exchange) if request.form == STREAM else self._whole(exchange))

    async def _whole(self, exchange: Exchange) -> None:
        form = exchange.request.form
        event = await self._site.last_event(exchange)
        report = self._site.given(exchange, event["report"])
        if event["file"] is not None:
            body = await asyncio.to_thread(Path(event["file"]).read_bytes)
        else:
            body = _body(form, report)
        await exchange.answer(MEDIA[form], body)

    async def _stream(self, exchange: Exchange) -> None:
        """Server-sent events. What refuses the request before its first piece is answered by its status."""

        async def say(event: str, fields: Mapping[str, Any], *, more: bool = True) -> None:
            await exchange.say(f"event: {event}\ndata: {json.dumps(fields)}", more=more)

        try:
            async with aclosing(self._site.events(exchange)) as events:
                async for event in events:
                    if "text" in event:
                        await say("text", {"text": event["text"]})
                    else:
                        await say("report", self._site.given(exchange, event["report"]), more=False)
        except HttpError as error:
            if not exchange.begun:
                raise
            exchange.job.failed = error.code
            await say("error", {**error.fields(), "notice": self._site.manifest.notice}, more=False)


async def read_upload(caller: Caller, job: Job, receive: Receive, limits: HttpLimits) -> Upload:
    """The body of a request, a form or JSON, with at least one image as a file of the job's folder.

    Raises:
        HttpError: 400, 408, 413, 415, 503 when the disk is full.
        ClientGoneError: the client went away.
    """
    if caller.body_kind == "multipart/form-data":
        upload = await read_multipart(receive, caller.headers, job.folder, limits)
    elif caller.body_kind == "application/json":
        fields = await read_json(receive, caller.headers, limits)
        upload = Upload(await save_data_urls(fields.pop("images", None), job.folder, limits), fields)
    else:
        fix = "send multipart/form-data or application/json"
        raise HttpError(415, "R2G-HTTP-BODY", "the body is of a type that is not read", fix)
    if not upload.paths:
        raise HttpError(400, "R2G-DATA-EMPTY", "the request has no image", "send files as images")
    return upload


def _body(form: str, report: Mapping[str, Any]) -> bytes:
    """The report as text or JSON."""
    if form == TEXT:
        return f"{report['text']}{closing(report['warnings'], report['notice'])}\n".encode()
    return json.dumps(report, ensure_ascii=False).encode()
