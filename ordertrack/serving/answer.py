"""What the application answers: WSGI on one side, bytes of HTTP/1.1 on the other."""

import logging
import time
from collections.abc import Callable, Iterable
from email.utils import formatdate
from functools import lru_cache
from typing import Any, Final, Protocol

from ordertrack.serving.body import Gone
from ordertrack.serving.head import Environ

log = logging.getLogger(__name__)

# Small pieces are gathered up to this size before they are sent.
SEND_BYTES: Final = 16_384

Wsgi = Callable[..., Iterable[bytes]]


class Client(Protocol):
    """The connection that the answer goes to."""

    taken: bool

    @property
    def stopping(self) -> bool: ...
    def send(self, data: bytes) -> None: ...


def http_date() -> str:
    return _date_of(int(time.time()))


@lru_cache(maxsize=1)
def _date_of(second: int) -> str:
    return formatdate(second, usegmt=True)


class Answer:
    """What the application answers to one request."""

    __slots__ = (
        "_bodyless",
        "_chunked",
        "_connection",
        "_headers",
        "_is_old",
        "_left",
        "_sent",
        "_status",
        "keeps_open",
    )

    def __init__(self, connection: Client, environ: Environ) -> None:
        self._connection = connection
        self._status: str | None = None
        self._headers: list[tuple[str, str]] = []
        self._sent = False
        self._chunked = False
        self._bodyless = environ["REQUEST_METHOD"] == "HEAD"
        self._left: int | None = None  # of the length that the application has promised
        self._is_old = environ["SERVER_PROTOCOL"] == "HTTP/1.0"
        asked = environ.get("HTTP_CONNECTION", "").lower()
        self.keeps_open = "keep-alive" in asked if self._is_old else "close" not in asked

    def run(self, app: Wsgi, environ: Environ) -> None:
        """Call the application and send what it answers, unless it takes the connection over."""
        result: Iterable[bytes] = ()
        try:
            result = app(environ, self.start_response)
            if not self._connection.taken:
                self._send_result(result)
        except Gone:
            raise
        except Exception:
            log.exception("The application failed")
            self.keeps_open = False
            if not self._sent:
                self._apologise()
        finally:
            close = getattr(result, "close", None)
            if close is not None:
                close()

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        if exc_info is not None and self._sent:
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
        self._finish(gathered[0] if len(gathered) == 1 else b"".join(gathered))

    def _apologise(self) -> None:
        body = (
            b'{"type":"about:blank","title":"Internal Server Error","status":500,'
            b'"detail":"Something went wrong here","code":"internal_error"}'
        )
        self._status = "500 Internal Server Error"
        self._headers = [("Content-Type", "application/problem+json")]
        self._left = None
        self._finish(body)

    def _write(self, data: bytes) -> None:
        """Send a piece of the body, and the head before the first."""
        head = b"" if self._sent else self._make_head(None)
        self._connection.send(head + self._encode(data))

    def _finish(self, data: bytes) -> None:
        """Send the last piece."""
        head = b"" if self._sent else self._make_head(len(data))
        end = b"0\r\n\r\n" if self._chunked else b""
        rest = head + self._encode(data) + end
        if rest:
            self._connection.send(rest)
        if self._left and not self._bodyless:
            log.error("The application has sent %d bytes less than it said", self._left)
            self.keeps_open = False

    def _encode(self, data: bytes) -> bytes:
        if self._bodyless or not data:
            return b""
        if self._left is not None:
            if len(data) > self._left:
                raise ValueError("The application sends more than it said")
            self._left -= len(data)
        return b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data

    def _make_head(self, length: int | None) -> bytes:
        """The answer's head. `length` is the body's, if it is known."""
        if self._status is None:
            raise RuntimeError("The application has not called start_response")
        lines = [f"HTTP/1.1 {self._status}"]
        given = {}
        for name, value in self._headers:
            lines.append(f"{name}: {value}")
            given[name.lower()] = value
        if "date" not in given:
            lines.append(f"Date: {http_date()}")
        self._frame_body(given.get("content-length"), length, lines)
        if not self.keeps_open or self._connection.stopping:
            self.keeps_open = False
            lines.append("Connection: close")
        elif self._is_old:
            lines.append("Connection: keep-alive")
        lines.append("\r\n")
        head = "\r\n".join(lines)
        if head.count("\n") != len(lines) or head.count("\r") != len(lines):
            raise ValueError("A header of the answer holds a line end")
        encoded = head.encode("latin-1")
        self._sent = True
        return encoded

    def _frame_body(self, promised: str | None, length: int | None, lines: list[str]) -> None:
        """Settle how the client learns where the body ends."""
        assert self._status is not None
        if self._status[:1] == "1" or self._status[:3] in ("204", "304"):
            self._bodyless = True
        if promised is not None:
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
