"""Counters for Prometheus and the health of a node, on a loopback port. Labels are fixed words, never identifiers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from r2gen_export.errors import R2GenError, cause_of
from r2gen_export.serving.queue import Queue
from r2gen_export.serving.records import State
from r2gen_export.serving.spool import Spool

STAGES: Final = ("preprocess", "encode", "prefill", "decode", "detokenize", "total")


class Metrics:
    """What a node has done since it was started, and what its queue holds now."""

    def __init__(self, spool: Spool, queue: Queue) -> None:
        from prometheus_client import CollectorRegistry, Counter

        self.registry = registry = CollectorRegistry()
        self._images = Counter(
            "r2gen_node_images", "Images that were taken in, by what became of them.", ["result"], registry=registry
        )
        self._bytes = Counter("r2gen_node_image_bytes", "Bytes of images that were taken in.", registry=registry)
        self._answers = Counter("r2gen_node_store_answers", "C-STORE answers by status.", ["status"], registry=registry)
        self._refused = Counter(
            "r2gen_node_refused_connections",
            "Connections and associations that were not served.",
            ["reason"],
            registry=registry,
        )
        self._reports = Counter(
            "r2gen_node_reports", "Studies that were worked on, by the outcome.", ["outcome"], registry=registry
        )
        self._seconds = Counter(
            "r2gen_node_report_seconds", "Time that reports took, by stage.", ["stage"], registry=registry
        )
        self._deliveries = Counter(
            "r2gen_node_deliveries", "Attempts to deliver a result.", ["destination", "outcome"], registry=registry
        )
        registry.register(_QueueCollector(spool, queue))

    def received(self, result: str, size: int) -> None:
        """An image was taken in."""
        self._images.labels(result).inc()
        self._bytes.inc(size)

    def answered(self, status: int) -> None:
        """A C-STORE was answered."""
        self._answers.labels(f"0x{status:04X}").inc()

    def refused(self, reason: str) -> None:
        """A connection was not served."""
        self._refused.labels(reason).inc()

    def report(self, outcome: str, timings_ms: dict[str, float] | None = None) -> None:
        """A study was worked on."""
        self._reports.labels(outcome).inc()
        for stage, milliseconds in (timings_ms or {}).items():
            self._seconds.labels(stage).inc(milliseconds / 1000)

    def delivery(self, destination: str, outcome: str) -> None:
        """An attempt to deliver."""
        self._deliveries.labels(destination, outcome).inc()

    def text(self) -> bytes:
        """All of it in the text format of Prometheus."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)


class _QueueCollector:
    """Gauges that are read from the queue and the disk when somebody asks."""

    def __init__(self, spool: Spool, queue: Queue) -> None:
        self._spool = spool
        self._queue = queue

    def describe(self) -> Iterable[Any]:
        """None: the registry would else read the queue at once."""
        return []

    def collect(self) -> Iterable[Any]:
        """Studies and deliveries by state, and free bytes."""
        from prometheus_client.core import GaugeMetricFamily

        studies = GaugeMetricFamily("r2gen_node_studies", "Studies in the queue by state.", labels=["state"])
        counted = {
            row["state"]: row["n"] for row in self._queue.rows("SELECT state, count(*) n FROM studies GROUP BY state")
        }
        for state in State:
            studies.add_metric([state.value], counted.get(state.value, 0))
        waiting = GaugeMetricFamily(
            "r2gen_node_waiting_results", "Results that wait for a destination.", labels=["destination"]
        )
        query = "SELECT destination, count(*) n FROM deliveries WHERE state = 'waiting' GROUP BY destination"
        for row in self._queue.rows(query):
            waiting.add_metric([row["destination"]], row["n"])
        free = GaugeMetricFamily(
            "r2gen_node_free_bytes", "Free space of the spool's disk.", value=self._spool.free_bytes()
        )
        return [studies, waiting, free]


class HealthServer:
    """GET /metrics and /health on the loopback interface: 200 when nothing is wrong, else 503 with the reasons."""

    def __init__(self, port: int, metrics: Metrics, problems: Callable[[], list[str]]) -> None:
        """Listen.

        Args:
            port: 0 takes a free one.
            metrics: what /metrics shows.
            problems: what is wrong now, in fixed words.

        Raises:
            R2GenError: `R2G-NODE-NETWORK`.
        """

        class Handler(BaseHTTPRequestHandler):
            timeout = 5

            def do_GET(self) -> None:
                if self.path == "/metrics":
                    self._answer(200, metrics.text(), "text/plain; version=0.0.4; charset=utf-8")
                elif self.path == "/health":
                    wrong = problems()
                    body = json.dumps({"healthy": not wrong, "problems": wrong}).encode()
                    self._answer(503 if wrong else 200, body, "application/json")
                else:
                    self._answer(404, b"", "text/plain")

            def _answer(self, status: int, body: bytes, kind: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """The standard library writes each request to stderr."""

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                """The standard library prints a traceback when a reader goes away."""

        try:
            self._server = Quiet(("127.0.0.1", port), Handler)
        except OSError as error:
            message = f"the node cannot listen on the metrics port {port}: {cause_of(error)}"
            raise R2GenError("R2G-NODE-NETWORK", message, "choose another --metrics-port") from error
        threading.Thread(target=self._server.serve_forever, args=(0.2,), name="metrics", daemon=True).start()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
