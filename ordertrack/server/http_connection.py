"""One client's requests, one after the other."""

import contextlib
import json
import logging
import socket
import struct
import time
from http import HTTPStatus
from typing import Any, Final, Protocol

from ordertrack.networks import network_of
from ordertrack.server.http_reader import RequestReader
from ordertrack.server.http_request import BadRequest, Environ
from ordertrack.server.http_response import Answer, Gone, Wsgi, http_date
from ordertrack.server.waiting import Waiting
from ordertrack.server.websocket import TAKE_OVER

log = logging.getLogger(__name__)

# How long a connection may idle between two requests. Longer than proxies keep one (nginx: 60 s),
# so that they do not send a request into a connection that we are closing.
KEEPALIVE_SECONDS: Final = 75.0

# How long a client may take to send a whole request, body included. A greenlet waits meanwhile, and
# nothing else, so this need not be short; it only has to end.
REQUEST_SECONDS: Final = 30.0

# How long we wait in all for a client to take one answer: this, and a second for every so many
# bytes that did not fit into the kernel's queue at once. A large export over a poor line passes; a
# client that takes a byte now and then does not.
ANSWER_SECONDS: Final = 30.0
ANSWER_BYTES_PER_SECOND: Final = 8_192

# How long, and how much, a client may go on sending after its last answer; see `_linger`.
LINGER_SECONDS: Final = 1.0
LINGER_BYTES: Final = 4_194_304

RECEIVE_BYTES: Final = 16_384

# Requests that one connection may have answered before the others get their turn, when its next one
# is always there already: a `recv` that need not wait does not give up the loop.
REQUESTS_IN_A_ROW: Final = 4

_CODES: Final = {HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "payload_too_large"}


class Host(Protocol):
    """The server, as far as its connections know it."""

    app: Wsgi
    environ: Environ
    stopping: bool
    waiting: "Waiting[Connection]"
    max_body_bytes: int

    def pause(self) -> None: ...
    def ended(self, connection: "Connection") -> None: ...


class Connection:
    """One client's requests, one after the other."""

    __slots__ = (
        "_deadline",
        "_in_a_row",
        "_patience",
        "_reader",
        "_server",
        "_socket",
        "address",
        "idle",
        "network",
        "taken",
    )

    def __init__(self, server: Host, client: Any, address: Any) -> None:
        self.address = address
        self.network = network_of(address[0])
        self.idle = True  # nothing of a request has arrived
        self.taken = False
        self._server = server
        self._socket = client
        self._reader = RequestReader(self._receive, server.max_body_bytes, server.pause)
        self._deadline = 0.0
        self._patience = 0.0  # seconds that we go on waiting for the client to take the answer
        self._in_a_row = 0

    @property
    def stopping(self) -> bool:
        """Whether the request at hand is this connection's last."""
        return self._server.stopping

    # Bytes ----------------------------------------------------------------------------------------

    def _receive(self) -> bytes:
        """The next bytes from the client, by the deadline. Raises `Gone`."""
        if not self.idle:
            self._server.pause()  # who always has bytes ready must not keep the loop
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise Gone
        self._socket.settimeout(left)
        try:
            data: bytes = self._socket.recv(RECEIVE_BYTES)
        except (OSError, EOFError):  # a timeout is the former; closed by somebody else, the latter
            raise Gone from None
        if not data:
            raise Gone
        return data

    def send(self, data: bytes) -> None:
        """Raises `Gone` when the client does not take it."""
        try:
            sent = self._socket.fd.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            raise Gone from None
        if sent < len(data):
            self._send_slowly(memoryview(data)[sent:])

    def _send_slowly(self, rest: memoryview) -> None:
        """Send what the kernel did not take at once, for as long as there is patience."""
        began = time.monotonic()
        self._patience += len(rest) / ANSWER_BYTES_PER_SECOND
        self._server.waiting.add(self)
        try:
            while rest:
                left = began + self._patience - time.monotonic()
                if left <= 0:
                    raise Gone
                self._socket.settimeout(left)
                rest = rest[self._socket.send(rest) :]
        except OSError:
            raise Gone from None
        finally:
            self._server.waiting.discard(self)
            self._patience -= time.monotonic() - began

    def pause(self) -> None:
        self._server.pause()

    def take_over(self) -> tuple[Any, bytes]:
        """Give the socket away, with what has been read from it beyond the request."""
        self.taken = True
        return self._socket.fd, self._reader.rest()

    def hang_up(self) -> None:
        """Wake the greenlet that waits for the client, and let it end."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    # Requests -------------------------------------------------------------------------------------

    def serve(self) -> None:
        """The connection's greenlet."""
        try:
            while self._serve_one():
                self._give_way()
        except Gone:
            pass
        except Exception:  # ours to mend, and no reason to take anybody else down
            log.exception("A connection failed")
        finally:
            if not self.taken:
                self._socket.close()
            self._server.ended(self)

    def _give_way(self) -> None:
        """Let others have their turn, if this client's next request is likely to be here."""
        self._in_a_row += 1
        if self._reader.has_more or self._in_a_row >= REQUESTS_IN_A_ROW:
            self._in_a_row = 0
            self._server.pause()

    def _serve_one(self) -> bool:
        """Serve a request; whether there may be another one."""
        environ = self._server.environ.copy()
        self._patience = ANSWER_SECONDS
        try:
            self._read_request(environ)
        except BadRequest as bad:
            self._refuse(bad)
            return False
        environ["REMOTE_ADDR"] = self.address[0].removeprefix("::ffff:")
        environ["REMOTE_PORT"] = str(self.address[1])
        environ[TAKE_OVER] = self.take_over
        answer = Answer(self, environ)
        answer.run(self._server.app, environ)
        if self.taken:
            return False
        if answer.broken:
            self._reset()
        elif answer.keeps_open:
            return True
        else:
            self._linger()
        return False

    def _read_request(self, environ: Environ) -> None:
        """Wait for the next request, and read it whole. Raises `Gone` and `BadRequest`."""
        self._server.waiting.add(self)
        try:
            if not self._reader.has_more:
                if self._server.stopping:
                    raise Gone
                self.idle = True
                self._deadline = time.monotonic() + KEEPALIVE_SECONDS
                self._reader.receive()
            self.idle = False
            self._deadline = time.monotonic() + REQUEST_SECONDS
            self._reader.read(environ, self._go_on)
        finally:
            self._server.waiting.discard(self)

    def _go_on(self) -> None:
        self.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _refuse(self, bad: BadRequest) -> None:
        status = bad.status
        problem = {
            "type": "about:blank",
            "title": status.phrase,
            "status": status.value,
            "detail": bad.detail,
            "code": _CODES.get(status, "malformed_request"),
        }
        body = json.dumps(problem).encode()
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/problem+json\r\n"
            f"Content-Length: {len(body)}\r\nDate: {http_date()}\r\nConnection: close\r\n\r\n"
        )
        self.send(head.encode() + body)
        self._linger()

    def _linger(self) -> None:
        """Close so that the client gets the answer although it may still be sending.

        Closing with unread input sends a reset, which can overtake the answer.
        """
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            return
        self._deadline = time.monotonic() + LINGER_SECONDS
        self._server.waiting.add(self)
        try:
            received = 0
            while received < LINGER_BYTES:
                received += len(self._receive())
        finally:
            self._server.waiting.discard(self)

    def _reset(self) -> None:
        """Close so that the client cannot take the part of an answer that it has for the whole."""
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
