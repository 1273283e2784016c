"""Malformed HTTP, made from a seed alone, and what a server answers on the same connection."""

from __future__ import annotations

import random
import socket
from dataclasses import dataclass
from typing import BinaryIO

HOST = b"Host: 127.0.0.1\r\n"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
FORM = (
    b'--b\r\nContent-Disposition: form-data; name="preset"\r\n\r\nfast\r\n'
    b'--b\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\nno image\r\n--b--\r\n'
)
KIND = b"Content-Type: multipart/form-data; boundary=b\r\n"
LINES = (
    *(
        b"GET /health HTTP/1.1",
        b"GET  /health  HTTP/1.1",
        b"GET /health",
        b"GET\t/health HTTP/1.1",
        b"",
        b"\x00\x01\x02",
    ),
    *(
        b"get /health http/1.1",
        b"GET /health HTTP/9.9",
        b"GET /health HTTP/1.0",
        b"GET /health HTTP/0.9",
        b"\x16\x03\x01",
    ),
    *(b"GET http://127.0.0.1/health HTTP/1.1", b"GET http://elsewhere.example/ HTTP/1.1", b"OPTIONS * HTTP/1.1"),
    *(b"CONNECT 127.0.0.1:1 HTTP/1.1", b"GET //health HTTP/1.1", b"GET /%00 HTTP/1.1", b"GET /%ff%fe HTTP/1.1"),
    *(b"GET /\xff HTTP/1.1", b"GET /../../etc/passwd HTTP/1.1", b"GET /health?a=%zz HTTP/1.1", b"GET ? HTTP/1.1"),
    *(b"TRACE /v1/reports HTTP/1.1", b"M-SEARCH * HTTP/1.1", b"HEAD /v1/reports HTTP/1.1", b"DELETE /health HTTP/1.1"),
    *(b"GET /" + b"a" * 70_000 + b" HTTP/1.1", b"G" * 70_000 + b" / HTTP/1.1", b"GET /v1/none#x HTTP/1.1"),
)
HEADERS = (
    *(
        b"X: a\x00b",
        b"X a: b",
        b": b",
        b"X : b",
        b" X: b",
        b"X: a\r\n folded",
        b"X: \xff\xfe",
        b"X\xff: b",
        b"no colon",
    ),
    *(b"X: " + b"a" * 70_000, b"X: b\r\n" * 300 + b"X: b", b"Host: elsewhere.example", b"Host: 127.0.0.1"),
    *(b"Origin: http://[", b"Origin: null", b"Origin: http://elsewhere.example", b"Sec-Fetch-Site: cross-site"),
    *(b"Connection: upgrade\r\nUpgrade: websocket", b"Connection: upgrade, HTTP2-Settings\r\nUpgrade: h2c"),
    *(
        b"Expect: 100-continue",
        b"Expect: nothing",
        b"Authorization: Bearer \xff",
        b"Authorization: \x01",
        b"Accept: ;;,\xff",
    ),
    *(b"Accept: */*;q=nan", b"Range: bytes=0-1", b"If-None-Match: *", b"Cookie: " + b"a=b;" * 500, b"Trailer: X"),
    *(
        b"Connection: close",
        b"Connection: ,,",
        b"Content-Encoding: gzip",
        b"Content-Encoding: identity",
        b"TE: trailers",
    ),
)
LENGTHS = (
    *(b"Content-Length: 5\r\nContent-Length: 6", b"Content-Length: -1", b"Content-Length: +5", b"Content-Length: 0x5"),
    *(b"Content-Length: " + b"9" * 5000, b"Content-Length: 5, 5", b"Content-Length: ", b"Content-Length: 5 5"),
    *(b"Content-Length: 99999999999", b"Content-Length: 0", b"Content-Length: \xb2"),
    *(b"Transfer-Encoding: chunked\r\nContent-Length: 5", b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: x"),
    *(
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: Chunked",
        b"Transfer-Encoding: ",
    ),
    *(b"Transfer-Encoding: chunked, identity", b"Transfer-Encoding:\x0bchunked"),
)
UNFINISHED = (b"2\r\n{}", b"2\n{}\n0\n\n")
CHUNKS = (
    *(b"zz\r\n{}\r\n0\r\n\r\n", b"-1\r\n{}\r\n0\r\n\r\n", *UNFINISHED, b"3\r\n{}\r\n0\r\n\r\n"),
    *(
        b"2;x=\x00\r\n{}\r\n0\r\n\r\n",
        b"f" * 40 + b"\r\n{}\r\n",
        b"2\r\n{}\r\n0\r\nX: y\r\n\r\n",
        b"2\r\n{}\r\n0\r\n: y\r\n\r\n",
    ),
    *(
        b"2;" + b"a" * 70_000 + b"\r\n{}\r\n0\r\n\r\n",
        b"0\r\n\r\n",
        b"\r\n",
        b"2\r\n{}\r\n0\r\n\r\nGET /health HTTP/1.1\r\n",
    ),
)


@dataclass(frozen=True)
class Raw:
    """Bytes to send, in pieces. `answers`: after so many the client closes the connection; None: the server does."""

    pieces: tuple[bytes, ...]
    answers: int | None = None


@dataclass(frozen=True)
class Answer:
    """One answer; names of headers are in small letters."""

    status: int
    headers: dict[str, str]
    body: bytes


def malformed_http(seed: int) -> Raw:
    """What connection number `seed` sends. Everything it waits for an answer to is a request that has an end."""
    draw = random.Random(seed)
    kind = draw.randrange(8)
    if kind == 0:
        head = draw.choice(LINES)
        data = head + b"\r\n" + HOST + b"Connection: close\r\n\r\n"
    elif kind == 1:
        headers = b"\r\n".join(draw.sample(HEADERS, draw.randrange(1, 4)))
        data = b"GET /health HTTP/1.1\r\n" + HOST + headers + b"\r\nConnection: close\r\n\r\n"
    elif kind == 2:
        data = _post(draw.choice(LENGTHS), b"{}   ", b"Content-Type: application/json\r\n")
        return Raw((data + b"GET /smuggled HTTP/1.1\r\n" + HOST + b"\r\n",), 1)
    elif kind == 3:
        chunks = draw.choice(CHUNKS)
        data = _post(b"Transfer-Encoding: chunked", chunks, b"Content-Type: application/json\r\n")
        return Raw((data,), 0 if chunks in UNFINISHED else 1)
    elif kind == 4:
        length = b"Content-Length: %d" % len(FORM)
        more = draw.choice(HEADERS) + b"\r\nConnection: close\r\n"
        data = _post(length, FORM, KIND + more)
        at = sorted(draw.randrange(len(data)) for _ in range(draw.randrange(4)))
        return Raw(tuple(data[start:end] for start, end in zip([0, *at], [*at, len(data)], strict=True)))
    elif kind == 5:  # a client that goes away
        data = _post(b"Content-Length: %d" % (len(FORM) + 10), FORM, KIND)
        return Raw((data[: draw.randrange(len(data))],), 0)
    elif kind == 6:  # pipelined
        good = b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n"
        last = draw.choice(
            (b"\x00\r\n\r\n", PREFACE, b"GET /health HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
        )
        data = good * draw.randrange(1, 20) + last
    else:
        data = bytearray(_post(b"Content-Length: %d" % len(FORM), FORM, KIND + b"Connection: close\r\n"))
        for _ in range(draw.randrange(1, 4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        return Raw((bytes(data),), 0) if draw.random() < 0.5 else Raw((PREFACE, bytes(data)))
    return Raw((data,))


def _post(length: bytes, body: bytes, headers: bytes) -> bytes:
    return b"POST /v1/reports HTTP/1.1\r\n" + HOST + headers + length + b"\r\n\r\n" + body


def exchange(port: int, raw: Raw) -> list[Answer]:
    """Send it, and read the answers.

    Raises:
        TimeoutError: the server neither answers nor closes the connection.
    """
    answers: list[Answer] = []
    with socket.create_connection(("127.0.0.1", port)) as connection, connection.makefile("rb") as reader:
        connection.settimeout(60)
        try:
            for piece in raw.pieces:
                connection.sendall(piece)
            while len(answers) != raw.answers and (answer := read_answer(reader)) is not None:
                answers.append(answer)
        except ConnectionError:
            pass
    return answers


def read_answer(reader: BinaryIO) -> Answer | None:
    """The next final answer, None at the end of the connection."""
    line = reader.readline()
    if not line:
        return None
    version, status = line.split()[:2]
    assert version == b"HTTP/1.1", line[:80]
    headers: dict[str, str] = {}
    while (line := reader.readline()).strip():
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    if status == b"100":
        return read_answer(reader)
    return Answer(int(status), headers, reader.read(int(headers.get("content-length", "0"))))
