"""One client's requests, one after the other."""

import contextlib
import io
import json
import logging
import socket
import time
from http import HTTPStatus
from typing import Any, Final, Protocol

from ordertrack.realtime.transport import TAKE_OVER
from ordertrack.serving.answer import Answer, Wsgi, http_date
from ordertrack.serving.body import Body, Gone
from ordertrack.serving.head import MAX_HEAD, BadRequest, Environ, parse_head

log = logging.getLogger(__name__)

# How long a connection may idle between two requests.
KEEPALIVE_SECONDS: Final = 75.0

# How long a client may take to send a whole request, and to take the next piece of an answer. A
# greenlet waits meanwhile, and nothing else, so this need not be short; it only has to end.
REQUEST_SECONDS: Final = 30.0


class Host(Protocol):
    """The server, as far as its connections know it."""

    app: Wsgi
    environ: Environ
    stopping: bool
    idle: set["Connection"]


class Connection:
    """One client's requests, one after the other."""

    __slots__ = ("_buffer", "_deadline", "_server", "_socket", "address", "ending", "taken")

    def __init__(self, server: Host, client: Any, address: Any) -> None:
        self.address = address
        self._server = server
        self._socket = client
        self._buffer = b""
        self._deadline = 0.0
        self.taken = False
        self.ending = False

    @property
    def stopping(self) -> bool:
        """Whether the request at hand is this connection's last."""
        return self.ending or self._server.stopping

    # Bytes ----------------------------------------------------------------------------------------

    def _receive(self) -> None:
        """Wait for more bytes, until the deadline."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise Gone
        self._socket.settimeout(left)
        try:
            data = self._socket.recv(65_536)
        except OSError:  # a timeout is one, too
            raise Gone from None
        if not data:
            raise Gone
        self._buffer = self._buffer + data if self._buffer else data

    def read(self, most: int) -> bytes:
        """Between one and `most` bytes. Raises `Gone`."""
        if not self._buffer:
            self._receive()
        data, self._buffer = self._buffer[:most], self._buffer[most:]
        return data

    def read_line(self, most: int) -> bytes:
        """A line with its CRLF. Raises `Gone`, or `BadRequest` if it is longer than `most`."""
        while True:
            end = self._buffer.find(b"\n") + 1
            if end > most or (not end and len(self._buffer) >= most):
                raise BadRequest(HTTPStatus.BAD_REQUEST, "A line is too long")
            if end:
                line, self._buffer = self._buffer[:end], self._buffer[end:]
                return line
            self._receive()

    def send(self, data: bytes) -> None:
        """Raises `Gone` when the client does not take it."""
        self._socket.settimeout(REQUEST_SECONDS)
        try:
            self._socket.sendall(data)
        except OSError:
            raise Gone from None

    def take_over(self) -> tuple[Any, bytes]:
        """Give the socket away, with what has been read from it beyond the request."""
        self.taken = True
        return self._socket.fd, self._buffer

    def hang_up(self) -> None:
        """Wake the greenlet that waits for a next request, and let it end."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    # Requests -------------------------------------------------------------------------------------

    def serve(self) -> None:
        """The connection's greenlet."""
        try:
            while self._serve_one():
                pass
        except Gone:
            pass
        except Exception:  # ours to mend, and no reason to take anybody else down
            log.exception("A connection failed")
        finally:
            if not self.taken:
                self._socket.close()

    def _serve_one(self) -> bool:
        """Serve a request; whether there may be another one."""
        try:
            head = self._read_head()
        except BadRequest as bad:
            self._refuse(bad)
            return False
        environ = self._server.environ.copy()
        try:
            parse_head(head, environ)
            environ["REMOTE_ADDR"] = self.address[0].removeprefix("::ffff:")
            environ["REMOTE_PORT"] = str(self.address[1])
            environ[TAKE_OVER] = self.take_over
            body = self._body(environ)
            answer = Answer(self, environ)
            answer.run(self._server.app, environ)
            if self.taken:
                return False
        except BadRequest as bad:
            self._refuse(bad)
            return False
        try:
            if answer.keeps_open and (body is None or body.done or body.discard()):
                return True
        except BadRequest:
            pass  # an answer has been given
        self._linger()
        return False

    def _read_head(self) -> str:
        """Wait for the whole head of the next request."""
        if not self._buffer:
            if self._server.stopping:
                raise Gone
            self._server.idle.add(self)
            self._deadline = time.monotonic() + KEEPALIVE_SECONDS
            try:
                self._receive()
            finally:
                self._server.idle.discard(self)
        self._deadline = time.monotonic() + REQUEST_SECONDS
        while True:
            if self._buffer.startswith(b"\r\n"):  # as some clients send after a body
                self._buffer = self._buffer[2:]
            end = self._buffer.find(b"\r\n\r\n")
            if end >= 0:
                break
            if len(self._buffer) > MAX_HEAD:
                raise BadRequest(
                    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "The request's head is too large"
                )
            self._receive()
        if end > MAX_HEAD:
            raise BadRequest(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "The request's head is too large"
            )
        head = self._buffer[:end].decode("latin-1")
        self._buffer = self._buffer[end + 4 :]
        return head

    def _body(self, environ: Environ) -> Body | None:
        """Put the body into `environ`; None when it is there as a whole already."""
        chunked = "HTTP_TRANSFER_ENCODING" in environ
        length = int(environ.get("CONTENT_LENGTH") or 0)
        if not chunked and len(self._buffer) >= length:
            environ["wsgi.input"] = io.BytesIO(self._buffer[:length])
            self._buffer = self._buffer[length:]
            return None
        body = Body(self, None if chunked else length, asked="HTTP_EXPECT" in environ)
        environ["wsgi.input"] = io.BufferedReader(body)
        return body

    def _refuse(self, bad: BadRequest) -> None:
        status = bad.status
        problem = {
            "type": "about:blank",
            "title": status.phrase,
            "status": status.value,
            "detail": bad.detail,
            "code": "malformed_request",
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
        self._deadline = time.monotonic() + 1.0
        for _ in range(64):
            self._buffer = b""
            self._receive()
