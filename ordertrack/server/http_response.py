"""Sends the response of a WSGI application (PEP 3333) as HTTP/1.1 (RFC 9112)."""

import logging
import time
from collections.abc import Callable, Iterable
from email.utils import formatdate
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final
from wsgiref.types import WSGIApplication

from ordertrack import problems
from ordertrack.errors import DomainError
from ordertrack.server.http_request import Environ
from ordertrack.server.loop import pause

if TYPE_CHECKING:
    from ordertrack.server.http_connection import Connection

log = logging.getLogger(__name__)

# Small pieces are gathered up to this size before they are sent.
SEND_BYTES: Final = 16_384

_ONLY_ONCE: Final = frozenset({"connection", "content-length"})


class ClientGone(ConnectionError):
    """The client has closed the connection, or has let it time out."""


def http_date() -> str:
    return _date_of(int(time.time()))


@lru_cache(maxsize=1)
def _date_of(second: int) -> str:
    return formatdate(second, usegmt=True)


def keeps_open(environ: Environ) -> bool:
    """Whether the client of this request lets another one follow (RFC 9112, 9.3)."""
    asked = _tokens(environ.get("HTTP_CONNECTION", ""))
    if environ["SERVER_PROTOCOL"] == "HTTP/1.0":
        return "keep-alive" in asked and "close" not in asked
    return "close" not in asked


class Response:
    """The response to one request.

    keeps_open      another request may follow on the connection
    broken          only a part of it could be sent, and the client must notice
    """

    def __init__(self, connection: "Connection", environ: Environ) -> None:
        self._connection = connection
        self._status: str | None = None
        self._headers: list[tuple[str, str]] = []
        self._sent = False
        self._chunked = False
        self._is_head = environ["REQUEST_METHOD"] == "HEAD"
        self._bodyless = False
        self._left: int | None = None  # bytes of Content-Length still to come
        self._is_old = environ["SERVER_PROTOCOL"] == "HTTP/1.0"
        self.keeps_open = keeps_open(environ)
        self.broken = False

    def run(self, app: WSGIApplication, environ: Environ) -> None:
        """Call the application and send its response, unless it takes the connection over."""
        result: Iterable[bytes] = ()
        try:
            result = app(environ, self.start_response)
            if not self._connection.taken:
                self._send_result(result)
        except ClientGone:
            raise
        except Exception:
            log.exception("The application failed")
            self.keeps_open = False
            if self._sent:
                self.broken = True
            elif not self._connection.taken:
                self._send_internal_error()
        finally:
            close = getattr(result, "close", None)
            if close is not None:
                close()

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        if exc_info is None:
            if self._status is not None:
                raise RuntimeError("The application has called start_response twice")
        elif self._sent:
            raise exc_info[1].with_traceback(exc_info[2])
        self._status, self._headers = status, headers
        return self._write

    def _send_result(self, result: Iterable[bytes]) -> None:
        gathered: list[bytes] = []
        size = 0
        for data in result:
            gathered.append(data)
            size += len(data)
            if size >= SEND_BYTES:
                self._write(b"".join(gathered))
                gathered.clear()
                size = 0
                pause()  # a client that reads fast must not block the loop
        self._finish(gathered[0] if len(gathered) == 1 else b"".join(gathered))

    def _send_internal_error(self) -> None:
        error = DomainError("Something went wrong on our side. It has been logged.")
        self._status = "500 Internal Server Error"
        self._headers = problems.headers(error)
        self._finish(problems.encode(error))

    def _write(self, data: bytes) -> None:
        """Send a piece of the body, and the head before the first."""
        head = b"" if self._sent else self._make_head(None)
        piece = head + self._encode(data)
        self._sent = True
        self._connection.send(piece)

    def _finish(self, data: bytes) -> None:
        """Send the last piece."""
        head = b"" if self._sent else self._make_head(len(data))
        end = b"0\r\n\r\n" if self._chunked else b""
        rest = head + self._encode(data) + end
        self._sent = True
        if rest:
            self._connection.send(rest)
        if self._left and not self._bodyless:
            log.error("The response ended %d bytes before its Content-Length", self._left)
            self.broken = True

    def _encode(self, data: bytes) -> bytes:
        if self._bodyless or not data:
            return b""
        if self._left is not None:
            if len(data) > self._left:
                raise ValueError("The response is longer than its Content-Length")
            self._left -= len(data)
        return b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data

    def _make_head(self, length: int | None) -> bytes:
        """The response's head. `length` is the body's, if it is known."""
        if self._status is None:
            raise RuntimeError("The application has not called start_response")
        lines = [f"HTTP/1.1 {self._status}"]
        given: dict[str, str] = {}
        for name, value in self._headers:
            key = name.lower()
            if (key in given and key in _ONLY_ONCE) or key == "transfer-encoding":
                raise ValueError(f"The application must not send this {name} header")
            given[key] = value
            if key != "connection":
                lines.append(f"{name}: {value}")
        if "date" not in given:
            lines.append(f"Date: {http_date()}")
        self._frame_body(given.get("content-length"), length, lines)
        self._decide_connection(given.get("connection"), lines)
        lines.append("\r\n")
        head = "\r\n".join(lines)
        if head.count("\n") != len(lines) or head.count("\r") != len(lines):
            raise ValueError("A header of the response contains a line end")
        return head.encode("latin-1")

    def _frame_body(self, promised: str | None, length: int | None, lines: list[str]) -> None:
        """Decide how the client learns where the body ends (RFC 9112, 6.3)."""
        assert self._status is not None
        # From the start: an earlier head may have failed before it was sent.
        self._chunked = False
        self._left = None
        self._bodyless = (
            self._is_head or self._status[:1] == "1" or self._status[:3] in ("204", "304")
        )
        if promised is not None:
            if not promised.isdecimal():
                raise ValueError("The application's Content-Length is not a number")
            self._left = int(promised)
        elif self._bodyless:
            pass
        elif length is not None:
            lines.append(f"Content-Length: {length}")
        elif self._is_old:
            self.keeps_open = False
        else:
            self._chunked = True
            lines.append("Transfer-Encoding: chunked")

    def _decide_connection(self, given: str | None, lines: list[str]) -> None:
        """Say whether the connection stays open; keep the application's other options."""
        options = _tokens(given or "")
        if "close" in options or self._connection.stopping:
            self.keeps_open = False
        options -= {"close", "keep-alive"}
        if not self.keeps_open:
            options.add("close")
        elif self._is_old:
            options.add("keep-alive")
        if options:
            lines.append(f"Connection: {', '.join(sorted(options))}")


def _tokens(header: str) -> set[str]:
    """The members of a list such as Connection's, in lower case."""
    return {token.strip() for token in header.lower().split(",") if token} if header else set()
