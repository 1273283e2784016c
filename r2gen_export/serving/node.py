"""The node: receives, closes studies that are quiet, lets reports be made one after the other, and sends them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from r2gen_export.errors import CodedError, InternalError, R2GenError, cause_of
from r2gen_export.serving.generate import Job
from r2gen_export.serving.incoming import received_into
from r2gen_export.serving.log import EventLog, silence_libraries
from r2gen_export.serving.metrics import HealthServer, Metrics
from r2gen_export.serving.parts import Parts
from r2gen_export.serving.queue import Queue
from r2gen_export.serving.receive import Receiver, Server
from r2gen_export.serving.records import Result, Study
from r2gen_export.serving.send import Sender
from r2gen_export.serving.settings import NodeSettings
from r2gen_export.serving.spool import Spool, make_spool, spool_lock
from r2gen_export.serving.watch import Watch
from r2gen_export.serving.worker import Worker, WorkerDiedError, WorkerSettings

PURGE_SECONDS: Final = 600
POLL_SECONDS: Final = 0.2
REFUSED_SECONDS: Final = 10.0
PAUSE_SECONDS: Final = 5.0
TRANSIENT: Final = ("R2G-RESOURCE-MEMORY", "R2G-RESOURCE-DISK", "R2G-INTERNAL")
"""Codes that say more about the machine than about the study: it is tried once more."""


class Node:
    """A running node. Make it inside `spool_lock` and `received_into`."""

    def __init__(self, settings: NodeSettings, spool: Spool, log: EventLog) -> None:
        """Open the queue, put back what a predecessor left, and listen; nothing is reported before `run`.

        Raises:
            R2GenError: `R2G-NODE-SPOOL`, `R2G-NODE-NETWORK`.
        """
        self._settings = settings
        self._spool = spool
        self._log = log
        self.queue = Queue(spool.database, spool.pseudonym)
        removed = spool.sweep(self.queue.files())
        begun = self.queue.recover()
        dropped = self.queue.drop_destinations([destination.name for destination in settings.destinations])
        self.metrics = Metrics(spool, self.queue)
        parts = Parts(spool, self.queue, log, self.metrics)
        receiver = Receiver(parts)
        self._senders = [Sender(settings, place, parts) for place in settings.destinations]
        self._watch = Watch(settings.watch, receiver, parts, settings.limits) if settings.watch else None
        self.worker = Worker(
            WorkerSettings(str(settings.bundle) if settings.bundle else None, settings.device, settings.preset)
        )
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._ending = False
        self._cannot_report = False
        self._next_purge = 0.0
        self._refusals = 0
        self._next_refusal = 0.0
        self._refusals_lock = threading.Lock()
        self.server = Server(settings, receiver, self._refused)
        self.health = (
            None if settings.metrics_port is None else HealthServer(settings.metrics_port, self.metrics, self.problems)
        )
        metrics_port = self.health.port if self.health else None
        log(
            "node started",
            port=self.server.port,
            metrics_port=metrics_port,
            swept=removed,
            interrupted=begun,
            dropped=dropped,
        )

    def run(self) -> None:
        """Work until `end` or `stop` is called, in the calling thread and others.

        Raises:
            R2GenError: the bundle cannot be loaded. A node that could only collect images says so at once.
        """
        for sender in self._senders:
            self._thread("send", sender.run)
        if self._watch is not None:
            self._thread("watch", self._watch.run)
        try:
            self.worker.start()
        except WorkerDiedError:
            if self._ending:
                return
            raise R2GenError(
                "R2G-RESOURCE-MEMORY", "the process that makes reports died while it loaded the bundle"
            ) from None
        self._log("ready to report")
        unclear = False
        while not self._ending:
            try:
                if unclear:
                    self.queue.release()
                    unclear = False
                self._step()
            except Exception as error:
                self._log.failure("step failed", error)
                unclear = True
                self._stop.wait(PAUSE_SECONDS)  # a full disk, for instance: nothing is lost

    def end(self) -> None:
        """Let `run` return soon. For a signal handler: takes no lock, since its thread may hold any."""
        self._ending = True
        self.worker.interrupt()

    def stop(self) -> None:
        """End all threads and the worker; once. What was not finished is done by the next node."""
        if self._stop.is_set():
            return
        self._ending = True
        self._stop.set()
        self.worker.stop()
        self.server.close()
        for sender in self._senders:
            sender.wake.set()
        for thread in self._threads:
            thread.join(timeout=5)
        if self.health is not None:
            self.health.close()
        self._log("node stopped")

    def problems(self) -> list[str]:
        """What is wrong now, in fixed words."""
        wrong = []
        if not self.server.is_alive:
            wrong.append("not listening")
        if any(not thread.is_alive() for thread in self._threads):
            wrong.append("a thread has ended")
        if self._spool.free_bytes() < self._settings.limits.reserve_bytes:
            wrong.append("the disk is full")
        if self._cannot_report:
            wrong.append("the model cannot be loaded")
        return wrong

    def _thread(self, name: str, target: object) -> None:
        thread = threading.Thread(target=target, args=(self._stop,), name=name, daemon=True)  # type: ignore[arg-type]
        thread.start()
        self._threads.append(thread)

    def _refused(self, reason: str) -> None:
        """Count a connection that was not served; a flood of them writes a line every `REFUSED_SECONDS`."""
        self.metrics.refused(reason)
        with self._refusals_lock:
            self._refusals += 1
            if time.monotonic() < self._next_refusal:
                return
            count, self._refusals = self._refusals, 0
            self._next_refusal = time.monotonic() + REFUSED_SECONDS
        self._log("not served", "warning", reason=reason, count=count)

    def _step(self) -> None:
        closed = self.queue.close_quiet(self._settings.close_after)
        if closed:
            self._log("studies closed", count=closed)
        if not self._can_report():
            return
        study = self.queue.claim()
        if study is None:
            self._purge()
            self._stop.wait(POLL_SECONDS)
            return
        try:
            self._report(study)
        except CodedError as error:
            if isinstance(error, InternalError):
                self.worker.end()  # whatever state it is in, the next study gets a new one
            if error.code in TRANSIENT and self.queue.died(study):
                self._log("report failed", "warning", study=study.name, code=error.code, reason=error.message)
                return
            self.queue.refuse(study, error.code, error.message)
            self.metrics.report("refused")
            self._log("study refused", "warning", study=study.name, code=error.code, reason=error.message)
        except WorkerDiedError:
            if self._ending:
                self.queue.put_back(study)
                return
            again = self.queue.died(study)
            self.metrics.report("died")
            self._log("reporting process died", "error", study=study.name, again="yes" if again else "no")
        except OSError as error:
            self.queue.put_back(study)
            self._log("results not stored", "error", study=study.name, reason=cause_of(error))
            self._stop.wait(PAUSE_SECONDS)

    def _can_report(self) -> bool:
        """Load the model again where its process has ended. What fails here is no study's fault: all of them wait."""
        try:
            self.worker.start()
        except (CodedError, WorkerDiedError) as error:
            if not self._ending:
                self._cannot_report = True
                self._log.failure("model not loaded", error)
                self._stop.wait(PAUSE_SECONDS)
            return False
        self._cannot_report = False
        return True

    def _report(self, study: Study) -> None:
        """Make the report. Its files are on the disk before the queue names them, and that before anything is sent."""
        began = time.monotonic()
        if not all(study.paths):
            message = "images of this study were removed after its last report (--keep)"
            raise R2GenError(
                "R2G-NODE-SPOOL", message, "send all images of the study again under a new SOP Instance UID"
            )
        folder = self._spool.folder
        replaces = {form: folder / path for form, path in study.earlier.items() if path}
        job = Job(tuple(folder / path for path in study.paths), self._settings.forms, replaces)
        made = self.worker.make(job, self._settings.study_seconds)
        results = []
        for written in made.results:
            if written.study_uid != study.study_uid:
                raise InternalError("a result is of another study than its images")
            path = self._spool.result_path(study.study_uid, study.revision, written.form)
            self._spool.write(path, written.data)
            results.append(Result(written.form, written.sop_class, written.sop_uid, self._spool.relative(path)))
        self.queue.finish(study, results, [destination.name for destination in self._settings.destinations])
        for sender in self._senders:
            sender.wake.set()
        self.metrics.report("reported", made.timings_ms)
        milliseconds = round((time.monotonic() - began) * 1000)
        self._log("study reported", study=study.name, revision=study.revision, images=len(study.paths),
                  ms=milliseconds, encode_ms=round(made.timings_ms.get("encode", 0)),
                  decode_ms=round(made.timings_ms.get("prefill", 0) + made.timings_ms.get("decode", 0)))  # fmt: skip

    def _purge(self) -> None:
        days = self._settings.keep_days
        if days is None or time.monotonic() < self._next_purge:
            return
        self._next_purge = time.monotonic() + PURGE_SECONDS
        removed = remove_old(self._spool, self.queue, days)
        if removed:
            self._log("files removed", count=removed)


def remove_old(spool: Spool, queue: Queue, days: float) -> int:
    """Remove pixels and results of studies that are done for so many days. Returns how many files."""
    paths = queue.purge(days)
    for path in paths:
        file = spool.folder / path
        file.unlink(missing_ok=True)
        if not any(file.parent.iterdir()):
            file.parent.rmdir()
    return len(paths)


@contextmanager
def running_node(settings: NodeSettings) -> Iterator[Node]:
    """A node that listens, and is stopped when the block ends.

    Raises:
        R2GenError: `R2G-NODE-*`, `R2G-CONFIG-VALUE`.
    """
    log = EventLog()
    silence_libraries(log)
    spool = make_spool(settings.spool)
    with spool_lock(settings.spool), received_into(spool, settings.limits):
        node = Node(settings, spool, log)
        try:
            yield node
        finally:
            node.stop()
            node.queue.close()
