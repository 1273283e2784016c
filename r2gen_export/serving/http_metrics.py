"""Metrics of the HTTP service for Prometheus, named as vLLM names its own. Labels are fixed words, no identifiers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Upper bounds of the buckets of times of a whole request."""

TOKEN_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Upper bounds of the buckets of times of a token."""

STAGES: Final = ("preprocess", "encode", "prefill", "decode", "detokenize")
FILLS: Final = (1, 2, 4, 8, 16, 32, 64)


class HttpMetrics:
    """What the service has done since it was started, and does now."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = registry = CollectorRegistry()
        self._outcomes = Counter(
            "r2gen:request_outcomes", "Answers to requests for reports, by outcome and status.", ["outcome", "status"],
            registry=registry,
        )  # fmt: skip
        self._success = Counter(
            "r2gen:request_success", "Reports given out, by why they ended.", ["finished_reason"], registry=registry
        )
        self._running = Gauge("r2gen:num_requests_running", "Requests being decoded.", registry=registry)
        self._waiting = Gauge("r2gen:num_requests_waiting", "Requests in the queue.", registry=registry)
        self._restarts = Counter("r2gen:worker_restarts", "Ends of the worker process.", registry=registry)
        self._prompt = Counter("r2gen:prompt_tokens", "Positions of prompts that were read.", registry=registry)
        self._tokens = Counter("r2gen:generation_tokens", "Tokens generated.", registry=registry)
        self._drafted = Counter("r2gen:spec_decode_num_draft_tokens", "Tokens proposed by drafts.", registry=registry)
        self._accepted = Counter(
            "r2gen:spec_decode_num_accepted_tokens", "Proposed tokens that the model chose too.", registry=registry
        )

        def times(name: str, what: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()) -> Histogram:
            return Histogram(name, what, labels, buckets=buckets, registry=registry)

        self._queue = times("r2gen:request_queue_time_seconds", "Wait for the worker.", SECONDS)
        self._whole = times("r2gen:e2e_request_latency_seconds", "From the body's end to the report.", SECONDS)
        self._first = times("r2gen:time_to_first_token_seconds", "From the body's end to the first piece.", SECONDS)
        self._each = times("r2gen:time_per_output_token_seconds", "Time between two tokens of a report.", TOKEN_SECONDS)
        self._stage = times("r2gen:request_stage_seconds", "Time of a report's stages.", SECONDS, ("stage",))
        self._fill = times("r2gen:batch_size", "Most studies in one pass with a report.", FILLS)
        self._seconds = 1.0

    def waiting_of(self, count: Callable[[], int]) -> None:
        """Where the length of the queue is read."""
        self._waiting.set_function(count)

    def mean_seconds(self) -> float:
        """A report's time of late, for Retry-After."""
        return self._seconds

    def running(self, count: int) -> None:
        """So many requests are being decoded."""
        self._running.set(count)

    def restarted(self) -> None:
        """The worker has ended."""
        self._restarts.inc()

    def begun(self, waited: float) -> None:
        """A request was given to the worker after so many seconds."""
        self._queue.observe(waited)

    def answered(self, outcome: str, status: int) -> None:
        """A request for a report was answered; `outcome` is a fixed word."""
        self._outcomes.labels(outcome, str(status)).inc()

    def reported(self, report: Mapping[str, Any], positions: int, whole: float, first: float) -> None:
        """A report.

        Args:
            report: as `Report.to_dict`.
            positions: of the prompt.
            whole, first: seconds from the body's end to the report, and to the first piece of text.
        """
        tokens = len(report["token_ids"])
        self._success.labels(report["finish_reason"]).inc()
        self._prompt.inc(positions)
        self._tokens.inc(tokens)
        self._drafted.inc(report["drafted"])
        self._accepted.inc(report["accepted"])
        self._whole.observe(whole)
        self._first.observe(first)
        self._fill.observe(report["batch_size"])
        if tokens > 1:
            self._each.observe(report["timings_ms"]["decode"] / 1000 / (tokens - 1))
        for stage in STAGES:
            self._stage.labels(stage).observe(report["timings_ms"][stage] / 1000)
        self._seconds += 0.1 * (whole - self._seconds)

    def text(self) -> bytes:
        """All of it in the text format of Prometheus."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)
