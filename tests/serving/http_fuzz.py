"""Malformed requests for the HTTP service, each made from a seed alone: `python -m tests.serving.http_fuzz`.

Bodies of multipart and JSON are made here, malformed HTTP in `http_raw`, and schemathesis makes requests from the
published description. The command sends so many of all three to one service, then compares texts of normal requests
with the pipeline's, and prints statuses and memory as JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from tests.serving.http_bodies import malformed
from tests.serving.http_raw import exchange, malformed_http
from tests.serving.http_site import Service, demo_pipeline, files, noise, pictures, service


def check_answer(status: int, request_id: str, body: bytes, seed: int) -> None:
    """What every answer has to be.

    Raises:
        AssertionError: it is a 500, has a traceback, or is an error without code, notice and request id.
    """
    assert status != 500 and b"Traceback" not in body, f"seed {seed}: {body[:300]!r}"
    if status >= 400 and body:
        fields = json.loads(body)
        assert fields["error"]["code"].startswith("R2G-") and fields["notice"], f"seed {seed}"
        assert fields["request_id"] == request_id, f"seed {seed}"


def run_fuzz(url: str, picture: Path, seeds: range, clients: int = 1) -> Counter[str]:
    """Send malformed bodies. Returns how many had which status.

    Raises:
        AssertionError: as `check_answer`.
    """
    data, counts = picture.read_bytes(), Counter[str]()

    def ask(seed: int) -> None:
        path, headers, body = malformed(seed, data)
        answer = client.post(path, headers=headers, content=body)
        counts[str(answer.status_code)] += 1
        assert answer.status_code < 400 or answer.content, f"seed {seed}: an error without a body"
        check_answer(answer.status_code, answer.headers["x-request-id"], answer.content, seed)

    with httpx.Client(base_url=url, timeout=120) as client, ThreadPoolExecutor(clients) as threads:
        list(threads.map(ask, seeds))
    return counts


def run_raw(url: str, seeds: range, clients: int = 1) -> Counter[str]:
    """Send what is no HTTP, or hardly. Returns how many answers had which status.

    Raises:
        AssertionError: as `check_answer`.
        TimeoutError: a connection with a whole request was neither answered nor closed.
    """
    counts, port = Counter[str](), int(url.rpartition(":")[2])

    def ask(seed: int) -> None:
        answers = exchange(port, malformed_http(seed))
        counts.update([str(answer.status) for answer in answers] or ["no answer"])
        for answer in answers:
            check_answer(answer.status, answer.headers["x-request-id"], answer.body, seed)

    with ThreadPoolExecutor(clients) as threads:
        list(threads.map(ask, seeds))
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


def _described(site: Service, folder: Path, examples: int) -> Counter[str]:
    """Statuses of what schemathesis makes from the description, as published and with a picture."""
    from tests.serving.http_schema import run_schemathesis, with_picture

    document = dict(httpx.get(f"{site.url}/openapi.json").json())
    counts = Counter[str]()
    for number, described in enumerate((document, with_picture(document, noise(folder / "view.png")))):
        own = folder / f"schemathesis-{number}"
        own.mkdir()
        counts += run_schemathesis(site.url, described, own, "--max-examples", str(examples))
    return Counter({str(status): count for status, count in counts.items()})


def _memory(site: Service) -> dict[str, float]:
    from tests.serving.load import resident

    return {"front": round(resident(site.process.pid), 1), "worker": round(resident(site.worker_pid()), 1)}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000, help="requests in all")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--examples", type=int, default=150, help="of schemathesis for each operation; 0: none")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = pictures(folder / "phantoms", 3)
        expected = [demo_pipeline().generate(image).text for image in images]
        with service(folder, "--batch-size", "4", "--max-body", "2", "--max-views", "3") as site:
            started, worker = time.monotonic(), site.worker_pid()
            figures: dict[str, Any] = {
                "described": _described(site, folder, options.examples) if options.examples else {}
            }
            left = max(0, options.count - sum(figures["described"].values()))
            seeds = range(options.first, options.first + left)
            middle = len(seeds) * 3 // 4
            figures["memory_mib"] = [_memory(site)]
            figures["bodies"] = run_fuzz(site.url, images[0], seeds[:middle], options.clients)
            figures["memory_mib"].append(_memory(site))
            figures["raw"] = run_raw(site.url, seeds[middle:], options.clients)
            figures["memory_mib"].append(_memory(site))
            check_afterwards(site)
            with httpx.Client(base_url=site.url, timeout=120) as client:
                texts = [client.post("/v1/reports", files=files(image)).json()["text"] for image in images]
            figures |= {"seconds": round(time.monotonic() - started), "same_worker": worker == site.worker_pid(),
                        "texts_equal": texts == expected, "uploads_left": len(site.uploads())}  # fmt: skip
    print(json.dumps(figures, indent=1))  # noqa: T201


if __name__ == "__main__":
    main()
