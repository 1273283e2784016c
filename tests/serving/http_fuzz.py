"""Malformed bodies for the HTTP service: bytes, multipart and JSON, each made from a seed alone."""

from __future__ import annotations

import base64
import json
import random
import time
from pathlib import Path
from typing import Any

import httpx

from tests.serving.http_site import Service

KINDS = (
    "multipart/form-data; boundary=b",
    "application/json",
    "multipart/form-data",
    "text/plain",
    "",
    "application/json;x",
)
PATHS = ("/v1/reports", "/v1/chat/completions", "/v1/reports?format=stream", "/v1/reports?format=sr", "/v1/reports?x=1")
NAMES = (
    *("images", "preset", "num_beams", "seed", "top_p", "force", "polarity", "format", "model", "messages", "stream"),
    *("n", "stream_options", "max_tokens", "temperature", "early_stopping", "\x00", "images[]", "\u00e9"),
)
VALUES: tuple[Any, ...] = (
    *("", "fast", "-1", "1e999", "nan", "9" * 400, None, True, [], {}, [[]], {"a": {}}, 1e308, -1, 10**30),
    *("http://127.0.0.1:1/", "data:image/png;base64,", "data:;base64,AAAA", ["x"], [None], "\ud800"),
)


def malformed(seed: int, picture: bytes) -> tuple[str, dict[str, str], bytes]:
    """Path, headers and body of request number `seed`."""
    draw = random.Random(seed)
    path, kind = draw.choice(PATHS), draw.choice(KINDS[:2] * 4 + KINDS)
    if kind.startswith("application/json"):
        body = _json(draw, picture)
    elif kind.startswith("multipart"):
        body = _multipart(draw, picture)
    else:
        body = draw.randbytes(draw.randrange(200))
    data = bytearray(body)
    for _ in range(draw.choice((0, 0, 1, 4))):
        if data:
            at = draw.randrange(len(data))
            data[at : at + draw.randrange(8)] = draw.randbytes(draw.randrange(8))
    headers = {"accept": draw.choice(("*/*", "text/event-stream", "application/pdf", "x", "")), "content-type": kind}
    return path, headers, bytes(data)


def _json(draw: random.Random, picture: bytes) -> bytes:
    fields: dict[str, Any] = {draw.choice(NAMES): draw.choice(VALUES) for _ in range(draw.randrange(6))}
    if draw.random() < 0.5:
        url = "data:image/png;base64," + base64.b64encode(picture[: draw.randrange(400)]).decode()
        fields["images"] = [url] * draw.randrange(1, 4)
    if draw.random() < 0.4:
        part = {
            "type": draw.choice(("image_url", "text", 1)),
            "image_url": draw.choice(({"url": "data:;base64,AAAA"}, 1, {})),
        }
        fields |= {"model": "r2gen-demo", "messages": [{"role": "user", "content": [part]}]}
    text = json.dumps(fields)
    return (text[: draw.randrange(len(text))] if draw.random() < 0.2 else text).encode("utf-8", "replace")


def _multipart(draw: random.Random, picture: bytes) -> bytes:
    parts = []
    for _ in range(draw.randrange(5)):
        name, file = draw.choice(NAMES), draw.choice(("", '; filename="a"', "; filename*=x''a", '; filename="'))
        end = draw.choice(("\r\n\r\n", "\n\n", "\r\n", ": x\r\n\r\n"))
        value = picture[: draw.randrange(600)] if file else str(draw.choice(VALUES)).encode("utf-8", "replace")
        disposition = draw.choice(("form-data", "attachment", "")) if draw.random() < 0.2 else "form-data"
        parts.append(
            f'--b\r\nContent-Disposition: {disposition}; name="{name}"{file}{end}'.encode("utf-8", "replace") + value
        )
    return b"\r\n".join([*parts, draw.choice((b"--b--\r\n", b"--b", b"", b"--b--"))])


def run_fuzz(url: str, picture: Path, seeds: range) -> dict[str, int]:
    """Send them. Returns how many had which status.

    Raises:
        AssertionError: an answer is a 500, has a traceback, or is an error without code, notice and request id.
    """
    data, counts = picture.read_bytes(), {}
    with httpx.Client(base_url=url, timeout=60) as client:
        for seed in seeds:
            path, headers, body = malformed(seed, data)
            answer = client.post(path, headers=headers, content=body)
            counts[str(answer.status_code)] = counts.get(str(answer.status_code), 0) + 1
            assert answer.status_code != 500 and "Traceback" not in answer.text, f"seed {seed}: {answer.text[:300]}"
            if answer.status_code >= 400:
                fields = answer.json()
                assert fields["error"]["code"].startswith("R2G-") and fields["notice"], f"seed {seed}"
                assert fields["request_id"] == answer.headers["x-request-id"], f"seed {seed}"
    return counts


def check_afterwards(site: Service) -> None:
    """What a service has to show after any requests at all.

    Raises:
        AssertionError: it logged an error, or what is no JSON; it still has an upload.
    """
    end = time.monotonic() + 60
    while site.uploads():
        assert time.monotonic() < end, "an upload was not removed"
        time.sleep(0.02)
    assert "Traceback" not in site.text
    failures = [entry for entry in site.log if not isinstance(entry, dict) or entry["level"] == "error"]
    assert failures == []
