"""Requests of the HTTP front: places in a bounded queue, a fair order, and the worker process that they go to.

All of it runs in the event loop of the front.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from r2gen_export.errors import cause_of
from r2gen_export.serving.http_errors import HttpError, busy, not_ready
from r2gen_export.serving.http_metrics import HttpMetrics
from r2gen_export.serving.http_preview import PICTURE
from r2gen_export.serving.http_settings import HttpLimits
from r2gen_export.serving.http_worker import HttpWorkerSettings
from r2gen_export.serving.log import EventLog
from r2gen_export.serving.worker_environment import worker_environment

LOAD_SECONDS: Final = 900.0
SILENT_SECONDS: Final = 120.0
"""After which a process that does not let a cancelled request go is ended."""
FIRST_PAUSE: Final = 0.2
MOST_PAUSE: Final = 30.0
LINE_BYTES: Final = 1 << 28
AHEAD: Final = 2
"""Requests in the worker beyond those decoded together: their images are read meanwhile."""


@dataclass(eq=False, repr=False)
class Job:
    """A request with a place in the queue.

    Attributes:
        request_id: of its answers. `owner`: whose turn it takes in the fair order. `key`: name of the key.
        folder: private, for its files.
        told: what the worker is told.
        events: what the worker says: `{"text"}`, `{"report", "file"}`, `{"picture"}`, `{"error"}`, and `{"late"}`,
            `{"left"}` from the front itself.
        failed: code of the error that ended an answer by events.
        arrived, begun, first, last: times of `time.monotonic`: queued, given to the worker, first and last piece.
    """

    request_id: str
    owner: str
    key: str
    folder: Path
    number: int = 0
    told: Mapping[str, Any] = field(default_factory=dict)
    events: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)
    arrived: float = 0.0
    begun: float = 0.0
    first: float = 0.0
    last: float = 0.0
    ended: bool = False
    failed: str = ""
    _following: dict[str, Any] | None = None

    async def next_event(self) -> dict[str, Any]:
        """The next of the events; pieces of text that wait together are joined into one, so that a client which takes
        them slowly, or a front that is behind, has less to do."""
        if self._following is not None:
            event, self._following = self._following, None
            return event
        event = await self.events.get()
        while "text" in event and not self.events.empty():
            following = self.events.get_nowait()
            if "text" not in following:
                self._following = following
                break
            event = {**event, "text": event["text"] + following["text"]}
        return event


class Jobs:
    """The queue, and the worker process.

    Args:
        worker: what the process loads.
        limits: of the queue.
        scratch: the private folder.
        metrics, log: are told what happens.
    """

    def __init__(
        self, worker: HttpWorkerSettings, limits: HttpLimits, scratch: Path, metrics: HttpMetrics, log: EventLog
    ) -> None:
        self._worker, self._limits, self._scratch = worker, limits, scratch
        self._metrics, self._log = metrics, log
        self._places: dict[str, int] = {}
        self._turns: deque[str] = deque()
        self._waiting: dict[str, deque[Job]] = {}
        self._sent: dict[int, Job] = {}
        self._leaving: dict[int, float] = {}
        self._next = 0
        self._process: asyncio.subprocess.Process | None = None
        self._stopped = False
        self.ready: Mapping[str, Any] | None = None
        self.problem: Mapping[str, str] | None = None
        self.restarts = 0
        self.was_ready = False
        metrics.waiting_of(self._count_waiting)

    @property
    def pid(self) -> int | None:
        """Of the worker process, while there is one."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    def place(self, request_id: str, owner: str, key: str) -> Job:
        """A place in the queue, taken before the body is read, so that bodies are bounded too.

        Raises:
            HttpError: 429 when the queue is full, 503 when the disk is.
        """
        taken = sum(self._places.values())
        if taken >= self._limits.queue + self._worker.studies or self._places.get(owner, 0) >= self._limits.queue_each:
            mine = self._places.get(owner, 0) >= self._limits.queue_each
            message = "this client has too many requests open" if mine else "the queue is full"
            raise busy(message, 1 + taken * self._metrics.mean_seconds() / self._together())
        try:
            folder = Path(tempfile.mkdtemp(dir=self._scratch))
        except OSError as error:
            message = f"there is no room for the request's images ({cause_of(error)})"
            raise HttpError(503, "R2G-RESOURCE-DISK", message, "make room on the service's disk") from error
        self._places[owner] = self._places.get(owner, 0) + 1
        self._next += 1
        return Job(request_id, owner, key, folder, self._next)

    def queue(self, job: Job, told: Mapping[str, Any]) -> None:
        """Let the request wait for its turn.

        Raises:
            HttpError: 503 when the worker cannot load the model at all.
        """
        if self.problem is not None:
            raise not_ready(f"the model cannot be loaded ({self.problem['code']})")
        job.told = {**told, "id": job.number}
        job.arrived = time.monotonic()
        if job.owner not in self._waiting:
            self._waiting[job.owner] = deque()
            self._turns.append(job.owner)
        self._waiting[job.owner].append(job)
        self._dispatch()

    def leave(self, job: Job) -> None:
        """The request is over, with a report or without: its place becomes free and its folder is removed, once the
        worker does not use it any more."""
        if job.number in self._sent and not job.ended:
            if job.number not in self._leaving:
                self._leaving[job.number] = time.monotonic()
                self._put({"cancel": job.number})
            return
        waiting = self._waiting.get(job.owner)
        if waiting is not None and job in waiting:
            waiting.remove(job)
        self._release(job)

    def _release(self, job: Job) -> None:
        self._sent.pop(job.number, None)
        self._leaving.pop(job.number, None)
        if self._places.get(job.owner, 0) <= 1:
            self._places.pop(job.owner, None)
        else:
            self._places[job.owner] -= 1
        shutil.rmtree(job.folder, ignore_errors=True)
        self._dispatch()

    def _count_waiting(self) -> int:
        return sum(job.told["form"] != PICTURE for jobs in self._waiting.values() for job in jobs)

    def _dispatch(self) -> None:
        """Give the worker as many requests as it decodes, from one owner after the other."""
        while self.ready is not None and self._turns and self._busy() < self._together() + AHEAD:
            owner = self._turns.popleft()
            waiting = self._waiting[owner]
            if waiting:
                job = waiting.popleft()
                job.begun = time.monotonic()
                self._sent[job.number] = job
                if job.told["form"] != PICTURE:
                    self._metrics.begun(job.begun - job.arrived)
                self._put(job.told)
            if waiting:
                self._turns.append(owner)
            else:
                del self._waiting[owner]

    def _together(self) -> int:
        """Requests that the worker decodes together, as far as is known."""
        return self._worker.studies if self.ready is None else int(self.ready["together"])

    def _busy(self) -> int:
        return sum(not job.ended for job in self._sent.values())

    def _put(self, fields: Mapping[str, Any]) -> None:
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError, RuntimeError):
                self._process.stdin.write(json.dumps(fields).encode() + b"\n")

    async def run(self) -> None:
        """Keep a worker running until `kill`. Ends by itself when the first one says that it cannot load the model."""
        pause = FIRST_PAUSE
        while not self._stopped:
            try:
                was_ready = await self._work()
            except Exception as error:
                self._log.failure("worker failed", error)
                was_ready = False
            if self._stopped or (self.problem is not None and not self.was_ready):
                return
            pause = FIRST_PAUSE if was_ready else min(pause * 2, MOST_PAUSE)
            self.restarts += 1
            self._metrics.restarted()
            self._log("worker ended, another is started", "error", after_s=pause)
            await asyncio.sleep(pause)

    async def _work(self) -> bool:
        """One worker process from its start to its end. Returns whether it came to be ready."""
        # In a thread: asking a GPU's driver may take a second.
        environment = await asyncio.to_thread(worker_environment, self._worker.bundle, self._worker.device)
        if self._stopped:
            return False
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "r2gen_export.serving.http_worker", json.dumps(asdict(self._worker)),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
            limit=LINE_BYTES, env=environment,
        )  # fmt: skip
        assert process.stdout is not None
        watch = asyncio.create_task(self._watch(process))
        was_ready = False
        try:
            while line := await process.stdout.readline():
                self._hear(json.loads(line))
                was_ready |= self.ready is not None
        except ValueError as error:
            self._log.failure("worker answered what is no JSON", error)
        finally:
            watch.cancel()
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            self._lost()
        return was_ready

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """End a process that does not load, or does not let a cancelled request go."""
        started = time.monotonic()
        while True:
            await asyncio.sleep(1)
            now = time.monotonic()
            silent = any(now - since > SILENT_SECONDS for since in self._leaving.values())
            if silent or (self.ready is None and now - started > LOAD_SECONDS):
                self._log("worker does not answer and is ended", "error")
                process.kill()

    def _hear(self, fields: dict[str, Any]) -> None:
        if "ready" in fields:
            self.ready, self.problem, self.was_ready = fields["ready"], None, True
            told = fields["ready"]
            self._log(
                "ready", backend=str(told["backend"]), together=int(told["together"]), drafts=bool(told["drafts"])
            )
            self._dispatch()
        elif "running" in fields:
            self._metrics.running(int(fields["running"]))
        elif "id" not in fields:
            self.problem = fields["error"]
            self._log("model not loaded", "error", code=str(fields["error"]["code"]),
                      reason=str(fields["error"]["message"]))  # fmt: skip
            self._end_waiting(f"the model cannot be loaded ({fields['error']['code']})")
        elif (job := self._sent.get(int(fields["id"]))) is not None:
            self._tell(job, fields)

    def _tell(self, job: Job, fields: dict[str, Any]) -> None:
        if "text" in fields:
            job.last = time.monotonic()
            job.first = job.first or job.last
        else:
            job.ended = True
        job.events.put_nowait(fields)
        if job.ended:
            if job.number in self._leaving:
                self._release(job)
            self._dispatch()

    def _lost(self) -> None:
        """The worker is gone: what it had gets its answer, what waits goes on waiting."""
        self.ready = None
        self._metrics.running(0)
        for job in list(self._sent.values()):
            if not job.ended:
                job.ended = True
                job.events.put_nowait({"lost": True})
                if job.number in self._leaving:
                    self._release(job)

    def _end_waiting(self, message: str) -> None:
        for waiting in self._waiting.values():
            for job in waiting:
                job.ended = True
                job.events.put_nowait({"lost": True, "message": message})
            waiting.clear()

    def kill(self) -> None:
        """End the worker process at once, for good; open requests get their answer."""
        self._stopped = True
        self._end_waiting("the service is stopping")
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()
