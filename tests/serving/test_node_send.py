"""Delivery by C-STORE and STOW-RS against real servers that refuse, break off, lie and are down."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from r2gen_export.serving import status
from r2gen_export.serving.log import EventLog
from r2gen_export.serving.metrics import Metrics
from r2gen_export.serving.parts import Parts
from r2gen_export.serving.queue import Queue
from r2gen_export.serving.records import Image, Result
from r2gen_export.serving.send import Sender, multipart, read_stow_answer, wait_seconds
from r2gen_export.serving.settings import Destination, NodeSettings, Retry, parse_dimse, parse_url
from r2gen_export.serving.spool import make_spool
from tests.serving.node_site import CR, DX, free_port, radiograph

RETRY = Retry(first_seconds=0.05, most_seconds=0.1, answer_seconds=2)


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    spool = make_spool(tmp_path / "spool")
    queue = Queue(spool.database, spool.pseudonym)
    return Parts(spool, queue, EventLog(), Metrics(spool, queue))


def ready(
    parts: Parts, *destinations: Destination, study: str = "1.2.826.1", classes: tuple[str, ...] = (DX, CR)
) -> None:
    """A study whose results wait; radiographs stand for them."""
    parts.queue.add_image(Image(study, f"{study}.1", "aa", f"images/{study}.dcm", 1))
    parts.queue.close_quiet(0)
    claimed = parts.queue.claim()
    assert claimed is not None
    results = []
    for number, sop_class in enumerate(classes, start=1):
        data = radiograph(study, number, sop_class, side=16)
        buffer = BytesIO()
        data.save_as(buffer, enforce_file_format=True)
        path = parts.spool.result_path(study, 1, f"form{number}")
        parts.spool.write(path, buffer.getvalue())
        results.append(Result(f"form{number}", sop_class, str(data.SOPInstanceUID), parts.spool.relative(path)))
    parts.queue.finish(claimed, results, [destination.name for destination in destinations])


def sender(parts: Parts, destination: Destination, retry: Retry = RETRY) -> Sender:
    settings = NodeSettings("R2GEN", ("PACS",), (destination,), parts.spool.folder, retry=retry)
    return Sender(settings, destination, parts)


def states(parts: Parts) -> list[str]:
    return [row["state"] for row in status.studies(parts.queue)]


def until_sent(parts: Parts, by: Sender) -> None:
    for _ in range(100):
        if by.step() and states(parts) == ["sent"]:
            return
        time.sleep(0.02)
    raise AssertionError(status.study(parts.queue, 1))


@pytest.fixture
def scp() -> Iterator[Callable[..., Destination]]:
    """Starts a Storage SCP: `answer` gives the status of the n-th object, or does something to the association."""
    from pynetdicom import AE, evt

    started = []

    def start(
        answer: Callable[[int, Any], int], classes: tuple[str, ...] = (DX, CR), title: str = "PACS"
    ) -> Destination:
        entity, port, count = AE(ae_title=title), free_port(), 0
        entity.require_called_aet = True
        for sop_class in classes:
            entity.add_supported_context(sop_class)

        def store(event: Any) -> int:
            nonlocal count
            count += 1
            return answer(count, event)

        started.append(entity.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, store)]))
        return parse_dimse(f"PACS@127.0.0.1:{port}")

    yield start
    for server in started:
        server.shutdown()


def test_sent_is_what_was_answered_with_success(parts: Parts, scp: Callable[..., Destination]) -> None:
    received: list[str] = []

    def answer(number: int, event: Any) -> int:
        received.append(str(event.request.AffectedSOPInstanceUID)[-1])
        return {1: 0xA700, 2: 0xB000}.get(number, 0)

    place = scp(answer)
    ready(parts, place)
    by = sender(parts, place)
    by.step()
    shown = status.study(parts.queue, 1)
    assert shown["state"] == "sending"
    assert [(row["state"], row["reason"]) for row in shown["sending"]] == [
        ("waiting", "status 0xA700"), ("sent", "status 0xB000"),
    ]  # fmt: skip
    until_sent(parts, by)
    assert received == ["1", "2", "1"], "what was accepted is not sent again"


def test_an_association_that_breaks_off_is_no_answer(parts: Parts, scp: Callable[..., Destination]) -> None:
    def answer(number: int, event: Any) -> int:
        if number == 1:
            event.assoc.abort()
        return 0

    place = scp(answer)
    ready(parts, place)
    by = sender(parts, place)
    by.step()
    assert {row["state"] for row in status.study(parts.queue, 1)["sending"]} == {"waiting"}
    until_sent(parts, by)


def test_a_class_the_peer_does_not_take_waits_and_the_other_is_sent(
    parts: Parts, scp: Callable[..., Destination]
) -> None:
    place = scp(lambda number, event: 0, classes=(DX,))
    ready(parts, place)
    sender(parts, place).step()
    assert [(row["state"], row["reason"]) for row in status.study(parts.queue, 1)["sending"]] == [
        ("sent", ""), ("waiting", "SOP class not accepted"),
    ]  # fmt: skip


def test_a_dead_destination_delays_no_other_and_becomes_a_dead_letter(
    parts: Parts, scp: Callable[..., Destination]
) -> None:
    alive, dead = scp(lambda number, event: 0), parse_dimse(f"GONE@127.0.0.1:{free_port()}")
    wrong = parse_dimse(f"OTHER@{alive.host}:{alive.port}")
    ready(parts, dead, alive, wrong)
    assert sender(parts, dead).step() > 0
    assert sender(parts, wrong).step() > 0
    sender(parts, alive).step()
    shown = {row["destination"]: (row["state"], row["reason"]) for row in status.study(parts.queue, 1)["sending"]}
    assert shown == {
        alive.name: ("sent", ""),
        dead.name: ("waiting", "no association"),
        wrong.name: ("waiting", "rejected"),
    }
    for place in (dead, wrong):
        sender(parts, place, Retry(give_up_seconds=0)).step()
    assert states(parts) == ["dead"]
    assert parts.queue.retry(1) == "delivery"


def test_one_connection_at_a_time_is_tried_while_a_destination_is_down(parts: Parts) -> None:
    dead = parse_dimse(f"GONE@127.0.0.1:{free_port()}")
    for number in range(3):
        ready(parts, dead, study=f"1.2.826.{number}", classes=(DX,))
    by = sender(parts, dead, Retry(first_seconds=100))
    pauses = [by.step() for _ in range(3)]
    assert 75 <= pauses[0] <= 125
    assert pauses[0] < pauses[1] < pauses[2] * 1.25


def test_waiting_grows_up_to_a_most() -> None:
    retry = Retry(first_seconds=5, most_seconds=900)
    for failures in range(2000):
        expected = min(5 * 2.0 ** min(failures, 30), 900)
        assert 0.75 * expected <= wait_seconds(retry, failures) <= 1.25 * expected


def stored(*uids: str) -> bytes:
    return json.dumps(
        {"00081199": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": [uid]}} for uid in uids]}}
    ).encode()


FAILED = {"00081155": {"vr": "UI", "Value": ["1.2"]}, "00081197": {"vr": "US", "Value": [0xA700]}}


@pytest.mark.parametrize(("code", "text", "expected"), [
    (200, stored("1.1", "1.2"), [(True, ""), (True, "")]),
    (200, stored("1.1"), [(True, ""), (False, "HTTP 200")]),
    (200, b"<html>welcome</html>", [(False, "HTTP 200, and the answer is not in the DICOM JSON Model")] * 2),
    (200, b"", [(False, "HTTP 200, and the answer is not in the DICOM JSON Model")] * 2),
    (200, b"[]", [(False, "HTTP 200, and the answer is not in the DICOM JSON Model")] * 2),
    (200, b'{"00081199": {"Value": [{"00081155": {}}]}}',
     [(False, "HTTP 200, and the answer is not in the DICOM JSON Model")] * 2),
    (202, json.dumps({**json.loads(stored("1.1", "1.2")), "00081198": {"vr": "SQ", "Value": [FAILED]}}).encode(),
     [(True, ""), (False, "failure 0xA700")]),
    (409, json.dumps({"00081198": {"vr": "SQ", "Value": [FAILED]}}).encode(),
     [(False, "HTTP 409"), (False, "failure 0xA700")]),
])  # fmt: skip
def test_a_stow_answer_is_read_object_by_object(code: int, text: bytes, expected: list[tuple[bool, str]]) -> None:
    assert [(answer.stored, answer.text) for answer in read_stow_answer(code, text, ["1.1", "1.2"])] == expected


def test_a_boundary_is_in_none_of_the_parts() -> None:
    body, boundary = multipart([b"r2gen", b"--r2gen--"])
    assert body.count(boundary.encode()) == 3


@pytest.fixture
def web() -> Iterator[Callable[..., tuple[Destination, list[bytes]]]]:
    """Starts an HTTP server that answers POSTs with one status and body after the other."""
    servers = []

    def start(*answers: tuple[int, bytes, str]) -> tuple[Destination, list[bytes]]:
        bodies: list[bytes] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                code, body, location = answers[min(len(bodies), len(answers)) - 1]
                self.send_response(code)
                if location:
                    self.send_header("Location", location)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return parse_url(f"http://127.0.0.1:{server.server_address[1]}/dicom-web"), bodies

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_stow_retries_until_each_object_was_named(parts: Parts, web: Callable[..., Any]) -> None:
    first, second = "1.2.826.1.1.1", "1.2.826.1.1.2"
    place, bodies = web((503, b"", ""), (200, stored(first), ""), (200, stored(second), ""))
    ready(parts, place)
    by = sender(parts, place)
    assert by.step() > 0
    assert status.study(parts.queue, 1)["sending"][0]["reason"] == "HTTP 503"
    until_sent(parts, by)
    assert [body.count(b"DICM") for body in bodies] == [2, 2, 1]


def test_stow_goes_nowhere_else(parts: Parts, web: Callable[..., Any]) -> None:
    other, reached = web((200, stored("1.2.826.1.1.1"), ""))
    place, _ = web((307, b"", other.url), (302, b"", other.url))
    ready(parts, place, classes=(DX,))
    by = sender(parts, place)
    for _ in range(3):
        by.step()
        time.sleep(0.15)
    assert reached == []
    assert states(parts) == ["sending"]
