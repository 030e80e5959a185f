"""Serves one client's connection: its HTTP requests, one after the other, in one greenlet."""

import _socket
import contextlib
import logging
import socket
import struct
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from ordertrack import eventlet_hub, problems
from ordertrack.errors import DomainError, PayloadTooLarge
from ordertrack.eventlet_hub import READ, WRITE, wait_until
from ordertrack.networks import network_of
from ordertrack.server.http_reader import RequestReader
from ordertrack.server.http_request import TAKE_OVER, BadRequest, Environ
from ordertrack.server.http_response import ClientGone, Response, http_date
from ordertrack.server.loop import pause

if TYPE_CHECKING:
    from ordertrack.server.server import Server

log = logging.getLogger(__name__)

# How long a connection may idle between two requests. Longer than proxies keep one (nginx: 60 s),
# so that they do not send a request into a connection that we are closing.
KEEPALIVE_SECONDS: Final = 75.0

# How long a client may take to send a whole request, body included. Only a greenlet is held
# meanwhile, so this need not be short.
REQUEST_SECONDS: Final = 30.0

# How long we wait in all for a client to read one response: this, and a second for every so many
# bytes that did not fit into the kernel's queue at once. That allows a large export over a poor
# line, and not a client that reads a byte now and then.
RESPONSE_SECONDS: Final = 30.0
RESPONSE_BYTES_PER_SECOND: Final = 8_192

# How long, and how much, a client may go on sending after its last response; see `_linger`.
LINGER_SECONDS: Final = 1.0
LINGER_BYTES: Final = 4_194_304

RECEIVE_BYTES: Final = 16_384


class Connection:
    """One client's connection. `WaitingConnections` may evict it while it waits for the client."""

    __slots__ = (
        "_deadline",
        "_descriptor",
        "_has_waited",
        "_is_new",
        "_patience",
        "_reader",
        "_server",
        "_socket",
        "address",
        "idle",
        "network",
        "taken",
    )

    def __init__(self, server: "Server", client: _socket.socket, address: Any) -> None:
        self.address = address
        self.network = network_of(address[0])
        self.idle = True  # no byte of a request has arrived
        self.taken = False
        self._server = server
        self._socket = client  # not eventlet's, and non-blocking
        self._descriptor = client.fileno()
        self._reader = RequestReader(self._receive, server.max_body_bytes, pause)
        self._is_new = True  # nothing has been read
        self._has_waited = False  # so the hub knows the socket
        self._deadline = 0.0
        self._patience = 0.0  # seconds that we still wait for the client to read the response

    @property
    def stopping(self) -> bool:
        """Whether the current request is this connection's last."""
        return self._server.stopping

    # Bytes ----------------------------------------------------------------------------------------

    def _receive(self) -> bytes:
        """The next bytes from the client, by the deadline. Raises `ClientGone`.

        It waits first, also when bytes have arrived already, which lets other greenlets run: a
        client that always has bytes ready must not block the loop. Only a new connection is asked
        at once: with its request there it does not count as waiting, and is not evicted.
        """
        is_ready, self._is_new = self._is_new, False
        try:
            while is_ready or self._wait(READ, self._deadline):
                is_ready = False
                try:
                    data: bytes = self._socket.recv(RECEIVE_BYTES)
                except BlockingIOError:
                    continue
                if data:
                    return data
                break
        except OSError:  # also when another greenlet has closed it
            pass
        raise ClientGone

    def _wait(self, events: int, deadline: float) -> bool:
        self._has_waited = True
        return wait_until(self._descriptor, events, deadline)

    def send(self, data: bytes) -> None:
        """Raises `ClientGone` when the client does not read it in time."""
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            raise ClientGone from None
        if sent < len(data):
            self._send_slowly(memoryview(data)[sent:])

    def _send_slowly(self, rest: memoryview) -> None:
        """Send what the kernel did not accept, within the time that this response has left."""
        began = time.monotonic()
        self._patience += len(rest) / RESPONSE_BYTES_PER_SECOND
        self._server.waiting.add(self)
        try:
            while rest:
                if not self._wait(WRITE, began + self._patience):
                    raise ClientGone
                with contextlib.suppress(BlockingIOError):  # the wait ended early
                    rest = rest[self._socket.send(rest) :]
        except OSError:
            raise ClientGone from None
        finally:
            self._server.waiting.discard(self)
            self._patience -= time.monotonic() - began

    def take_over(self) -> tuple[_socket.socket, bytes]:
        """Give the socket away, with the bytes that were read beyond the request."""
        self.taken = True
        if self._has_waited:
            eventlet_hub.forget(self._descriptor)
        return self._socket, self._reader.rest()

    def hang_up(self) -> None:
        """Shut the socket down, so that the greenlet that waits for the client wakes and ends."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    # Requests -------------------------------------------------------------------------------------

    def serve(self) -> None:
        """The connection's greenlet."""
        try:
            while self._serve_one():
                if self._reader.has_more:
                    pause()  # its next request is read without a wait
        except ClientGone:
            pass
        except Exception:  # a defect of ours; the other connections go on
            log.exception("A connection failed")
        finally:
            if not self.taken:
                self._socket.close()
            self._server.ended(self)

    def _serve_one(self) -> bool:
        """Serve a request; True if another one may follow."""
        environ = self._server.environ.copy()
        self._patience = RESPONSE_SECONDS
        try:
            self._read_request(environ)
        except BadRequest as error:
            self._refuse(error, error.status)
            return False
        except PayloadTooLarge as error:
            self._refuse(error, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return False
        environ["REMOTE_ADDR"] = self.address[0].removeprefix("::ffff:")
        environ["REMOTE_PORT"] = str(self.address[1])
        environ[TAKE_OVER] = self.take_over
        response = Response(self, environ)
        response.run(self._server.app, environ)
        if self.taken:
            return False
        if response.broken:
            # Closing will send a reset, so that no client takes a part for the whole response.
            linger = struct.pack("ii", 1, 0)
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        elif response.keeps_open:
            return True
        else:
            self._linger()
        return False

    def _read_request(self, environ: Environ) -> None:
        """Wait for the next request and read it whole.

        Raises `ClientGone`, `BadRequest` and `PayloadTooLarge`.
        """
        self._server.waiting.add(self)
        try:
            if not self._reader.has_more:
                if self._server.stopping:
                    raise ClientGone
                self.idle = True
                self._deadline = time.monotonic() + KEEPALIVE_SECONDS
                self._reader.receive()
            self.idle = False
            self._deadline = time.monotonic() + REQUEST_SECONDS
            self._reader.read(environ, self._ask_for_body)
        finally:
            self._server.waiting.discard(self)

    def _ask_for_body(self) -> None:
        self.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _refuse(self, error: DomainError, status: HTTPStatus) -> None:
        body = problems.encode(error, status)
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {problems.CONTENT_TYPE}\r\n"
            f"Content-Length: {len(body)}\r\nDate: {http_date()}\r\nConnection: close\r\n\r\n"
        )
        self.send(head.encode() + body)
        self._linger()

    def _linger(self) -> None:
        """End our side, so that the client gets the response although it may still be sending.

        Closing with unread input would send a reset, which can overtake the response.
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
