"""What decoding together gains in the HTTP service: `python -m tests.serving.throughput`. Prints JSON.

Rates are in tokens a second, of greedy reports of a fixed length. `kernel`: passes of the decoder alone over so many
rows, beside passes over one row. `in_process`: `Pipeline.generate_many` beside `Pipeline.generate`, images and prompts
included. `allowed`: what the kernel's gain comes to for a whole report, whose images and prompt are read one by one.
`service`: so many clients beside a single one, each asking again when it has its report. `latencies`: the
first piece and each further token with 1, 4 and 16 clients. `overhead`: a client's time for a streamed report of the
service, less that of `Pipeline.stream` for the same picture, in turn.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np

from r2gen_export.runtime.pipeline import Pipeline
from tests.serving.http_site import Service, demo, pictures, service

PROMPT: Final = ("preprocess", "encode", "prefill")
"""Stages that are not done for several studies together."""

HEADERS: Final = {"Content-Type": "multipart/form-data; boundary=part"}


def body_of(picture: Path, settings: dict[str, Any]) -> bytes:
    """A request as multipart, made once: a client's own work is no part of the figures."""
    fields = "".join(
        f'--part\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in settings.items()
    )
    head = f'{fields}--part\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'.encode()
    return head + picture.read_bytes() + b"\r\n--part--\r\n"


class Client:
    """A connection that is kept."""

    def __init__(self, site: Service) -> None:
        self._connection = http.client.HTTPConnection(site.url.removeprefix("http://"), timeout=600)

    def ask(self, body: bytes, form: str) -> tuple[float, float, dict[str, Any]]:
        """Milliseconds to the first byte and to the last one, and the report."""
        started = time.perf_counter()
        self._connection.request("POST", f"/v1/reports?format={form}", body, HEADERS)
        answer = self._connection.getresponse()
        text = answer.read1(1)
        first = time.perf_counter()
        text += answer.read()
        ended = time.perf_counter()
        assert answer.status == 200, text
        report = json.loads(text.rpartition(b"data: ")[2] if form == "stream" else text)
        return (first - started) * 1000, (ended - started) * 1000, report


def tokens_per_second(seconds: float, clients: int, work: Callable[[], Callable[[], int]]) -> float:
    """Of so many clients that work for so long; `work` makes one client's, which gives the tokens of a report."""
    started = time.perf_counter()

    def run(ask: Callable[[], int]) -> int:
        tokens = 0
        while time.perf_counter() - started < seconds:
            tokens += ask()
        return tokens

    with ThreadPoolExecutor(clients) as pool:
        tokens = sum(pool.map(run, [work() for _ in range(clients)]))
    return tokens / (time.perf_counter() - started)


def kernel_rate(pipeline: Pipeline, rows: int, passes: int = 40) -> float:
    """Tokens a second of passes over so many rows, each one position further, behind a prompt."""
    model, rng = pipeline.model, np.random.default_rng(0)
    state = model.decoder.open_rows(rows, 100 + passes)
    for row in range(rows):
        state.join(model.embed_tokens.lookup(rng.integers(3, 100, (1, 80))), row)
    times = []
    for _ in range(passes):
        embeds = model.embed_tokens.lookup(rng.integers(3, 100, (rows, 1)))
        started = time.perf_counter()
        state.advance(embeds)
        times.append(time.perf_counter() - started)
    return rows / statistics.median(times)


def latencies(site: Service, body: bytes, clients: int, rounds: int) -> dict[str, float]:
    """Medians in milliseconds."""
    first: list[float] = []
    token: list[float] = []
    lock = threading.Lock()

    def run(client: Client) -> None:
        for _ in range(rounds):
            begun, ended, report = client.ask(body, "stream")
            with lock:
                first.append(begun)
                token.append((ended - begun) / max(1, len(report["token_ids"]) - 1))

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(run, [Client(site) for _ in range(clients)]))
    return {"first_ms": round(statistics.median(first), 2), "token_ms": round(statistics.median(token), 3)}


def overhead(site: Service, pipeline: Pipeline, picture: Path, settings: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Medians in milliseconds of the service and the pipeline, in turn, and the median of their differences."""
    client, body = Client(site), body_of(picture, settings)
    rows = []
    for _ in range(rounds):
        started = time.perf_counter()
        stream = pipeline.stream(picture, **settings)
        next(stream)
        begun = time.perf_counter()
        for _ in stream:
            pass
        own = (begun - started) * 1000, (time.perf_counter() - started) * 1000
        first, whole, report = client.ask(body, "stream")
        assert stream.report is not None and report["text"] == stream.report.text
        rows.append((*own, first, whole, first - own[0], whole - own[1]))
    names = ("pipeline_first", "pipeline", "service_first", "service", "overhead_first", "overhead")
    medians = [round(statistics.median(column), 2) for column in zip(*rows[rounds // 5 :], strict=True)]
    return dict(zip(names, medians, strict=True))


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything, over one service."""
    bundle = options.bundle or demo()
    pipeline = Pipeline.from_bundle(bundle, device=options.device, threads=options.threads, batch=options.batch_size)
    images = pictures(folder / "phantoms", 8)
    settings = {"num_beams": 1, "min_new_tokens": options.tokens, "max_new_tokens": options.tokens}
    bodies = [body_of(image, settings) for image in images]
    pipeline.generate(images[0], **settings)
    kernel = kernel_rate(pipeline, 1), kernel_rate(pipeline, options.batch_size)
    started = time.perf_counter()
    single = [pipeline.generate(image, **settings) for image in images]
    between = time.perf_counter()
    many = list(pipeline.generate_many(images * 2, batch_size=options.batch_size, **settings))
    ended = time.perf_counter()
    in_process = (
        sum(len(report.token_ids) for report in single) / (between - started),
        sum(len(outcome.unwrap().token_ids) for outcome in many) / (ended - between),
    )
    prompt = statistics.median(sum(report.timings_ms[stage] for stage in PROMPT) for report in single) / 1000
    whole = [prompt + options.tokens / rate for rate in kernel]
    allowed = options.tokens / whole[0], options.tokens / whole[1]
    arguments = ("--batch-size", str(options.batch_size), "--queue-each", "1000", "--queue", "1000")
    with service(folder, *arguments, bundle=bundle, device=options.device, threads=options.threads) as site:
        numbers = iter(range(1 << 30))

        def work() -> Callable[[], int]:
            client = Client(site)
            return lambda: len(client.ask(bodies[next(numbers) % len(bodies)], "json")[2]["token_ids"])

        tokens_per_second(options.seconds / 4, options.batch_size, work)  # warms up
        served = (
            tokens_per_second(options.seconds, 1, work),
            tokens_per_second(options.seconds, options.clients, work),
        )
        rates = {"kernel": kernel, "allowed": allowed, "in_process": in_process, "service": served}
        ratios = {
            name: {"one": round(one, 2), "together": round(together, 2), "ratio": round(together / one, 2)}
            for name, (one, together) in rates.items()
        }
        return {
            **ratios,
            "service_of_kernel": round(ratios["service"]["ratio"] / ratios["kernel"]["ratio"], 2),
            "service_of_allowed": round(ratios["service"]["ratio"] / ratios["allowed"]["ratio"], 2),
            "latencies": {count: latencies(site, bodies[0], count, options.rounds) for count in (1, 4, 16)},
            "overhead": overhead(site, pipeline, images[0], settings, 5 * options.rounds),
        }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="the demo in dialect trt when left out")
    parser.add_argument("--device", default="cpu", help="cpu or openvino")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=60, help="of each report")
    parser.add_argument("--seconds", type=float, default=20, help="of each rate of the service")
    parser.add_argument("--rounds", type=int, default=10, help="reports of each client for the latencies")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(options, Path(folder))
    named = {name: str(value) for name, value in vars(options).items()}
    print(json.dumps({"options": named, **figures}, indent=1))  # noqa: T201


if __name__ == "__main__":
    main()
