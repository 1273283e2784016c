"""The node's listening socket: how many connections it holds, and how long and how much each may send.

pynetdicom limits neither the size of a PDU, nor the time in which one arrives, nor the connections that never ask for
an association, and does the TLS handshake in the thread that accepts connections.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from r2gen_export.serving.settings import Limits

MOST_WAITING: Final = 10
"""Requests of one association that have no answer yet; a peer that negotiated nothing else sends one at a time."""


@dataclass
class Connection:
    """An open connection; `association` is None during the TLS handshake."""

    address: str
    socket: socket.socket
    association: Any = None
    done: bool = False

    @property
    def is_open(self) -> bool:
        """Whether it still counts."""
        return not self.done and (self.association is None or self.association.is_alive())

    @property
    def is_silent(self) -> bool:
        """Whether it has no association yet."""
        return self.association is None or not self.association.is_established


class LimitedSocket(AssociationSocket):
    """The socket of an association, which ends by an OSError when it takes more than its limits."""

    def __init__(self, association: Any, client: socket.socket, limits: Limits) -> None:
        super().__init__(association, client_socket=client)
        self._limits = limits
        self._began = time.monotonic()
        self._received = 0
        self._pdu_began = self._began
        client.settimeout(limits.idle_seconds)

    def recv(self, nr_bytes: int) -> bytearray:
        """Read that many bytes: first the 6 of a PDU's header, then the rest of the PDU.

        Raises:
            OSError: when a limit is passed; pynetdicom ends the association then.
        """
        limits, now = self._limits, time.monotonic()
        if nr_bytes == 6:
            self._pdu_began = now
            self._check_memory()
        self._received += nr_bytes
        if nr_bytes > limits.pdu_bytes or self._received > limits.association_bytes:
            raise OSError("too many bytes")
        if now - self._began > limits.association_seconds:
            raise OSError("too long an association")
        data = bytearray()
        connection = self.socket
        while connection is not None and len(data) < nr_bytes:
            if time.monotonic() - self._pdu_began > 2 * limits.idle_seconds:
                raise OSError("too slow a sender")
            part = connection.recv(min(nr_bytes - len(data), 65536))
            if not part:
                break
            data += part
        return data

    def _check_memory(self) -> None:
        """pynetdicom collects a command, and the data set of all but C-STORE, in memory, and queues requests."""
        service = self.assoc.dimse
        message = service.message
        held = 0 if message is None else message.encoded_command_set.tell()
        if message is not None and message.data_set is not None:
            held += message.data_set.tell()
        if held > self._limits.pdu_bytes or service.msg_queue.qsize() > MOST_WAITING:
            raise OSError("too much that waits")


class LimitedHandler(RequestHandler):
    """Begins an association in a thread of its own, after the TLS handshake."""

    server: LimitedServer

    def handle(self) -> None:
        """Handshake, then pynetdicom's own."""
        entry = self.server.entry_of(self.request)
        try:
            if self.server.tls is not None:
                self.request.settimeout(self.server.limits.acse_seconds)
                self.request = self.server.tls.wrap_socket(self.request, server_side=True)
                entry.socket = self.request
            super().handle()
        except OSError:
            entry.done = True
            self.request.close()
            self.server.refused("handshake")

    def _create_association(self) -> Any:
        association = super()._create_association()
        association.dul.socket = LimitedSocket(association, self.request, self.server.limits)
        # Both sockets announced the connection; the state machine must hear of it once.
        association.dul.event_queue.get_nowait()
        self.server.entry_of(self.request).association = association
        return association


class LimitedServer(ThreadedAssociationServer):
    """Accepts connections up to the limits. Where they are reached, one that has said nothing yet makes room."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *arguments: Any, limits: Limits, refused: Callable[[str], None], **options: Any) -> None:
        self.limits = limits
        self.refused = refused
        self.tls: ssl.SSLContext | None = options.pop("ssl_context", None)
        self._connections: list[Connection] = []
        self._guard = threading.Lock()
        super().__init__(*arguments, **{"request_handler": LimitedHandler, **options})

    def entry_of(self, request: Any) -> Connection:
        """The entry of a socket that was accepted."""
        with self._guard:
            return next(entry for entry in self._connections if entry.socket is request)

    def open_connections(self) -> int:
        """How many connections are open."""
        with self._guard:
            return sum(entry.is_open for entry in self._connections)

    def cut_connections(self) -> None:
        """End all connections at once."""
        with self._guard:
            for entry in self._connections:
                _shut(entry.socket)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether a new connection is served."""
        address = str(client_address[0])
        with self._guard:
            self._connections = [entry for entry in self._connections if entry.is_open]
            same = [entry for entry in self._connections if entry.address == address]
            full = len(same) >= self.limits.associations_per_peer
            if full or len(self._connections) >= self.limits.associations:
                silent = next((entry for entry in (same if full else self._connections) if entry.is_silent), None)
                if silent is None:
                    self.refused("connections")
                    return False
                silent.done = True
                _shut(silent.socket)
                self.refused("silent connection")
            self._connections.append(Connection(address, request))
        return True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The standard library prints a traceback here."""
        self.refused("failed connection")
        _shut(request)


def _shut(connection: socket.socket) -> None:
    """End a connection whose thread may be reading from it."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        connection.close()
