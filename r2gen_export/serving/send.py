"""Delivery of results by C-STORE or STOW-RS. Sent is what the destination answered with success, nothing else."""

from __future__ import annotations

import json
import os
import random
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

from r2gen_export.errors import cause_of
from r2gen_export.serving.records import Delivery
from r2gen_export.serving.settings import Destination, NodeSettings, Retry
from r2gen_export.serving.tls import client_context

if TYPE_CHECKING:
    from r2gen_export.serving.parts import Parts

AUTHORIZATION_VARIABLE: Final = "R2GEN_WEB_AUTHORIZATION"
CONNECT_SECONDS: Final = 10
MOST_ANSWER_BYTES: Final = 1 << 20
WARNINGS: Final = (0xB000, 0xB006, 0xB007)
"""C-STORE statuses of objects that were stored, though not as they were sent (PS3.4 table B.2-1)."""


class UnreachableError(Exception):
    """The destination took no association or gave no answer: nothing else waits for it will get through either."""


@dataclass(frozen=True)
class Answer:
    """What a destination said of one object. `stored`: it has it. `text`: a remark or the reason, by numbers alone."""

    stored: bool
    text: str = ""


Send = Callable[[Sequence[tuple[Delivery, bytes]]], list[Answer]]
"""Sends objects to one destination; an answer for each, fewer where the connection broke off.

Raises:
    UnreachableError
"""


class Sender:
    """Sends what is due to one destination, in a thread of its own: one that is down delays no other."""

    def __init__(self, settings: NodeSettings, destination: Destination, parts: Parts) -> None:
        """Prepare; nothing is connected before `run`.

        Raises:
            R2GenError: `R2G-NODE-NETWORK` when the TLS files cannot be used.
        """
        self._retry = settings.retry
        self._destination = destination
        self._folder = parts.spool.folder
        self._queue = parts.queue
        self._log = parts.log
        self._metrics = parts.metrics
        context = client_context(settings.tls) if settings.tls else None
        seconds = settings.retry.answer_seconds
        if destination.url:
            self._send = _stow(destination, context, seconds)
        else:
            self._send = _store(destination, settings.title, context, seconds)
        self.wake = threading.Event()
        self._failures = 0

    def run(self, stop: threading.Event) -> None:
        """Send until `stop` is set; what is not answered then is sent again by the next node."""
        while not stop.is_set():
            pause = 1.0
            try:
                pause = self.step()
            except Exception as error:
                self._log.failure("sending failed", error, destination=self._destination.name)
            if pause:
                self.wake.wait(pause)
                self.wake.clear()

    def step(self) -> float:
        """Send the results of one study. Returns the seconds after which to look again, 0 at once."""
        deliveries = self._in_time(self._queue.due(self._destination.name))
        if not deliveries:
            return 1.0
        self._queue.begin_sending(deliveries)
        objects = []
        for delivery in deliveries:
            try:
                objects.append((delivery, (self._folder / delivery.result.path).read_bytes()))
            except OSError as error:
                self._give_up(delivery, f"the result cannot be read: {cause_of(error)}")
        answers: list[Answer] = []
        try:
            answers = self._send(objects) if objects else []
        except UnreachableError as error:
            return self._unreachable(deliveries, str(error))
        self._failures = 0
        for place, (delivery, _) in enumerate(objects):
            answer = answers[place] if place < len(answers) else Answer(False, "no answer")
            if answer.stored:
                self._queue.sent(delivery, answer.text)
                self._said(delivery, "result sent", "warning" if answer.text else "info", answer.text)
            else:
                self._queue.try_later(delivery, answer.text, wait_seconds(self._retry, delivery.attempts))
                self._said(delivery, "result not accepted", "warning", answer.text)
        return 0.0

    def _unreachable(self, deliveries: Sequence[Delivery], reason: str) -> float:
        """Wait before the next connection at all: 1,000 results must not mean 1,000 connections to a dead host."""
        seconds = wait_seconds(self._retry, self._failures)
        self._failures += 1
        for delivery in deliveries:
            self._queue.try_later(delivery, reason, 0)
        self._log("destination unreachable", "warning", destination=self._destination.name, reason=reason)
        self._metrics.delivery(self._destination.name, "unreachable")
        return seconds

    def _in_time(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """The deliveries that are not too old; the others become dead letters."""
        oldest = time.time() - self._retry.give_up_seconds
        for delivery in deliveries:
            if delivery.ready < oldest:
                self._give_up(delivery, "not delivered in time")
        return [delivery for delivery in deliveries if delivery.ready >= oldest]

    def _give_up(self, delivery: Delivery, reason: str) -> None:
        self._queue.give_up(delivery, reason)
        self._said(delivery, "result given up", "error", reason)

    def _said(self, delivery: Delivery, event: str, level: str, text: str) -> None:
        name = self._destination.name
        self._log(event, level, study=delivery.name, form=delivery.result.form, destination=name, reason=text or None)
        self._metrics.delivery(name, event.removeprefix("result "))


def wait_seconds(retry: Retry, failures: int) -> float:
    """Seconds before the next attempt: doubled with each failure, up to a most; with jitter of a quarter."""
    seconds = min(retry.first_seconds * 2.0 ** min(failures, 30), retry.most_seconds)
    return seconds * random.uniform(0.75, 1.25)


def _store(destination: Destination, title: str, context: ssl.SSLContext | None, seconds: float) -> Send:
    """C-STORE over one association with the contexts that are needed and no others: some PACS refuse the rest."""

    def send(objects: Sequence[tuple[Delivery, bytes]]) -> list[Answer]:
        from pydicom import dcmread
        from pynetdicom import AE

        entity = AE(ae_title=title)
        for sop_class in dict.fromkeys(delivery.result.sop_class for delivery, _ in objects):
            entity.add_requested_context(sop_class, ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"])
        entity.connection_timeout, entity.acse_timeout = CONNECT_SECONDS, CONNECT_SECONDS
        entity.dimse_timeout = entity.network_timeout = seconds
        tls = (context, destination.host) if context else None
        try:
            association = entity.associate(destination.host, destination.port, ae_title=destination.title, tls_args=tls)
        except (OSError, RuntimeError) as error:
            raise UnreachableError(cause_of(error)) from error
        if not association.is_established:
            raise UnreachableError("rejected" if association.is_rejected else "no association")
        accepted = {context.abstract_syntax for context in association.accepted_contexts}
        answers: list[Answer] = []
        try:
            for delivery, data in objects:
                if delivery.result.sop_class not in accepted:
                    answers.append(Answer(False, "SOP class not accepted"))
                    continue
                if not association.is_established:
                    break
                status = association.send_c_store(dcmread(BytesIO(data)))
                answers.append(_judge(status))
        finally:
            if association.is_established:
                association.release()
        return answers

    return send


def _judge(status: Any) -> Answer:
    """An empty data set is no answer (time-out, abort), which says nothing of whether it was stored: send it again."""
    if "Status" not in status:
        return Answer(False, "no answer")
    number = int(status.Status)
    if number == 0:
        return Answer(True)
    return Answer(number in WARNINGS, f"status 0x{number:04X}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Results go where the node was told, and nowhere else."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _stow(destination: Destination, context: ssl.SSLContext | None, seconds: float) -> Send:
    """STOW-RS (PS3.18 section 10.5), one request for the results of a study; no proxy, no redirection."""
    https = urllib.request.HTTPSHandler(context=context or ssl.create_default_context())
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect(), https)

    def send(objects: Sequence[tuple[Delivery, bytes]]) -> list[Answer]:
        body, boundary = multipart([data for _, data in objects])
        headers = {
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
            "Accept": "application/dicom+json",
        }
        if authorization := os.environ.get(AUTHORIZATION_VARIABLE):
            headers["Authorization"] = authorization
        request = urllib.request.Request(destination.url, data=body, headers=headers, method="POST")
        try:
            with opener.open(request, timeout=seconds) as answer:
                status, text = answer.status, answer.read(MOST_ANSWER_BYTES)
        except urllib.error.HTTPError as error:
            if error.code in (401, 403, 404, 408, 429) or error.code >= 500:
                raise UnreachableError(f"HTTP {error.code}") from error
            status, text = error.code, error.read(MOST_ANSWER_BYTES)
        except (OSError, ValueError, urllib.error.URLError) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            cause = cause_of(reason) if isinstance(reason, BaseException) else "no connection"
            raise UnreachableError(cause) from error
        return read_stow_answer(status, text, [delivery.result.sop_uid for delivery, _ in objects])

    return send


def multipart(parts: Sequence[bytes]) -> tuple[bytes, str]:
    """The body of a STOW-RS request and its boundary, which none of the parts contains."""
    boundary = "r2gen"
    while any(boundary.encode() in part for part in parts):
        boundary = f"r2gen{random.getrandbits(64):016x}"
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    return b"".join(head + part + b"\r\n" for part in parts) + f"--{boundary}--\r\n".encode(), boundary


def read_stow_answer(status: int, text: bytes, sop_uids: Sequence[str]) -> list[Answer]:
    """What a STOW-RS answer says of each object: stored is what its ReferencedSOPSequence names.

    Args:
        status: of HTTP; 202 and 409 come with an answer as well.
        text: the body, in the DICOM JSON Model.
        sop_uids: of the objects that were sent.
    """
    try:
        answer = json.loads(text)
        answer = answer[0] if isinstance(answer, list) else answer
        stored = {_uid(item) for item in answer.get("00081199", {}).get("Value", [])}
        failed = {_uid(item): _failure(item) for item in answer.get("00081198", {}).get("Value", [])}
    except (ValueError, AttributeError, TypeError, KeyError, IndexError):
        return [Answer(False, f"HTTP {status}, and the answer is not in the DICOM JSON Model") for _ in sop_uids]
    return [
        Answer(True) if uid in stored and uid not in failed else Answer(False, failed.get(uid, f"HTTP {status}"))
        for uid in sop_uids
    ]


def _uid(item: Any) -> str:
    return str(item["00081155"]["Value"][0])


def _failure(item: Any) -> str:
    return f"failure 0x{int(item.get('00081197', {}).get('Value', [0])[0]):04X}"
