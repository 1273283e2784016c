"""The HTTP service over the demo: texts equal to the pipeline's, forms, refusals, and a worker that is killed."""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

httpx = pytest.importorskip("httpx")
for package in ("uvicorn", "starlette", "python_multipart", "prometheus_client"):
    pytest.importorskip(package)

from r2gen_export.reporting.report import Report  # noqa: E402
from tests.helpers.dicom_files import radiograph, stored, write  # noqa: E402
from tests.serving.http_fuzz import run_fuzz  # noqa: E402
from tests.serving.http_site import Service, demo_pipeline, events_of, files, noise, pictures, service  # noqa: E402

SENTINEL = "ZZYZX"
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"preset": "paper"},
    {"num_beams": 2, "max_new_tokens": 30, "semantics": "hf-4.30"},
    {"seed": 7, "temperature": 1.5, "max_new_tokens": 30},
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return pictures(tmp_path_factory.mktemp("phantoms"), 4)


@pytest.fixture(scope="module")
def expected(images: list[Path]) -> dict[tuple[int, int], Report]:
    """What the pipeline writes for each picture with each settings, one by one."""
    pipeline = demo_pipeline()
    return {
        (picture, number): pipeline.generate(path, **settings)
        for picture, path in enumerate(images)
        for number, settings in enumerate(SETTINGS)
    }


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    scratch = tmp_path_factory.mktemp("scratch")
    with service(scratch, "--batch-size", "4", "--max-body", "2", "--max-views", "3") as running:
        yield running


@pytest.fixture
def client(site: Service) -> Iterator[Any]:
    with httpx.Client(base_url=site.url, timeout=120) as opened:
        yield opened


def fields_of(settings: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in settings.items()}


def nothing_left(site: Service) -> None:
    """No upload stays: folders go when the worker has let their request go."""
    end = time.monotonic() + 30
    while site.uploads():
        assert time.monotonic() < end, "an upload was not removed"
        time.sleep(0.02)


def test_json_has_the_fields_of_infer(client: Any, images: list[Path], expected: Any) -> None:
    answer = client.post("/v1/reports", files=files(images[0]))
    report = answer.json()
    assert answer.status_code == 200
    assert report.keys() == {*expected[0, 0].to_dict(), "request_id"}
    assert (report["text"], report["token_ids"]) == (expected[0, 0].text, list(expected[0, 0].token_ids))
    assert report["notice"] == expected[0, 0].notice
    assert report["request_id"] == answer.headers["x-request-id"]
    assert report["bundle_id"] == answer.headers["x-r2gen-bundle"]
    assert report["inputs"] == list(expected[0, 0].inputs)


def test_every_text_is_the_pipelines_while_others_fail(
    site: Service, client: Any, images: list[Path], expected: Any
) -> None:
    """30 requests of 12 clients: greedy, beams, sampled, as JSON and as events, between those that are cancelled,
    malformed and too large."""
    wrong: list[str] = []

    def ask(number: int) -> None:
        draw = random.Random(number)
        picture, settings = draw.randrange(len(images)), draw.randrange(len(SETTINGS))
        report = expected[picture, settings]
        kind = draw.choice(["json", "stream", "url", "cancel", "malformed", "large"])
        with httpx.Client(base_url=site.url, timeout=120) as own:
            if kind == "url":
                data = "data:image/png;base64," + base64.b64encode(images[picture].read_bytes()).decode()
                answer = own.post("/v1/reports", json={"images": [data], **SETTINGS[settings]})
                if answer.json().get("text") != report.text:
                    wrong.append(f"{number} {kind}: {answer.text[:200]}")
            elif kind == "malformed":
                body = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\nabc'
                answer = own.post(
                    "/v1/reports", content=body, headers={"content-type": "multipart/form-data; boundary=x"}
                )
                if answer.status_code != 400:
                    wrong.append(f"{number} {kind}: {answer.status_code}")
            elif kind == "large":
                answer = own.post("/v1/reports", files={"images": ("a", bytes(3 << 20))})
                if answer.status_code != 413:
                    wrong.append(f"{number} {kind}: {answer.status_code}")
            else:
                form = fields_of(SETTINGS[settings])
                accept = {"accept": "application/json" if kind == "json" else "text/event-stream"}
                with own.stream(
                    "POST", "/v1/reports", data=form, files=files(images[picture]), headers=accept
                ) as answer:
                    if kind == "cancel":
                        next(answer.iter_raw(1), None)
                        return
                    answer.read()
                if kind == "json":
                    text = answer.json().get("text")
                else:
                    events = events_of(answer)
                    text = "".join(fields["text"] for name, fields in events if name == "text")
                    if events[-1][0] != "report" or events[-1][1]["text"] != text:
                        wrong.append(f"{number}: the pieces are not the report")
                if text != report.text:
                    wrong.append(f"{number} {kind}: {answer.text[:200]}")

    with ThreadPoolExecutor(12) as clients:
        list(clients.map(ask, range(30)))
    assert wrong == []
    nothing_left(site)
    while "r2gen:num_requests_running 0.0" not in (metrics := client.get("/metrics").text):
        time.sleep(0.05)
    fills = [line for line in metrics.splitlines() if line.startswith('r2gen:batch_size_bucket{le="1.0"}')]
    total = [line for line in metrics.splitlines() if line.startswith("r2gen:batch_size_count")]
    assert float(fills[0].split()[1]) < float(total[0].split()[1]), "no two requests were decoded together"


def test_pieces_come_before_the_report(client: Any, images: list[Path]) -> None:
    """Pieces that a slow front finds waiting together are joined, so not every answer has several."""
    for _ in range(50):
        with client.stream("POST", "/v1/reports?format=stream", files=files(images[1])) as answer:
            answer.read()
        texts = [fields for name, fields in events_of(answer) if name == "text"]
        if len(texts) > 1:
            break
    assert len(texts) > 1
    assert answer.headers["content-type"].startswith("text/event-stream")


@pytest.fixture(scope="module")
def dicom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("pydicom")
    values = stored(12, False, 64, 64)
    image = radiograph(values, 12, PatientName=f"{SENTINEL}^JANE", PatientID=SENTINEL, AccessionNumber=SENTINEL)
    return write(tmp_path_factory.mktemp("dicom") / "image.dcm", image, values)


def test_forms(client: Any, images: list[Path], dicom: Path) -> None:
    from io import BytesIO

    from pydicom import dcmread

    pytest.importorskip("reportlab")
    answer = client.post("/v1/reports", files=files(dicom), headers={"accept": "application/dicom"})
    assert answer.status_code == 200, answer.text
    document = dcmread(BytesIO(answer.content))
    assert document.Modality == "SR"
    assert document.StudyInstanceUID == "1.2.3.4"
    answer = client.post("/v1/reports?format=pdf", files=files(images[0]))
    assert answer.headers["content-type"] == "application/pdf"
    assert answer.content.startswith(b"%PDF")
    answer = client.post("/v1/reports", files=files(images[0]), headers={"accept": "text/plain"})
    assert "not for diagnosis" in answer.text
    answer = client.post("/v1/reports?format=sr", files=files(images[0]))
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "R2G-DICOM-SOURCE")


def test_views_are_one_study(client: Any, images: list[Path]) -> None:
    pipeline = demo_pipeline()
    answer = client.post("/v1/reports", files=files(images[0], images[1]))
    assert answer.json()["text"] == pipeline.generate(images[:2]).text
    assert answer.json()["views"] == 2


def bomb(path: Path) -> bytes:
    """A PNG whose header claims 60,000 x 60,000 pixels."""
    data = bytearray(noise(path).read_bytes())
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    return bytes(data)


def test_refusals_say_what_to_do(client: Any, images: list[Path], tmp_path: Path) -> None:
    picture = images[0].read_bytes()
    black = tmp_path / "black.png"
    from PIL import Image

    Image.fromarray(np.zeros((40, 40), np.uint8)).save(black)
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({"files": {"images": ("a", b"no image")}}, 422, "R2G-IMAGE-FORMAT"),
        ({"files": {"images": ("a", picture[:2000])}}, 422, "R2G-IMAGE-TRUNCATED"),
        ({"files": {"images": ("a", bomb(tmp_path / "a.png"))}}, 413, "R2G-IMAGE-SIZE"),
        ({"files": files(black)}, 422, "R2G-IMAGE-BLANK"),
        ({"files": {"other": ("a", picture)}}, 400, "R2G-HTTP-BODY"),
        ({"files": files(*[images[0]] * 4)}, 413, "R2G-HTTP-LIMIT"),
        ({"files": files(images[0]), "data": {"num_beams": "4"}}, 400, "R2G-CONFIG-VALUE"),
        ({"files": files(images[0]), "data": {"max_new_tokens": "121"}}, 400, "R2G-CONFIG-VALUE"),
        ({"files": files(images[0]), "data": {"beams": "2"}}, 400, "R2G-CONFIG-VALUE"),
        ({"files": files(images[0]), "data": {"temperature": "nan"}}, 400, "R2G-CONFIG-VALUE"),
        ({"files": {"preset": (None, "fast")}}, 400, "R2G-DATA-EMPTY"),
        ({"json": {"images": ["http://127.0.0.1:1/a.png"]}}, 400, "R2G-HTTP-BODY"),
        ({"json": {"images": ["data:image/png;base64,@@@"]}}, 400, "R2G-HTTP-BODY"),
        ({"json": {}}, 400, "R2G-HTTP-BODY"),
        ({"content": b"[" * 1000, "headers": {"content-type": "application/json"}}, 400, "R2G-HTTP-BODY"),
        ({"content": b"[" * 100_000, "headers": {"content-type": "application/json"}}, 413, "R2G-HTTP-LIMIT"),
        ({"content": b"x", "headers": {"content-type": "text/plain"}}, 415, "R2G-HTTP-BODY"),
    ]
    for request, status, code in cases:
        answer = client.post("/v1/reports", **request)
        fields = answer.json()
        assert (answer.status_code, fields["error"]["code"]) == (status, code), request.keys()
        assert fields["error"]["fix"]
        assert "not for diagnosis" in fields["notice"]
        assert fields["request_id"] == answer.headers["x-request-id"]
    assert client.post("/v1/reports", files=files(images[0]), headers={"accept": "image/png"}).status_code == 400


def test_paths_and_methods(client: Any) -> None:
    assert client.get("/health").json()["status"] == "alive"
    ready = client.get("/ready").json()
    assert ready["ready"] and ready["trial"]["difference"] <= ready["trial"]["tolerance"]
    assert client.get("/openapi.json").json()["paths"].keys() >= {"/v1/reports", "/v1/chat/completions"}
    cases = (
        ("GET", "/v1/none", 404),
        ("GET", "/v1/reports", 405),
        ("PUT", "/ready", 405),
        ("POST", "/ready", 405),
        ("GET", "/%2e%2e/etc/passwd", 404),
        ("GET", "/%2e%2e", 404),
    )
    for method, path, status in cases:
        answer = client.request(method, path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, "R2G-HTTP-PATH"), path
        assert "script-src 'self'" in answer.headers["content-security-policy"]


def test_pages_of_other_sites_are_refused(client: Any, images: list[Path]) -> None:
    for headers in ({"host": "evil.example"}, {"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}):
        answer = client.post("/v1/reports", files=files(images[0]), headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "R2G-HTTP-ORIGIN")


def test_openai_client(site: Service, images: list[Path], expected: Any) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{site.url}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["r2gen-demo"]
    url = "data:image/png;base64," + base64.b64encode(images[0].read_bytes()).decode()
    messages: Any = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    answer = client.chat.completions.create(model="r2gen-demo", messages=messages, temperature=0)
    report = expected[0, 0]
    assert answer.choices[0].message.content == report.to_text()
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == len(report.token_ids)
    assert answer.model_extra["r2gen"]["text"] == report.text
    chunks = list(
        client.chat.completions.create(
            model="r2gen-demo", messages=messages, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == report.to_text()
    assert chunks[-1].usage.total_tokens == answer.usage.total_tokens
    for extra in ({"tools": []}, {"stop": "."}, {"logprobs": True}, {"user": "x"}, {"n": 2}):
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="r2gen-demo", messages=messages, **extra)
        assert next(iter(extra)) in refused.value.body["message"]
    remote: Any = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/a"}}]}]
    with pytest.raises(openai.BadRequestError, match="never fetched"):
        client.chat.completions.create(model="r2gen-demo", messages=remote)
    spoken: Any = [{"role": "user", "content": "What is to be seen?"}]
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="r2gen-demo", messages=spoken)


def test_a_killed_worker_costs_only_what_it_had(site: Service, client: Any, images: list[Path], expected: Any) -> None:
    statuses: list[tuple[int, str]] = []

    def ask(number: int) -> None:
        with httpx.Client(base_url=site.url, timeout=120) as own:
            answer = own.post("/v1/reports", files=files(images[number % 4]), data={"preset": "paper"})
        fields = answer.json()
        if answer.status_code == 200:
            assert fields["text"] == expected[number % 4, 1].text
        statuses.append((answer.status_code, fields.get("error", {}).get("code", "")))

    before = site.worker_pid()
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    while "r2gen:num_requests_running 0.0" in client.get("/metrics").text:
        assert len(statuses) < 12, "all had ended before one was seen running"
    os.kill(before, signal.SIGKILL)
    for thread in threads:
        thread.join()
    assert len(statuses) == 12
    assert {status for status in statuses if status[0] != 200} == {(503, "R2G-HTTP-READY")}
    assert sum(status == 200 for status, _ in statuses) >= 4, "what waited was lost too"
    assert client.post("/v1/reports", files=files(images[0])).json()["text"] == expected[0, 0].text
    assert site.worker_pid() != before
    nothing_left(site)


def test_a_body_that_ends_early_frees_its_place(site: Service) -> None:
    port = int(site.url.rpartition(":")[2])
    head = "POST /v1/reports HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(f"{head}Content-Length: 1000\r\n\r\n--x\r\n".encode())
        while not site.uploads():
            time.sleep(0.01)
    nothing_left(site)


def test_nothing_of_a_patient_is_said(site: Service, client: Any, images: list[Path], dicom: Path) -> None:
    """Names of files, of fields and attributes of DICOM, in requests that go well and that fail."""
    answers = [
        client.post("/v1/reports", files=files(dicom, name=f"{SENTINEL}.dcm")),
        client.post("/v1/reports", files=files(images[0], dicom, name=f"{SENTINEL}.png")),
        client.post("/v1/reports?format=kos", files=files(images[0], name=f"{SENTINEL}.png")),
        client.post("/v1/reports", files={"images": (f"{SENTINEL}.dcm", dicom.read_bytes()[:1500])}),
        client.get(f"/{SENTINEL}"),
        client.get("/ready", headers={"x-patient": SENTINEL}),
    ]
    assert [answer.status_code for answer in answers][3:] == [422, 404, 200]
    for answer in answers:
        assert SENTINEL not in answer.text
        assert SENTINEL not in str(answer.headers)
    assert SENTINEL not in client.get("/metrics").text
    assert SENTINEL not in site.text
    assert all(isinstance(entry, dict) for entry in site.log), "the log has lines that are no JSON"
    audit = [entry for entry in site.log if entry["event"] == "audit"]
    assert audit
    assert not {"text", "name"} & set(json.loads(json.dumps(audit[0])))
    assert "Traceback" not in site.text


def test_malformed_bodies_get_an_answer(site: Service, images: list[Path]) -> None:
    counts = run_fuzz(site.url, images[0], range(200))
    assert set(counts) <= {"200", "400", "413", "415", "422"}
    assert counts["400"] > 50
    nothing_left(site)
    assert "Traceback" not in site.text


@pytest.mark.slow
def test_a_second_signal_stops_at_once(tmp_path: Path, images: list[Path]) -> None:
    """Requests that run and that wait get an answer by their code, and the folder of uploads goes."""
    answers: list[tuple[int, str]] = []

    def ask(url: str) -> None:
        answer = httpx.post(f"{url}/v1/reports", files=files(images[0]), data={"preset": "paper"}, timeout=60)
        answers.append((answer.status_code, answer.json().get("error", {}).get("code", "")))

    with service(tmp_path, "--batch-size", "2") as own:
        threads = [threading.Thread(target=ask, args=(own.url,)) for _ in range(12)]
        with own.held():
            for thread in threads:
                thread.start()
            while len(own.uploads()) < 12:
                time.sleep(0.005)
            own.process.send_signal(signal.SIGTERM)
        while own.process.poll() is None:
            own.process.send_signal(signal.SIGTERM)
            time.sleep(0.05)
        for thread in threads:
            thread.join()
    assert len(answers) == 12
    assert {answer for answer in answers if answer[0] != 200} == {(503, "R2G-HTTP-READY")}
    assert list(tmp_path.glob("r2gen-serve-*")) == []
