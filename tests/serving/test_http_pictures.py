"""Pictures of the HTTP service: the grey values are those of the pipeline's reading, refusals have their codes, and
nothing is kept."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

httpx = pytest.importorskip("httpx")
for package in ("uvicorn", "starlette", "python_multipart", "prometheus_client", "pydicom"):
    pytest.importorskip(package)

from r2gen_export.runtime.pictures import read_pictures  # noqa: E402
from r2gen_export.studies.dicom.types import DicomSettings  # noqa: E402
from r2gen_export.studies.pixels import grey_levels  # noqa: E402
from tests.helpers import dicom_files  # noqa: E402
from tests.serving.http_site import KEY, Service, files, noise, pictures, service  # noqa: E402

SENTINEL = "ZZYZX"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with service(tmp_path_factory.mktemp("scratch"), "--max-pixels", "4") as running:
        yield running


@pytest.fixture
def client(site: Service) -> Iterator[Any]:
    with httpx.Client(base_url=site.url, timeout=120) as opened:
        yield opened


def picture_of(answer: Any) -> NDArray[np.uint8]:
    """The grey values [H, W] of an answer."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(answer.content), formats=("PNG",)) as picture:
        assert picture.mode == "L"
        return np.asarray(picture)


def as_read(path: Path, dicom: DicomSettings | None = None) -> NDArray[np.uint8]:
    """What the pipeline reads of a file."""
    return grey_levels(read_pictures(path, dicom=dicom).pictures[0].pixels)


def dicom(path: Path, **attributes: Any) -> Path:
    values = dicom_files.stored(12, False, 50, 70)
    return dicom_files.write(path, dicom_files.radiograph(values, 12, **attributes), values)


def logged(site: Service, **fields: str) -> dict[str, Any]:
    """The first line of the log with these fields, once it is there."""
    while not (lines := [entry for entry in site.log if fields.items() <= entry.items()]):
        time.sleep(0.02)
    return lines[0]


def nothing_left(site: Service) -> None:
    end = time.monotonic() + 60
    while site.uploads():
        assert time.monotonic() < end, "an upload was not removed"
        time.sleep(0.02)


def test_a_png_comes_back_with_its_grey_values(client: Any, tmp_path: Path) -> None:
    path = noise(tmp_path / "view.png")
    answer = client.post("/v1/pictures", files=files(path))
    np.testing.assert_array_equal(picture_of(answer), np.asarray(Image.open(path)))
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-r2gen-bundle"] and "not for diagnosis" in answer.headers["x-r2gen-notice"]
    url = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    again = client.post("/v1/pictures", json={"images": [url]})
    np.testing.assert_array_equal(picture_of(again), picture_of(answer))


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"WindowCenter": 1200, "WindowWidth": 900},
        {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "IDENTITY"},
    ],
)
def test_a_dicom_file_is_shown_as_it_is_read(client: Any, tmp_path: Path, attributes: dict[str, Any]) -> None:
    path = dicom(tmp_path / "image.dcm", **attributes)
    np.testing.assert_array_equal(picture_of(client.post("/v1/pictures", files=files(path))), as_read(path))


def test_polarity_and_force_are_as_for_a_report(client: Any, tmp_path: Path) -> None:
    path = dicom(tmp_path / "image.dcm", PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="IDENTITY")
    by_photometric = client.post("/v1/pictures", files=files(path), data={"polarity": "photometric"})
    np.testing.assert_array_equal(picture_of(by_photometric), as_read(path, DicomSettings(polarity="photometric")))
    assert (picture_of(by_photometric) != picture_of(client.post("/v1/pictures", files=files(path)))).any()
    hand = dicom(tmp_path / "hand.dcm", BodyPartExamined="HAND")
    refused = client.post("/v1/pictures", files=files(hand))
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "R2G-DICOM-REFUSED")
    forced = client.post("/v1/pictures", files=files(hand), data={"force": "true"})
    np.testing.assert_array_equal(picture_of(forced), as_read(hand, DicomSettings(force=True)))


def test_a_lateral_view_has_a_picture_although_it_has_no_report(client: Any, tmp_path: Path) -> None:
    path = dicom(tmp_path / "image.dcm", ViewPosition="LL", PatientOrientation=["A", "F"])
    assert client.post("/v1/reports", files=files(path)).status_code == 422
    assert picture_of(client.post("/v1/pictures", files=files(path))).shape == (50, 70)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_is_shown_as_it_is_read(client: Any, tmp_path: Path, dtype: type[np.unsignedinteger[Any]]) -> None:
    path = tmp_path / "view.tif"
    values = np.random.default_rng(3).integers(0, np.iinfo(dtype).max, (40, 60)).astype(dtype)
    Image.fromarray(values).save(path)
    np.testing.assert_array_equal(picture_of(client.post("/v1/pictures", files=files(path))), as_read(path))


def test_a_colour_picture_is_grey_and_a_large_one_is_made_smaller(client: Any, tmp_path: Path) -> None:
    path = tmp_path / "view.png"
    Image.fromarray(np.random.default_rng(4).integers(0, 256, (30, 20, 3), dtype=np.uint8)).save(path)
    np.testing.assert_array_equal(picture_of(client.post("/v1/pictures", files=files(path))), as_read(path))
    ramp = np.linspace(0, 255, 1600).astype(np.uint8)
    Image.fromarray(np.repeat(ramp[:, None], 1200, axis=1)).save(path)
    shown = picture_of(client.post("/v1/pictures", files=files(path)))
    assert shown.shape == (1024, 768)
    expected = np.interp((np.arange(1024) + 0.5) / 1024, (np.arange(1600) + 0.5) / 1600, ramp)
    assert np.abs(shown - expected[:, None]).max() <= 1.5


def test_refusals_say_what_to_do(site: Service, client: Any, tmp_path: Path) -> None:
    path = noise(tmp_path / "view.png")
    picture = path.read_bytes()
    bomb = bytearray(picture)
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / "black.png")
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({"files": {"images": ("a", bytes(bomb))}}, 413, "R2G-IMAGE-SIZE"),
        ({"files": {"images": ("a", picture[:600])}}, 422, "R2G-IMAGE-TRUNCATED"),
        ({"files": {"images": ("a", dicom(tmp_path / "a.dcm").read_bytes()[:1500])}}, 422, "R2G-DICOM-PIXELS"),
        ({"files": {"images": ("a", b"no image")}}, 422, "R2G-IMAGE-FORMAT"),
        ({"files": files(tmp_path / "black.png")}, 422, "R2G-IMAGE-BLANK"),
        ({"files": files(path, path)}, 400, "R2G-HTTP-BODY"),
        ({"files": files(*[path] * 9)}, 413, "R2G-HTTP-LIMIT"),
        ({"files": {"force": (None, "true")}}, 400, "R2G-DATA-EMPTY"),
        ({"files": files(path), "data": {"preset": "paper"}}, 400, "R2G-CONFIG-VALUE"),
        ({"files": files(path), "data": {"format": "json"}}, 400, "R2G-CONFIG-VALUE"),
        ({"files": files(path), "data": {"polarity": "other"}}, 400, "R2G-CONFIG-VALUE"),
        ({"files": files(path), "params": {"format": "pdf"}}, 400, "R2G-HTTP-BODY"),
        ({"content": b"x", "headers": {"content-type": "text/plain"}}, 415, "R2G-HTTP-BODY"),
        ({"files": files(path), "headers": {"origin": "http://evil.example"}}, 403, "R2G-HTTP-ORIGIN"),
    ]
    for request, status, code in cases:
        answer = client.post("/v1/pictures", **request)
        fields = answer.json()
        assert (answer.status_code, fields["error"]["code"]) == (status, code), fields
        assert fields["error"]["fix"] and "view 1" not in fields["error"]["message"]
    assert client.post("/v1/reports", files=files(path), data={"format": "picture"}).status_code == 400
    for method, status in (("GET", 405), ("PUT", 405)):
        assert client.request(method, "/v1/pictures").status_code == status
    nothing_left(site)


def test_the_description_names_every_answer(client: Any) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    described = paths["/v1/pictures"]["post"]["responses"]
    assert described.keys() == paths["/v1/reports"]["post"]["responses"].keys()
    assert described["200"]["content"].keys() == {"image/png"}


def test_nothing_of_a_patient_is_kept_or_said_and_no_report_is_counted(
    site: Service, client: Any, tmp_path: Path
) -> None:
    path = dicom(tmp_path / "image.dcm", PatientName=f"{SENTINEL}^JANE", PatientID=SENTINEL, AccessionNumber=SENTINEL)

    def counts() -> list[str]:
        names = ("request_outcomes", "request_success", "queue_time", "e2e_request", "audit")
        return [line for line in client.get("/metrics").text.splitlines() if any(name in line for name in names)]

    before, audits = counts(), sum(entry["event"] == "audit" for entry in site.log)
    answers = [
        client.post("/v1/pictures", files=files(path, name=f"{SENTINEL}.dcm")),
        client.post("/v1/pictures", files={"images": (f"{SENTINEL}.dcm", path.read_bytes()[:1500])}),
    ]
    assert [answer.status_code for answer in answers] == [200, 422]
    for answer in answers:
        assert SENTINEL.encode() not in answer.content and SENTINEL not in str(answer.headers)
    nothing_left(site)
    assert SENTINEL not in site.text and "Traceback" not in site.text
    for answer, outcome in zip(answers, ("ok", "R2G-DICOM-PIXELS"), strict=True):
        entry = logged(site, id=answer.headers["x-request-id"])
        assert (entry["event"], entry["path"], entry["outcome"]) == ("request", "/v1/pictures", outcome)
    assert counts() == before
    assert sum(entry["event"] == "audit" for entry in site.log) == audits


def test_pictures_come_while_reports_are_written(client: Any, site: Service, tmp_path: Path) -> None:
    phantom = pictures(tmp_path, 1)[0]
    texts: list[str] = []

    def write() -> None:
        answer = httpx.post(f"{site.url}/v1/reports", files=files(phantom), data={"preset": "paper"}, timeout=120)
        texts.append(answer.json()["text"])

    threads = [threading.Thread(target=write) for _ in range(12)]
    for thread in threads:
        thread.start()
    path = dicom(tmp_path / "image.dcm")
    for _ in range(5):
        np.testing.assert_array_equal(picture_of(client.post("/v1/pictures", files=files(path))), as_read(path))
    for thread in threads:
        thread.join()
    assert len(texts) == 12 and len(set(texts)) == 1
    nothing_left(site)


def ask_for_endless(site: Service, body: bytes) -> socket.socket:
    """A connection whose request for a picture is being read, for seconds."""
    connection = socket.create_connection(("127.0.0.1", int(site.url.rpartition(":")[2])))
    part = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n' + body + b"\r\n--x--\r\n"
    head = "POST /v1/pictures HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    connection.sendall(f"{head}Connection: close\r\nContent-Length: {len(part)}\r\n\r\n".encode() + part)
    dicom_files.wait(lambda: any(map(dicom_files.has_endless, readers(site))))
    return connection


def readers(site: Service) -> list[int]:
    """Processes that read DICOM for the worker."""
    tasks = Path(f"/proc/{site.worker_pid()}/task").glob("*/children")
    return [int(pid) for children in tasks for pid in children.read_text().split()]


@pytest.mark.slow
def test_a_killed_worker_a_client_that_leaves_and_a_deadline(tmp_path: Path) -> None:
    body = dicom_files.endless(tmp_path).read_bytes()
    with service(tmp_path, "--deadline", "600") as own:
        with ask_for_endless(own, body) as connection:
            os.kill(own.worker_pid(), signal.SIGKILL)
            answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        assert answer.startswith(b"HTTP/1.1 503") and b"R2G-HTTP-READY" in answer
        own.wait_for("ready", 2)
        ask_for_endless(own, body).close()
        nothing_left(own)
        assert logged(own, outcome="left")["path"] == "/v1/pictures"
    with service(tmp_path, "--deadline", "1") as own:
        answer = httpx.post(f"{own.url}/v1/pictures", files={"images": ("a", body)}, timeout=120)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "R2G-HTTP-TIME")
        nothing_left(own)


def test_keys_and_their_rates(tmp_path: Path) -> None:
    """Pictures of all views that a study may have take half of a report's share of the rate."""
    keys = tmp_path / "keys"
    keys.write_text(f"ward {KEY}\nslow a-key-with-a-rate-0002 6\n")
    keys.chmod(0o600)
    image = noise(tmp_path / "view.png")
    arguments = ("--api-key-file", str(keys), "--max-views", "1")
    with service(tmp_path, *arguments) as own, httpx.Client(base_url=own.url, timeout=60) as client:
        answer = client.post("/v1/pictures", files=files(image))
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "R2G-HTTP-KEY")
        slow = "a-key-with-a-rate-0002"
        for key, status in ((KEY, 200), (slow, 200), (slow, 200), (slow, 429)):
            headers = {"authorization": f"Bearer {key}"}
            assert client.post("/v1/pictures", files=files(image), headers=headers).status_code == status
        assert json.dumps(KEY) not in own.text
