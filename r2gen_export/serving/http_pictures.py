"""`POST /v1/pictures`: an image in, a PNG out that shows it as the model's reading of it. No report is written.

For viewers of files that a browser does not decode. The worker process makes the picture; nothing of it stays.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from r2gen_export.serving.http_errors import bad_body
from r2gen_export.serving.http_fields import parse_picture
from r2gen_export.serving.http_reports import read_upload
from r2gen_export.serving.http_site import Caller, Exchange, Site
from r2gen_export.serving.http_upload import Receive


class Pictures:
    """The ASGI application of the path.

    Args:
        site: the service.
    """

    def __init__(self, site: Site) -> None:
        self._site = site

    async def __call__(self, scope: Any, receive: Receive, send: Any) -> None:
        """Answer one request.

        Raises:
            HttpError, CodedError: before the answer has begun.
            ClientGoneError: the client went away.
        """
        site = self._site
        caller: Caller = scope["r2gen"]
        if scope["query_string"]:
            raise bad_body("this path takes no query", "send settings as fields of the body")
        # A preview of each view must not use up the rate of the report that follows.
        with site.place(caller, 1 / (2 * site.settings.limits.views)) as job:
            upload = await read_upload(caller, job, receive, site.settings.limits)
            if len(upload.paths) > 1:
                message = f"the request has {len(upload.paths)} images, and a picture is of one"
                raise bad_body(message, "send a request for each image")
            request = parse_picture(upload.fields)
            exchange = Exchange(job, request, site.told(request, upload.paths, streams=False), receive, send)
            event = await site.last_event(exchange)
            await exchange.answer("image/png", await asyncio.to_thread(Path(event["picture"]).read_bytes))
