"""Keys, TLS, rates, a prefix, the audit file, and the end of the service."""

from __future__ import annotations

import hashlib
import json
import signal
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

httpx = pytest.importorskip("httpx")
for package in ("uvicorn", "starlette", "python_multipart", "prometheus_client"):
    pytest.importorskip(package)

from r2gen_export.errors import R2GenError  # noqa: E402
from r2gen_export.serving.http_auth import KeyFile, parse_keys  # noqa: E402
from r2gen_export.serving.http_server import private_folder, tls_context  # noqa: E402
from r2gen_export.serving.http_settings import ServeSettings  # noqa: E402
from r2gen_export.serving.log import EventLog  # noqa: E402
from tests.serving.http_site import KEY, Service, certificate, expired, files, pictures, service  # noqa: E402

WARD = {"authorization": f"Bearer {KEY}"}
SLOW = {"authorization": "Bearer a-key-with-a-rate-0002"}


class Closed:
    """A service with keys, TLS, a prefix and an audit file."""

    def __init__(self, running: Service, folder: Path) -> None:
        self.running, self.keys, self.audit = running, folder / "keys", folder / "audit.jsonl"
        context = ssl.create_default_context(cafile=str(folder / "cert.pem"))
        self.client = httpx.Client(base_url=running.url, timeout=120, verify=context)


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Closed]:
    folder = tmp_path_factory.mktemp("closed")
    cert, key = certificate(folder)
    (folder / "keys").write_text(f"# who\nward {KEY}\nslow a-key-with-a-rate-0002 6\n")
    (folder / "keys").chmod(0o600)
    arguments = ("--api-key-file", str(folder / "keys"), "--tls-cert", str(cert), "--tls-key", str(key), "--root-path",
                 "/r2gen", "--audit-file", str(folder / "audit.jsonl"), "--host", "0.0.0.0")  # fmt: skip
    with service(folder, *arguments) as running:
        yield Closed(running, folder)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("phantoms"), 1)[0]


def test_only_keys_of_the_file(closed: Closed, picture: Path) -> None:
    for headers in ({}, {"authorization": "Bearer no"}, {"authorization": f"Basic {KEY}"}):
        for path in ("/v1/models", "/metrics"):
            answer = closed.client.get(path, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "R2G-HTTP-KEY")
        assert closed.client.post("/v1/reports", files=files(picture), headers=headers).status_code == 401
    for path in ("/metrics%0A", "/v1/models%0A", "/metrics%0a", "/v1/models%00", "/v1/reports%0A"):
        for method in ("GET", "POST"):
            assert closed.client.request(method, path).status_code == 404, path
    assert closed.client.get("/metrics/").status_code == closed.client.get("/metrics;a").status_code == 401
    assert closed.client.get("/app.js").status_code == 200
    assert closed.client.get("/health").status_code == 200
    assert closed.client.get("/v1/models", headers=WARD).status_code == 200
    assert KEY not in closed.running.text


def test_an_audit_line_for_each_report(closed: Closed, picture: Path) -> None:
    before = len(closed.audit.read_text().splitlines())
    answer = closed.client.post("/r2gen/v1/reports", files=files(picture), headers=WARD)
    report = answer.json()
    lines = closed.audit.read_text().splitlines()
    assert len(lines) == before + 1
    line = json.loads(lines[-1])
    assert (line["key"], line["request"], line["bundle"]) == ("ward", report["request_id"], report["bundle_id"])
    assert line["text_sha256"] == hashlib.sha256(report["text"].encode()).hexdigest()
    assert line["inputs_sha256"] == [hashlib.sha256(picture.read_bytes()).hexdigest()]
    assert report["text"][:20] not in lines[-1]
    assert closed.audit.stat().st_mode & 0o077 == 0


def test_rates_and_a_prefix(closed: Closed, picture: Path) -> None:
    assert closed.client.post("/v1/reports", files=files(picture), headers=SLOW).status_code == 200
    answer = closed.client.post("/v1/reports", files=files(picture), headers=SLOW)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "R2G-HTTP-BUSY")
    assert 1 <= int(answer.headers["retry-after"]) <= 10
    assert closed.client.get("/openapi.json").json()["servers"] == [{"url": "/r2gen"}]


def test_keys_change_without_a_restart(closed: Closed) -> None:
    text = closed.keys.read_text()
    closed.keys.write_text(f"{text}new another-key-of-16-bytes\n")
    end = time.monotonic() + 30
    new = {"authorization": "Bearer another-key-of-16-bytes"}
    while closed.client.get("/v1/models", headers=new).status_code != 200:
        assert time.monotonic() < end
        time.sleep(0.1)
    closed.keys.write_text("broken")
    while not any(entry["event"].startswith("key file not read") for entry in closed.running.log):
        assert closed.client.get("/v1/models", headers=WARD).status_code == 200
        assert time.monotonic() < end
        time.sleep(0.1)
    closed.keys.write_text(text)
    while closed.client.get("/v1/models", headers=new).status_code != 401:
        assert time.monotonic() < end
        time.sleep(0.1)


def test_sigterm_lets_open_requests_finish(closed: Closed, picture: Path) -> None:
    """The last test of this service."""
    answers: list[Any] = []

    def ask() -> None:
        answers.append(closed.client.post("/v1/reports", files=files(picture), data={"preset": "paper"}, headers=WARD))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    with closed.running.held():
        for thread in threads:
            thread.start()
        while len(closed.running.uploads()) < 4:
            time.sleep(0.005)
        closed.running.process.send_signal(signal.SIGTERM)
        closed.running.wait_for("stopping, open requests are finished")
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [200] * 4
    assert closed.running.process.wait(30) == 0
    closed.running.wait_for("stopped")
    ending = [entry["event"] for entry in closed.running.log if entry["event"].startswith("stop")]
    assert ending == ["stopping, open requests are finished", "stopped"]
    assert list(closed.running.scratch.glob("r2gen-serve-*")) == []


def test_what_is_refused_at_the_start(tmp_path: Path) -> None:
    for settings in (ServeSettings(host="0.0.0.0"), ServeSettings(host="0.0.0.0", key_file=tmp_path),
                     ServeSettings(certificate=tmp_path), ServeSettings(root_path="r2gen")):  # fmt: skip
        with pytest.raises(R2GenError, match="R2G-CONFIG-VALUE"):
            settings.check()
    ServeSettings(host="0.0.0.0", insecure=True).check()
    ServeSettings(host="::1").check()


@pytest.mark.parametrize(
    "text",
    ["", "ward short", f"ward {KEY}\nward {KEY}x", f"ward {KEY} -1", f"a/b {KEY}", "ward", f"ward {KEY} 0"],
)
def test_key_files_that_are_refused(text: str) -> None:
    with pytest.raises(R2GenError, match="R2G-CONFIG-VALUE") as refused:
        parse_keys(text)
    assert KEY not in refused.value.render()


def test_key_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(R2GenError, match="cannot be read") as refused:
        KeyFile(tmp_path / "patient-keys", EventLog())
    assert "patient" not in refused.value.render()
    (tmp_path / "folder").mkdir()
    with pytest.raises(R2GenError, match="cannot be read"):
        KeyFile(tmp_path / "folder", EventLog())


def test_certificates_out_of_date_are_refused(tmp_path: Path) -> None:
    paths = certificate(tmp_path)
    tls_context(*paths)
    expired(tmp_path)
    with pytest.raises(R2GenError, match="2021 GMT, not now"):
        tls_context(*paths)
    with pytest.raises(R2GenError, match="cannot be used"):
        tls_context(tmp_path / "none.pem", paths[1])


def test_uploads_of_a_killed_service_are_removed(tmp_path: Path) -> None:
    left = tmp_path / "r2gen-serve-old"
    left.mkdir()
    (left / "in-use").touch()
    (left / "view-1").write_bytes(b"image")
    with private_folder(tmp_path) as own, private_folder(tmp_path) as other:
        assert not left.exists()
        assert own.is_dir() and other.is_dir()
        assert own.stat().st_mode & 0o077 == 0
    assert list(tmp_path.iterdir()) == []
