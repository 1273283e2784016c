"""`POST /v1/chat/completions` and `GET /v1/models`, as clients of OpenAI's interface call them.

One user message with images as data URLs. What this model cannot do is refused by its name and not ignored. The content
of an answer is the report with its warnings and the notice, since a client may show nothing else; the report alone, and
all its fields, are in `r2gen`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from r2gen_export.errors import R2GenError
from r2gen_export.reporting.report import closing
from r2gen_export.runtime.settings import FIELDS
from r2gen_export.serving.http_errors import HttpError
from r2gen_export.serving.http_fields import parse_request
from r2gen_export.serving.http_jobs import Job
from r2gen_export.serving.http_site import Caller, Exchange, Site
from r2gen_export.serving.http_upload import Receive, read_json, save_data_urls

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

NAMES: Final = {"max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens"}
"""Parameters of OpenAI's interface that are settings of ours under another name."""

OWN: Final = ("model", "messages", "stream", "stream_options", "n")
FINISH: Final = {"eos": "stop", "length": "length"}


def models(site: Site) -> Callable[[Request], Any]:
    """The endpoint that lists the one model."""

    async def answer(_: Request) -> Response:
        from starlette.responses import JSONResponse

        created = int(datetime.fromisoformat(site.manifest.created).timestamp())
        model = {"id": site.manifest.model_id, "object": "model", "created": created, "owned_by": "r2gen",
                 "bundle_id": site.bundle_id, "presets": sorted(site.manifest.presets),
                 "precision": site.manifest.precision["decoder"]}  # fmt: skip
        return JSONResponse({"object": "list", "data": [model], "notice": site.manifest.notice})

    return answer


class Chat:
    """The ASGI application of `/v1/chat/completions`.

    Args:
        site: the service.
    """

    def __init__(self, site: Site) -> None:
        self._site = site

    async def __call__(self, scope: Any, receive: Receive, send: Any) -> None:
        """Answer one request.

        Raises:
            HttpError, CodedError, ClientGoneError: as `Reports`.
        """
        site = self._site
        caller: Caller = scope["r2gen"]
        with site.place(caller) as job:
            if caller.body_kind != "application/json":
                raise HttpError(415, "R2G-HTTP-BODY", "the body is of a type that is not read", "application/json")
            fields = await read_json(receive, caller.headers, site.settings.limits)
            urls = image_urls(fields, site.manifest.model_id)
            request = parse_request(site.manifest, site.most, _settings(fields), "json")
            paths = await save_data_urls(urls, job.folder, site.settings.limits)
            told = site.told(request, paths, streams=bool(fields.get("stream")))
            exchange = Exchange(job, request, told, receive, send)
            if fields.get("stream"):
                usage = bool((fields.get("stream_options") or {}).get("include_usage"))
                await self._stream(exchange, usage=usage)
            else:
                await self._whole(exchange)

    async def _whole(self, exchange: Exchange) -> None:
        report = self._site.given(exchange, (await self._site.last_event(exchange))["report"])
        message = {"role": "assistant", "content": report["text"] + closing(report["warnings"], report["notice"])}
        choice = {"index": 0, "message": message, "finish_reason": FINISH[report["finish_reason"]], "logprobs": None}
        fields = {
            **self._head(exchange.job, "chat.completion"),
            "choices": [choice],
            "usage": self._usage(report),
            "notice": report["notice"],
            "r2gen": report,
        }
        await exchange.answer("application/json", json.dumps(fields).encode())

    async def _stream(self, exchange: Exchange, *, usage: bool) -> None:
        head = self._head(exchange.job, "chat.completion.chunk")

        async def say(fields: Mapping[str, Any] | str, *, more: bool = True) -> None:
            data = fields if isinstance(fields, str) else json.dumps(fields)
            await exchange.say(f"data: {data}", more=more)

        def chunk(delta: Mapping[str, Any], reason: str | None = None, **more: Any) -> dict[str, Any]:
            return {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}], **more}

        try:
            async with aclosing(self._site.events(exchange)) as events:
                async for event in events:
                    if "text" in event:
                        role = {} if exchange.begun else {"role": "assistant"}
                        await say(chunk({**role, "content": event["text"]}))
                        continue
                    report = self._site.given(exchange, event["report"])
                    await say(chunk({"content": closing(report["warnings"], report["notice"])}))
                    await say(chunk({}, FINISH[report["finish_reason"]], notice=report["notice"], r2gen=report))
                    if usage:
                        await say({**head, "choices": [], "usage": self._usage(report)})
                    await say("[DONE]", more=False)
        except HttpError as error:
            if not exchange.begun:
                raise
            exchange.job.failed = error.code
            await say({"error": error.fields(), "notice": self._site.manifest.notice}, more=False)

    def _head(self, job: Job, kind: str) -> dict[str, Any]:
        return {"id": f"chatcmpl-{job.request_id}", "object": kind, "created": int(time.time()),
                "model": self._site.manifest.model_id, "system_fingerprint": self._site.bundle_id}  # fmt: skip

    def _usage(self, report: Mapping[str, Any]) -> dict[str, int]:
        prompt, completion = self._site.positions, len(report["token_ids"])
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def image_urls(fields: Mapping[str, Any], model_id: str) -> list[str]:
    """The data URLs of the only message, once everything else of the request is known to be what this model does.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE`, naming the parameter.
    """
    known = {*OWN, *NAMES, *FIELDS, "preset", "semantics", "force", "polarity"}
    if unknown := [name for name in fields if name not in known]:
        names = ", ".join(repr(name[:40]) for name in unknown[:5])
        raise _wrong(f"parameter {names} is not supported", f"known: {', '.join(sorted(known))}")
    if fields.get("model") not in (model_id, "r2gen"):
        raise _wrong("model is not this service's", f"give {model_id!r}")
    if fields.get("n") not in (None, 1) or isinstance(fields.get("n"), bool):
        raise _wrong("n is not 1: one report is written for a study", "leave n out")
    if not isinstance(fields.get("stream", False), bool | None):
        raise _wrong("stream is neither true nor false", "give true or false")
    options = fields.get("stream_options")
    if options is not None and not (isinstance(options, dict) and options.keys() <= {"include_usage"}):
        raise _wrong("stream_options has more than include_usage", "leave the rest out")
    if not isinstance((options or {}).get("include_usage"), bool | None):
        raise _wrong("stream_options.include_usage is neither true nor false", "give true or false")
    messages = fields.get("messages")
    if not isinstance(messages, list) or len(messages) != 1 or not isinstance(messages[0], dict):
        raise _wrong("messages is not exactly one message", "send one user message with the images of one study")
    message = messages[0]
    if message.get("role") != "user" or message.keys() - {"role", "content"}:
        raise _wrong("messages[0] is no plain message of role user", "send one user message")
    content = message.get("content")
    if not isinstance(content, list) or not content:
        raise _wrong("messages[0].content is no list of parts", "send parts of type image_url")
    return [_image_url(part) for part in content]


def _image_url(part: Any) -> str:
    if isinstance(part, dict) and part.get("type") == "text":
        raise _wrong("messages[0].content has text: this model's prompt is fixed", "leave parts of type text out")
    image = part.get("image_url") if isinstance(part, dict) and part.get("type") == "image_url" else None
    if not isinstance(image, dict) or not isinstance(image.get("url"), str):
        raise _wrong("messages[0].content has a part that is no image_url", "send parts of type image_url")
    if image.keys() - {"url", "detail"} or image.get("detail") not in (None, "auto"):
        raise _wrong("image_url.detail is not supported: images are seen in one size", "leave detail out")
    return str(image["url"])


def _settings(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Our settings of a request. Temperature 0 is OpenAI's word for no sampling."""
    given = {NAMES.get(name, name): value for name, value in fields.items() if name not in OWN and value is not None}
    if sum(name in fields and fields[name] is not None for name in (*NAMES, "max_new_tokens")) > 1:
        raise _wrong("max_tokens and max_completion_tokens are the same setting", "give one of them")
    if given.get("temperature") == 0 and not isinstance(given["temperature"], bool):
        del given["temperature"]
        if sampling := {"top_p", "top_k", "seed"} & given.keys():
            raise _wrong(f"{sorted(sampling)[0]} needs sampling, and temperature is 0", "leave one of them out")
        given["do_sample"] = False
    return given


def _wrong(message: str, fix: str) -> R2GenError:
    return R2GenError("R2G-CONFIG-VALUE", message, fix)
