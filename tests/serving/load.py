"""Load on the HTTP service over the demo: `python -m tests.serving.load --clients 64 --minutes 10`.

Requests are mixed: greedy, beams and sampled, as JSON and as events, cancelled, malformed and too large. Every text is
compared with the one the pipeline writes alone. The same run serves one request after the other for comparison. Prints
JSON. Latencies and what the service adds to the pipeline are measured by `tests.serving.throughput`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from r2gen_export.reporting.report import Report
from tests.serving.http_bodies import malformed
from tests.serving.http_fuzz import run_fuzz
from tests.serving.http_site import Service, demo_pipeline, files, pictures, service

SETTINGS: tuple[dict[str, Any], ...] = ({}, {"preset": "paper"}, {"seed": 3, "temperature": 1.2, "max_new_tokens": 30})
WEIGHTS = (12, 6, 1)
KINDS = ("json", "stream", "cancel", "malformed", "large")
KIND_WEIGHTS = (8, 8, 2, 1, 1)


@dataclass
class Load:
    """A run: the pictures, what is expected of each with each settings, and what came."""

    images: list[Path]
    expected: dict[tuple[int, int], Report]
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    tokens: int = 0

    async def ask(self, client: httpx.AsyncClient, draw: random.Random) -> None:
        """One request of any kind; a refusal for a full queue is not lost but asked again."""
        kind = draw.choices(KINDS, KIND_WEIGHTS)[0]
        picture, number = draw.randrange(len(self.images)), draw.choices(range(len(SETTINGS)), WEIGHTS)[0]
        form = {name: str(value) for name, value in SETTINGS[number].items()}
        request: dict[str, Any] = {"data": form, "files": files(self.images[picture])}
        if kind == "malformed":
            path, headers, content = malformed(draw.randrange(1 << 30), self.images[0].read_bytes()[:300])
            answer = await client.post(path, headers=headers, content=content)
            self._count(kind, answer.status_code in (200, 400, 413, 415, 422, 429), answer.status_code)
        elif kind == "large":
            answer = await client.post("/v1/reports", files={"images": ("a", bytes(3 << 20))})
            self._count(kind, answer.status_code in (413, 429), answer.status_code)
        elif kind == "cancel":
            async with client.stream("POST", "/v1/reports?format=stream", **request) as stream:
                async for _ in stream.aiter_raw():
                    break
            self._count(kind, True, 0)
        else:
            answer = await client.post(f"/v1/reports?format={kind}", **request)
            if answer.status_code == 429:
                self.counts["429"] += 1
                await asyncio.sleep(0.2)
                return
            self._check(kind, answer, self.expected[picture, number])

    def _check(self, kind: str, answer: httpx.Response, report: Report) -> None:
        text = ""
        if answer.status_code == 200 and kind == "json":
            text = answer.json()["text"]
        elif answer.status_code == 200:
            lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
            text = "".join(json.loads(line)["text"] for line in lines[:-1])
        self._count(kind, text == report.text, answer.status_code)
        self.tokens += len(report.token_ids)

    def _count(self, kind: str, right: bool, status: int) -> None:
        self.counts[kind] += 1
        if not right:
            self.wrong.append(f"{kind} {status}")

    async def run(self, url: str, clients: int, seconds: float, seed: int) -> float:
        """So many clients for so long; returns the seconds it took."""
        started = time.perf_counter()
        limits = httpx.Limits(max_connections=clients)

        async def one(number: int, client: httpx.AsyncClient) -> None:
            draw = random.Random(seed * 1000 + number)
            while time.perf_counter() - started < seconds:
                await self.ask(client, draw)

        async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
            await asyncio.gather(*(one(number, client) for number in range(clients)))
        return time.perf_counter() - started


def resident(pid: int) -> float:
    """MiB of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(options: argparse.Namespace, site: Service, load: Load) -> dict[str, Any]:
    """All phases over one service."""
    asyncio.run(load.run(site.url, 4, 3, 0))  # warm
    alone = Load(load.images, load.expected)
    single_s = asyncio.run(alone.run(site.url, 1, options.minutes * 20, 1))
    memory = [resident(site.process.pid), resident(site.worker_pid())]
    busy = Load(load.images, load.expected)
    many_s = asyncio.run(busy.run(site.url, options.clients, options.minutes * 60, 2))
    return {
        "clients": options.clients,
        "seconds": round(many_s, 1),
        "counts": dict(busy.counts),
        "wrong": busy.wrong[:10] + alone.wrong[:10],
        "tokens_per_s": round(busy.tokens / many_s, 1),
        "one_by_one_tokens_per_s": round(alone.tokens / single_s, 1),
        "ratio": round(busy.tokens / many_s / (alone.tokens / single_s), 2),
        "uploads_left": len(site.uploads()),
        "front_mib": [round(memory[0], 1), round(resident(site.process.pid), 1)],
        "worker_mib": [round(memory[1], 1), round(resident(site.worker_pid()), 1)],
        "fuzz": run_fuzz(site.url, load.images[0], range(options.fuzz)),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--fuzz", type=int, default=0, help="malformed bodies sent at the end")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = pictures(Path(folder) / "phantoms", 4)
        pipeline = demo_pipeline()
        expected = {
            (picture, number): pipeline.generate(path, **settings)
            for picture, path in enumerate(images)
            for number, settings in enumerate(SETTINGS)
        }
        arguments = ("--max-body", "2", "--queue", str(options.clients), "--queue-each", "1000", "--batch-size",
                     str(options.batch_size))  # fmt: skip
        with service(Path(folder), *arguments) as site:
            figures = measure(options, site, Load(images, expected))
    print(json.dumps(figures, indent=1))  # noqa: T201


if __name__ == "__main__":
    main()
