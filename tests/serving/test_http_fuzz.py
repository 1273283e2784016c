"""Malformed requests to the HTTP service: an answer by a code for each, and nothing left of them."""

from __future__ import annotations

import base64
import json
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

httpx = pytest.importorskip("httpx")
for package in ("uvicorn", "starlette", "python_multipart", "prometheus_client", "pydicom"):
    pytest.importorskip(package)

from tests.serving.http_fuzz import check_afterwards, run_fuzz, run_raw  # noqa: E402
from tests.serving.http_raw import HOST, Raw, exchange, read_answer  # noqa: E402
from tests.serving.http_site import Service, files, noise, service  # noqa: E402


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with service(tmp_path_factory.mktemp("scratch"), "--batch-size", "4", "--max-body", "2") as running:
        yield running


@pytest.fixture
def client(site: Service) -> Iterator[Any]:
    with httpx.Client(base_url=site.url, timeout=120) as opened:
        yield opened


def port(site: Service) -> int:
    return int(site.url.rpartition(":")[2])


def test_bodies(site: Service, tmp_path: Path) -> None:
    counts = run_fuzz(site.url, noise(tmp_path / "a.png"), range(400), 4)
    assert counts.keys() <= {"200", "400", "413", "415", "422"}
    assert min(counts["200"], counts["400"], counts["413"], counts["415"], counts["422"]) >= 2
    check_afterwards(site)


def test_what_is_hardly_http(site: Service) -> None:
    counts = run_raw(site.url, range(300), 8)
    assert counts.keys() <= {"200", "400", "403", "404", "405", "408", "413", "415", "422", "no answer"}
    assert min(counts["200"], counts["400"], counts["403"], counts["422"]) >= 2
    check_afterwards(site)


def test_what_was_answered_by_500(site: Service, client: Any, tmp_path: Path) -> None:
    """More query parameters than are read, a number with two signs, half an address in Origin, a temperature that no
    score can be divided by."""
    image = noise(tmp_path / "a.png")
    answers = [
        client.post("/v1/reports?" + "a=1&" * 20, files=files(image)),
        client.post("/v1/reports", files=files(image), data={"num_beams": "--3"}),
        client.post("/v1/reports", files=files(image), data={"temperature": "1e-40"}),
    ]
    assert [answer.status_code for answer in answers] == [400] * 3
    assert client.get("/health", headers={"origin": "http://["}).status_code == 403
    check_afterwards(site)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"num_beams": None, "force": None, "format": None, "preset": None, "early_stopping": None}, 200),
        ({"format": ""}, 400),
        ({"semantics": ""}, 400),
        ({"num_beams": "\u0661"}, 400),
        ({"temperature": "1_0"}, 400),
        ({"temperature": "0x1"}, 400),
    ],
)
def test_settings_in_json(client: Any, tmp_path: Path, fields: dict[str, Any], status: int) -> None:
    url = "data:image/png;base64," + base64.b64encode(noise(tmp_path / "a.png").read_bytes()).decode()
    answer = client.post("/v1/reports", json={"images": [url], "max_new_tokens": 2, **fields})
    assert answer.status_code == status, answer.text


@pytest.mark.parametrize("fields", [{"n": True}, {"stream_options": {"include_usage": 1}}, {"stream": "true"}])
def test_chat_settings_of_another_type(client: Any, tmp_path: Path, fields: dict[str, Any]) -> None:
    url = "data:image/png;base64," + base64.b64encode(noise(tmp_path / "a.png").read_bytes()).decode()
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    request = {"model": "r2gen", "messages": messages, "max_tokens": 2}
    assert client.post("/v1/chat/completions", json=request).status_code == 200
    answer = client.post("/v1/chat/completions", json=request | fields)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "R2G-CONFIG-VALUE")


def test_an_empty_form_in_the_query(client: Any, tmp_path: Path) -> None:
    assert client.post("/v1/reports?format=", files=files(noise(tmp_path / "a.png"))).status_code == 400


def test_compressed_bodies_are_refused(client: Any, tmp_path: Path) -> None:
    for request in ({"files": files(noise(tmp_path / "a.png"))}, {"json": {}}):
        answer = client.post("/v1/reports", headers={"content-encoding": "gzip"}, **request)
        assert answer.status_code == 415


def test_many_values_in_json(client: Any) -> None:
    """Two MiB of empty lists would be parsed into a hundred."""
    answer = client.post("/v1/reports", content=b"[" + b"[]," * 600_000, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "R2G-HTTP-LIMIT")


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("POST", "/v1/models", 405, "GET, HEAD"),
        ("OPTIONS", "/ready", 405, "GET, HEAD"),
        ("OPTIONS", "/v1/reports", 405, "POST"),
        ("PUT", "/v1/none", 404, None),
    ],
)
def test_methods(client: Any, method: str, path: str, status: int, allow: str | None) -> None:
    answer = client.request(method, path)
    assert (answer.status_code, answer.headers.get("allow")) == (status, allow)


@pytest.mark.parametrize("data", [b"hello\r\n\r\n", b"GET /health HTTP/1.1\r\n" + HOST + b"X: \x00\r\n\r\n"])
def test_what_is_no_http_gets_an_error_of_ours(site: Service, data: bytes) -> None:
    (answer,) = exchange(port(site), Raw((data,)))
    fields = json.loads(answer.body)
    assert (answer.status, fields["error"]["code"]) == (400, "R2G-HTTP-BODY")
    assert "not for diagnosis" in fields["notice"]
    assert fields["request_id"] == answer.headers["x-request-id"]
    assert answer.headers["x-r2gen-notice"]
    while fields["request_id"] not in site.text:
        assert site.process.poll() is None
        time.sleep(0.01)


def test_two_lengths_are_refused(site: Service) -> None:
    """A proxy that goes by the other one would take the rest of the body for a request."""
    head = b"POST /v1/reports HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\nContent-Length: 5\r\n"
    body = b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n" + HOST + b"\r\n"
    (answer,) = exchange(port(site), Raw((head + body,)))
    assert (answer.status, answer.headers["connection"]) == (400, "close")


def test_a_bad_chunk_behind_an_answer_cuts_the_connection(site: Service) -> None:
    head = b"POST /health HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port(site))) as connection, connection.makefile("rb") as reader:
        connection.sendall(head + b"2\r\n{}\r\n")
        answer = read_answer(reader)
        assert answer is not None and answer.status == 405
        connection.sendall(b"zz\r\n")
        with suppress(ConnectionResetError):
            assert read_answer(reader) is None
    check_afterwards(site)


def test_a_bad_chunk_of_head_gets_no_body(site: Service) -> None:
    """An answer to HEAD has none, so ours must not have one either."""
    with socket.create_connection(("127.0.0.1", port(site)), timeout=30) as connection:
        connection.sendall(b"HEAD / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n")
        data = b""
        while part := connection.recv(4096):
            data += part
    assert data.startswith(b"HTTP/1.1 ") and data.endswith(b"\r\n\r\n")
    check_afterwards(site)


def test_the_description_of_a_picture_is_of_one_image(client: Any) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    most = {
        path: content["schema"]["properties"]["images"]["maxItems"]
        for path in ("/v1/reports", "/v1/pictures")
        for content in paths[path]["post"]["requestBody"]["content"].values()
    }
    assert most == {"/v1/reports": 8, "/v1/pictures": 1}
