"""A request's body: images into files of a private folder, settings into a dictionary. Limits hold while it arrives."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from r2gen_export.errors import cause_of
from r2gen_export.serving.http_errors import HttpError, bad_body, too_large
from r2gen_export.serving.http_settings import HttpLimits

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

FIELD_BYTES: Final = 1024
IMAGE_FIELDS: Final = ("images", "image")
LARGE_BYTES: Final = 1 << 18
MOST_VALUES: Final = 1024
"""In a JSON body. Lists and objects take twenty times their text; base64 has none of these letters."""
_BEGINS: Final = (b",", b"[", b"{")
_DATA_URL: Final = re.compile(r"data:(?P<kind>[\w.+-]+/[\w.+-]+)?(;[\w.+-]+=[\w.+-]+)*;base64,")


class ClientGoneError(Exception):
    """The client has closed the connection."""


@dataclass
class Upload:
    """What a body held. `paths`: the images, in their order; `fields`: everything else, by name."""

    paths: list[Path] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)


async def chunks(receive: Receive, headers: Mapping[str, str], limits: HttpLimits) -> AsyncIterator[bytes]:
    """The body as it arrives.

    Raises:
        HttpError: 413 when it is larger than allowed, by its Content-Length or in fact; 408 when it comes too slowly;
            415 when it is compressed.
        ClientGoneError: the client went away.
    """
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise HttpError(415, "R2G-HTTP-BODY", "the body is compressed", "send it without Content-Encoding")
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > limits.body_bytes:
        raise too_large(f"the body has more than {limits.body_bytes >> 20} MiB")
    end, size = time.monotonic() + limits.upload_seconds, 0
    while True:
        try:
            left = min(limits.idle_seconds, end - time.monotonic())
            async with asyncio.timeout(max(0.001, left)):
                message = await receive()
        except TimeoutError:
            raise HttpError(408, "R2G-HTTP-LIMIT", "the body came too slowly", "send it faster") from None
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        part = message.get("body", b"")
        size += len(part)
        if size > limits.body_bytes:
            raise too_large(f"the body has more than {limits.body_bytes >> 20} MiB")
        yield part
        if not message.get("more_body", False):
            return


async def read_json(receive: Receive, headers: Mapping[str, str], limits: HttpLimits) -> dict[str, Any]:
    """A body that is a JSON object.

    Raises:
        HttpError: 400, 408, 413, 415.
        ClientGoneError: the client went away.
    """
    data = b"".join([part async for part in chunks(receive, headers, limits)])
    if sum(map(data.count, _BEGINS)) > MOST_VALUES:
        raise too_large(f"the body has more than {MOST_VALUES} values")
    try:
        value = await asyncio.to_thread(json.loads, data) if len(data) > LARGE_BYTES else json.loads(data)
    except (ValueError, RecursionError):
        raise bad_body("the body is no JSON") from None
    if not isinstance(value, dict):
        raise bad_body("the body is no JSON object")
    return value


async def save_data_urls(urls: Any, folder: Path, limits: HttpLimits) -> list[Path]:
    """Images from data URLs as files of `folder`.

    Raises:
        HttpError: 400 for anything but a list of data URLs, 413 for too many.
    """
    if not isinstance(urls, list) or not urls or not all(isinstance(url, str) for url in urls):
        raise bad_body("images is no list of data URLs with at least one", "data:image/png;base64,...")
    if len(urls) > limits.views:
        raise too_large(f"{len(urls)} images, and a study has at most {limits.views} here")
    return await asyncio.to_thread(_save_all, urls, folder)


def _save_all(urls: list[str], folder: Path) -> list[Path]:
    paths = []
    for view, url in enumerate(urls, start=1):
        match = _DATA_URL.match(url[:200])
        if match is None:
            message = f"view {view} is no data URL with base64; other URLs are never fetched"
            raise bad_body(message, "data:image/png;base64,...")
        try:
            data = base64.b64decode(url[match.end() :], validate=True)
        except (binascii.Error, ValueError):
            raise bad_body(f"view {view} is no base64") from None
        paths.append(folder / f"view-{view}")
        try:
            paths[-1].write_bytes(data)
        except OSError as error:
            raise _no_room(error) from error
    return paths


async def read_multipart(receive: Receive, headers: Mapping[str, str], folder: Path, limits: HttpLimits) -> Upload:
    """A body of `multipart/form-data`; its files are the images, and their names are not looked at.

    Raises:
        HttpError: 400, 408, 413, 415.
        ClientGoneError: the client went away.
    """
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser, parse_options_header

    kind, options = parse_options_header(headers.get("content-type"))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 0 < len(boundary) <= 256:
        raise bad_body("the multipart body names no boundary")
    parts = _Parts(folder, limits)
    try:
        parser = MultipartParser(boundary, parts.callbacks())
        async for data in chunks(receive, headers, limits):
            if data:
                parser.write(data)
        parser.finalize()
    except FormParserError:
        raise bad_body("the multipart body is malformed") from None
    except OSError as error:
        raise _no_room(error) from error
    finally:
        parts.close()
    if not parts.complete:
        raise bad_body("the multipart body ended before its last boundary")
    return parts.upload


class _Parts:
    """What `MultipartParser` calls: parts become files or fields as their bytes come."""

    def __init__(self, folder: Path, limits: HttpLimits) -> None:
        self._folder, self._limits = folder, limits
        self.upload = Upload()
        self.complete = False
        self._count = 0
        self._header = (b"", b"")
        self._disposition = b""
        self._name = ""
        self._file: IO[bytes] | None = None
        self._value = b""

    def callbacks(self) -> Any:
        """By the parser's names."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._grow(data[start:end], b""),
            "on_header_value": lambda data, start, end: self._grow(b"", data[start:end]),
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_end,
            "on_part_data": lambda data, start, end: self._data(data[start:end]),
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def close(self) -> None:
        """Close the file of a part that did not end. What a full disk did not take fails once more here."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None

    def _begin(self) -> None:
        self._count += 1
        if self._count > self._limits.parts:
            raise too_large(f"the body has more than {self._limits.parts} parts")
        self._disposition, self._header, self._value = b"", (b"", b""), b""

    def _grow(self, name: bytes, value: bytes) -> None:
        self._header = (self._header[0] + name, self._header[1] + value)
        if len(self._header[0]) + len(self._header[1]) > 8192:
            raise too_large("a part has a header of more than 8 KiB")

    def _header_end(self) -> None:
        if self._header[0].lower() == b"content-disposition":
            self._disposition = self._header[1]
        self._header = (b"", b"")

    def _headers_end(self) -> None:
        from python_multipart.multipart import parse_options_header

        kind, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if kind != b"form-data" or not name:
            raise bad_body("a part of the body has no name")
        self._name = name
        if b"filename" not in options:
            if name in self.upload.fields or name in IMAGE_FIELDS:
                raise bad_body("a field is there twice, or an image came without a file name")
            return
        if name not in IMAGE_FIELDS:
            raise bad_body("a file has another field name than images", "send files as images")
        if len(self.upload.paths) == self._limits.views:
            raise too_large(f"a study has at most {self._limits.views} images here")
        self.upload.paths.append(self._folder / f"view-{len(self.upload.paths) + 1}")
        self._file = self.upload.paths[-1].open("wb")

    def _data(self, data: bytes) -> None:
        if self._file is not None:
            self._file.write(data)
            return
        self._value += data
        if len(self._value) > FIELD_BYTES:
            raise too_large(f"a field has more than {FIELD_BYTES} bytes")

    def _end(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
            return
        try:
            self.upload.fields[self._name] = self._value.decode("utf-8")
        except UnicodeDecodeError:
            raise bad_body("a field is no text") from None

    def _finish(self) -> None:
        self.complete = True


def _no_room(error: OSError) -> HttpError:
    message = f"there is no room for the request's images ({cause_of(error)})"
    return HttpError(503, "R2G-RESOURCE-DISK", message, "make room on the service's disk")
