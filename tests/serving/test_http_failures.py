"""What goes wrong around a running service: files it cannot read, and disks that are full."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

httpx = pytest.importorskip("httpx")
for package in ("uvicorn", "starlette", "python_multipart", "prometheus_client"):
    pytest.importorskip(package)

from r2gen_export.serving.http_auth import KeyFile  # noqa: E402
from r2gen_export.serving.log import EventLog  # noqa: E402
from tests.serving.http_site import (  # noqa: E402
    KEY,
    ROOT,
    Service,
    certificate,
    demo_pipeline,
    events_of,
    expired,
    files,
    pictures,
    service,
)  # fmt: skip

WARD = {"authorization": f"Bearer {KEY}"}
PERMITTED = () if os.getuid() else ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
"""In front of a command whose user may not read what a file's mode forbids: root without the capabilities to do so."""


def command(*arguments: str | Path) -> list[str]:
    """`r2gen serve` on a free port."""
    return [sys.executable, str(ROOT / "cli.py"), "serve", "--port", "0", "--device", "cpu", "--threads", "1",
            *map(str, arguments)]  # fmt: skip


def refused(*arguments: str | Path, before: Sequence[str] = ()) -> str:
    """What a service says that does not start."""
    done = subprocess.run(
        [*before, *command(*arguments)], capture_output=True, text=True, check=False, cwd=ROOT, timeout=120
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "listening" not in done.stderr
    return done.stderr


@contextmanager
def small_disk(folder: Path, kibibytes: int) -> Iterator[Path]:
    """A file system of this size."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, *, leave: int = 0) -> Path:
    """A file that takes all the room but so many bytes."""
    filler = disk / "filler"
    filler.write_bytes(b"\0" * (os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - leave))
    return filler


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("phantoms"), 1)[0]


@pytest.fixture(scope="module")
def text(picture: Path) -> str:
    return demo_pipeline().generate(picture).text


def error_of(answer: Any) -> tuple[int, str]:
    """Status and code."""
    return answer.status_code, answer.json()["error"]["code"]


def test_a_certificate_out_of_date_refuses_the_start(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    expired(tmp_path)
    said = refused("--tls-cert", cert, "--tls-key", key)
    assert said.startswith("R2G-NODE-NETWORK: the certificate of --tls-cert is valid from Jan  1 00:00:00 2020 GMT to")
    assert "fix: renew the certificate" in said
    other = certificate(tmp_path)[1].read_text()
    expired(tmp_path)
    certificate(tmp_path)
    key.write_text(other)
    assert refused("--tls-cert", cert, "--tls-key", key).startswith("R2G-NODE-NETWORK: the files of --tls-cert and")


def test_a_key_file_that_cannot_be_read_refuses_the_start(tmp_path: Path) -> None:
    folder, locked = tmp_path / "patient-folder", tmp_path / "patient-keys"
    folder.mkdir()
    locked.write_text(f"ward {KEY}\n")
    locked.chmod(0)
    cases: list[tuple[Path, str, Sequence[str]]] = [
        (tmp_path / "patient-none", "FileNotFoundError: No such file or directory", ()),
        (folder, "IsADirectoryError: Is a directory", ()),
    ]
    if not PERMITTED or shutil.which(PERMITTED[0]):
        cases.append((locked, "PermissionError: Permission denied", PERMITTED))
    for path, why, before in cases:
        said = refused("--api-key-file", path, before=before)
        assert said.startswith(f"R2G-CONFIG-VALUE: the file of --api-key-file cannot be read: {why}\n")
        assert "patient" not in said


def until_logged(running: Service, event: str, client: Any) -> Any:
    """The entry, which comes with a request; clients with a key are answered meanwhile."""
    while True:
        assert client.get("/v1/models", headers=WARD).status_code == 200
        entries = [entry for entry in running.log if isinstance(entry, dict) and entry["event"] == event]
        if entries:
            return entries[-1]
        time.sleep(0.1)


def test_a_key_file_that_goes_keeps_the_keys(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"ward {KEY}\n")
    keys.chmod(0o600)
    with service(tmp_path, "--api-key-file", str(keys)) as running, httpx.Client(base_url=running.url) as client:
        keys.rename(tmp_path / "moved")
        entry = until_logged(running, "key file not read, the earlier keys stay", client)
        assert (entry["level"], entry["code"]) == ("error", "R2G-CONFIG-VALUE")
        assert entry["reason"].endswith("FileNotFoundError: No such file or directory")
        assert client.get("/v1/models").status_code == 401
        (tmp_path / "moved").write_text(f"ward {KEY}\nnew another-key-of-16-bytes\n")
        (tmp_path / "moved").rename(keys)
        assert until_logged(running, "keys read again", client)["count"] == 2
        assert str(tmp_path) not in running.text


def test_a_key_file_is_tried_again_when_only_reading_it_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A process out of file descriptors sees that the file changed and cannot open it; a key taken away must go."""
    path = tmp_path / "keys"
    path.write_text(f"ward {KEY}\nold another-key-of-16-bytes\n")
    path.chmod(0o600)
    monkeypatch.setattr("r2gen_export.serving.http_auth.CHECK_SECONDS", 0.0)
    keys = KeyFile(path, EventLog())
    path.write_text(f"ward {KEY}\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        names = [[key.name for key in keys.keys] for _ in range(3)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert names == [["ward", "old"]] * 3
    assert [key.name for key in keys.keys] == ["ward"]
    events = [json.loads(line)["event"] for line in capfd.readouterr().err.splitlines()]
    assert events == ["key file not read, the earlier keys stay", "keys read again"], "not a line for each request"


def report_withheld(client: Any, picture: Path, text: str) -> None:
    """No form of an answer gives a report whose audit line cannot be written."""
    for form in ("json", "text", "pdf"):
        answer = client.post("/v1/reports", files=files(picture), data={"format": form})
        assert error_of(answer) == (503, "R2G-OUTPUT-WRITE")
        assert text[:20] not in answer.text
    answer = client.post("/v1/reports", files=files(picture), data={"format": "stream"})
    events = events_of(answer)
    assert [name for name, _ in events[-2:]] == ["text", "error"]
    assert {name for name, _ in events} == {"text", "error"}, "a piece of text is no report"
    assert events[-1][1]["code"] == "R2G-OUTPUT-WRITE"
    assert "not for diagnosis" in events[-1][1]["notice"]
    assert client.get("/ready").status_code == 200


def test_a_full_disk_for_the_audit_gives_no_report(tmp_path: Path, picture: Path, text: str) -> None:
    with service(tmp_path, "--audit-file", "/dev/full") as running:
        with httpx.Client(base_url=running.url, timeout=120) as client:
            report_withheld(client, picture, text)
            running.wait_for("request", 5)
            outcomes = [entry["outcome"] for entry in running.log if entry["event"] == "request"]
            assert outcomes == ["R2G-OUTPUT-WRITE"] * 4 + ["ok"]
            assert 'outcome="R2G-OUTPUT-WRITE"' in client.get("/metrics").text
        assert running.uploads() == []
        assert text[:20] not in running.text
        assert running.end() == 0


def test_openais_client_raises_in_the_stream(tmp_path: Path, picture: Path) -> None:
    import base64

    openai = pytest.importorskip("openai")
    url = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
    messages: Any = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    with service(tmp_path, "--audit-file", "/dev/full") as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.InternalServerError, match="audit file cannot be written"):
            client.chat.completions.create(model="r2gen", messages=messages)
        reasons = []
        with pytest.raises(openai.APIError, match="audit file cannot be written"):
            for chunk in client.chat.completions.create(model="r2gen", messages=messages, stream=True):
                reasons.append(chunk.choices[0].finish_reason)
    assert reasons and set(reasons) == {None}, "no chunk says that the report is finished"


def test_an_audit_goes_on_once_there_is_room(tmp_path: Path, picture: Path, text: str) -> None:
    with small_disk(tmp_path / "disk", 64) as disk:
        audit = disk / "audit.jsonl"
        audit.write_text("{}\n")
        filler = fill(disk)
        with service(tmp_path, "--audit-file", str(audit)) as running:
            with httpx.Client(base_url=running.url, timeout=120) as client:
                # The page that the first line lies in has room for some more.
                before = 1
                while client.post("/v1/reports", files=files(picture)).status_code == 200:
                    before += 1
                    assert len(audit.read_text().splitlines()) == before
                report_withheld(client, picture, text)
                filler.unlink()
                answer = client.post("/v1/reports", files=files(picture))
            assert answer.json()["text"] == text
        lines = audit.read_text().splitlines()
        assert json.loads(lines[-1])["request"] == answer.json()["request_id"], "the line stands alone"
        assert json.loads(lines[-1])["text_sha256"] == hashlib.sha256(text.encode()).hexdigest()
        assert all(json.loads(line) is not None for line in lines[:before])


def test_a_full_disk_for_the_log_stops_no_report(tmp_path: Path, picture: Path, text: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = command("--scratch", tmp_path, "--port", str(port))
    with Path("/dev/full").open("w") as full:
        process = subprocess.Popen(arguments, stderr=full, stdout=subprocess.DEVNULL, cwd=ROOT)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            while not _is_ready(client):
                assert process.poll() is None
                time.sleep(0.1)
            for _ in range(3):
                assert client.post("/v1/reports", files=files(picture)).json()["text"] == text
            assert error_of(client.get("/none")) == (404, "R2G-HTTP-PATH")
            process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def _is_ready(client: Any) -> bool:
    try:
        return client.get("/ready").status_code == 200
    except httpx.ConnectError:
        return False


def test_a_log_goes_on_once_there_is_room(tmp_path: Path) -> None:
    """A line that was cut off stays alone: what follows can be read."""
    code = (
        "import os, pathlib, sys; from r2gen_export.serving.log import EventLog\n"
        "log, filler = EventLog(), pathlib.Path(sys.argv[1])\n"
        "for number in range(200): log('full', number=number)\n"
        "filler.unlink()\n"
        "for number in range(3): log('room', number=number)\n"
    )
    with small_disk(tmp_path / "disk", 64) as disk:
        path = disk / "log"
        with path.open("a") as log:
            log.write("{}\n")
            log.flush()
            filler = fill(disk)
            subprocess.run([sys.executable, "-c", code, str(filler)], stderr=log, check=True, cwd=ROOT)
        lines = path.read_text().splitlines()
    numbers = [json.loads(line)["number"] for line in lines[-3:]]
    assert numbers == [0, 1, 2]
    broken = [line for line in lines if not line.endswith("}")]
    assert len(broken) <= 1
    assert len(lines) < 100


def test_a_full_disk_for_uploads_is_an_answer(tmp_path: Path, picture: Path, text: str) -> None:
    import base64

    size = picture.stat().st_size
    assert size > 16_384, "larger than what Python buffers of a file"
    url = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()

    def post(**body: Any) -> Any:
        """An answer, once the images of the request have been removed, which comes after it."""
        answer = client.post("/v1/reports", **body)
        while running.uploads():
            time.sleep(0.01)
        return answer

    with small_disk(tmp_path / "disk", 1024) as disk, service(disk) as running:
        with httpx.Client(base_url=running.url, timeout=120) as client:
            for leave in (0, 4096, size // 2):
                filler = fill(disk, leave=leave)
                assert error_of(post(files=files(picture))) == (503, "R2G-RESOURCE-DISK"), leave
                assert error_of(post(json={"images": [url]})) == (503, "R2G-RESOURCE-DISK")
                filler.unlink()
                assert post(files=files(picture)).json()["text"] == text
            small = picture.parent / "small.png"
            _shrink(picture, small)
            filler = fill(disk)
            assert error_of(post(files=files(small))) == (503, "R2G-RESOURCE-DISK")
            assert error_of(post(**in_small_pieces(picture))) == (503, "R2G-RESOURCE-DISK")
            filler.unlink()
            # Room for the image and not for its result.
            filler = fill(disk, leave=-(-size // 4096) * 4096)
            assert post(files=files(picture)).json()["text"] == text
            answer = post(files=files(picture), data={"format": "pdf"})
            assert error_of(answer) == (503, "R2G-RESOURCE-DISK")
            filler.unlink()
            answer = post(files=files(picture), data={"format": "pdf"})
            assert answer.content.startswith(b"%PDF")
        assert running.uploads() == []
        assert "Traceback" not in running.text
        assert not [entry for entry in running.log if entry["event"] == "request failed"]


def in_small_pieces(picture: Path) -> dict[str, Any]:
    """An upload that reaches the service in pieces that Python buffers, so that a full disk shows between them."""
    head = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
    data = head + picture.read_bytes() + b"\r\n--x--\r\n"

    def pieces() -> Iterator[bytes]:
        for begin in range(0, len(data), 3000):
            yield data[begin : begin + 3000]
            time.sleep(0.01)

    return {"content": pieces(), "headers": {"content-type": "multipart/form-data; boundary=x"}}


def _shrink(source: Path, target: Path) -> None:
    from PIL import Image

    with Image.open(source) as picture:
        picture.resize((32, 32)).save(target)
