"""The HTTP server: WSGI on eventlet's sockets, strict about what it reads, orderly in how it ends.

A greenlet serves one connection: it reads a request's head, calls the application, writes the
answer, and goes on with the next request, unless the application has taken the connection over for
a WebSocket (`transport.TAKE_OVER` in the environ), which ends the greenlet and frees all it had.

Why not eventlet.wsgi: its header parser (the standard library's, for e-mail), buffers and response
closures cost more than everything else on the way to a handshake; it stops serving for good when
descriptors run out; it accepts what proxies in front may read differently. The numbers are in
docs/adr/012-http-server.md.

What is refused, always with the connection closed afterwards: a head that is too large (431), a
target that is too long (414), and (400) header lines that are folded, have blanks around the name
or control characters anywhere; line ends that are not CRLF; a missing or second Host; a second
Content-Length or one that is not a number; Content-Length together with Transfer-Encoding. Those
are what request smuggling is made of.
"""

import contextlib
import errno
import gc
import io
import json
import logging
import os
import re
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import unquote

import eventlet
import eventlet.green.socket
from eventlet.hubs import trampoline
from werkzeug import exceptions
from werkzeug.exceptions import ClientDisconnected

from ordertrack.realtime.transport import TAKE_OVER

log = logging.getLogger(__name__)

# Connections that the kernel accepts while we are busy: a thousand clients may come back at once.
BACKLOG: Final = 4096

# Descriptors for everything that is not a client: database, log files, the embedded PostgreSQL.
SPARE_DESCRIPTORS: Final = 100

# How long a connection may idle between two requests.
KEEPALIVE_SECONDS: Final = 75.0

# How long a client may take to send a whole request, and to take the next piece of an answer. A
# greenlet waits meanwhile, and nothing else, so this need not be short; it only has to end.
REQUEST_SECONDS: Final = 30.0

# A request's head: browsers send about 1 KiB, tokens and cookies another two.
MAX_HEAD: Final = 32_768
MAX_TARGET: Final = 8_192
MAX_HEADERS: Final = 100

# What an application has left unread of a body is read for it up to here, so that the connection
# can be used again; beyond it is cheaper to close.
MAX_DISCARD: Final = 65_536

# Small pieces of an answer are gathered up to this size before they are sent.
SEND_BYTES: Final = 16_384

Wsgi = Callable[..., Iterable[bytes]]
Environ = dict[str, Any]

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_ONLY_ONCE: Final = frozenset(
    {"HTTP_HOST", "CONTENT_LENGTH", "CONTENT_TYPE", "HTTP_TRANSFER_ENCODING", "HTTP_AUTHORIZATION"}
)
_CHUNK_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?\r\n")


class BadRequest(ValueError):
    """A request that the application never sees."""

    def __init__(self, status: HTTPStatus, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


class Gone(ConnectionError):
    """The client has left, or has kept us waiting for too long."""


# The head of a request ------------------------------------------------------------------------


# Header names as they come → as WSGI calls them; None for those that are ignored. Only names that
# were checked are in it, so that a known name costs one look-up. Clients could fill it with names
# of their own making, so it stops growing.
_names: dict[str, str | None] = {}
_MAX_NAMES: Final = 1000


def _environ_name(name: str) -> str | None:
    if _TOKEN.fullmatch(name) is None:
        raise BadRequest(HTTPStatus.BAD_REQUEST, "A header line has no proper name")
    if "_" in name:
        known = None  # would be mistaken for the same name with "-", which proxies may filter
    else:
        known = name.upper().replace("-", "_")
        if known not in ("CONTENT_LENGTH", "CONTENT_TYPE"):
            known = f"HTTP_{known}"
    if len(_names) < _MAX_NAMES:
        _names[name] = known
    return known


def parse_head(head: str, environ: Environ) -> None:
    """Add a request's head (without the empty line at its end) to `environ`.

    Raises `BadRequest` for everything that is not exactly HTTP/1.0 or 1.1.
    """
    lines = head.split("\r\n")
    if len(lines) - 1 != head.count("\n") or len(lines) - 1 != head.count("\r"):
        raise BadRequest(HTTPStatus.BAD_REQUEST, "Lines must end with CRLF")
    if _CONTROL.search(head) is not None:
        raise BadRequest(HTTPStatus.BAD_REQUEST, "Control characters are not allowed")
    if len(lines) > MAX_HEADERS + 1:
        raise BadRequest(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "Too many header lines")
    _parse_request_line(lines[0], environ)
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon:
            raise BadRequest(HTTPStatus.BAD_REQUEST, "A header line has no colon")
        known = _names.get(name, "")
        if known == "":
            known = _environ_name(name)
        if known is None:
            continue
        value = value.strip(" \t")
        if known not in environ:
            environ[known] = value
        elif known in _ONLY_ONCE:
            raise BadRequest(HTTPStatus.BAD_REQUEST, f"{name} may be given once")
        else:
            environ[known] += ("; " if known == "HTTP_COOKIE" else ",") + value
    _check_framing(environ)


def _parse_request_line(line: str, environ: Environ) -> None:
    parts = line.split(" ")
    if len(parts) != 3 or _TOKEN.fullmatch(parts[0]) is None:
        raise BadRequest(HTTPStatus.BAD_REQUEST, "The request line is malformed")
    method, target, version = parts
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        raise BadRequest(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "HTTP/1.0 and 1.1 are spoken here")
    if len(target) > MAX_TARGET:
        raise BadRequest(HTTPStatus.REQUEST_URI_TOO_LONG, "The address is too long")
    if target[:7].lower() == "http://":
        target = "/" + target[7:].partition("/")[2]  # as if it came through a proxy
    if not target.isascii() or not (target.startswith("/") or target == "*"):
        raise BadRequest(HTTPStatus.BAD_REQUEST, "The address is malformed")
    path, _, query = target.partition("?")
    environ["REQUEST_METHOD"] = method
    environ["SERVER_PROTOCOL"] = version
    environ["RAW_URI"] = target
    environ["PATH_INFO"] = unquote(path, "latin-1") if "%" in path else path
    environ["QUERY_STRING"] = query


def _check_framing(environ: Environ) -> None:
    """That there is one way only to tell where the body ends."""
    is_old = environ["SERVER_PROTOCOL"] == "HTTP/1.0"
    if not is_old and "HTTP_HOST" not in environ:
        raise BadRequest(HTTPStatus.BAD_REQUEST, "Host is missing")
    length = environ.get("CONTENT_LENGTH")
    if length is not None and not (length.isascii() and length.isdigit() and len(length) < 16):
        raise BadRequest(HTTPStatus.BAD_REQUEST, "Content-Length is not a number")
    encoding = environ.get("HTTP_TRANSFER_ENCODING")
    if encoding is not None:
        if length is not None or is_old:
            raise BadRequest(HTTPStatus.BAD_REQUEST, "The body's length is ambiguous")
        if encoding.lower() != "chunked":
            raise BadRequest(HTTPStatus.NOT_IMPLEMENTED, "Only chunked transfer is spoken here")
    if environ.get("HTTP_EXPECT", "100-continue").lower() != "100-continue":
        raise BadRequest(HTTPStatus.EXPECTATION_FAILED, "Only 100-continue can be expected")


# The body of a request ------------------------------------------------------------------------


class _Body(io.RawIOBase):
    """A body that has not arrived as a whole yet. `io.BufferedReader` makes a file of it."""

    def __init__(self, connection: "_Connection", length: int | None, *, asked: bool) -> None:
        super().__init__()
        self._connection = connection
        self._chunked = length is None
        self._left = length or 0  # of the body, or of the chunk
        self._asked = asked  # the client waits for 100 Continue
        self.done = length == 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Raises what Flask answers with 400: the fault is the client's."""
        try:
            return self._read_into(buffer)
        except Gone:
            self._connection.ending = True
            raise ClientDisconnected from None
        except BadRequest as bad:
            self._connection.ending = True
            raise exceptions.BadRequest(bad.detail) from None

    def _read_into(self, buffer: Any) -> int:
        if self._asked:
            self._asked = False
            self._connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not self.done and self._chunked and not self._left:
            self._next_chunk()
        if self.done:
            return 0
        data = self._connection.read(min(self._left, len(buffer)))
        buffer[: len(data)] = data
        self._left -= len(data)
        if not self._left:
            if self._chunked:
                self._expect_line_end()
            else:
                self.done = True
        return len(data)

    def _next_chunk(self) -> None:
        size = _CHUNK_SIZE.fullmatch(self._connection.read_line(1024))
        if size is None:
            raise BadRequest(HTTPStatus.BAD_REQUEST, "A chunk has no proper size")
        self._left = int(size[1], 16)
        if not self._left:
            for _ in range(MAX_HEADERS):  # trailers are allowed, and ignored
                if self._connection.read_line(MAX_TARGET) == b"\r\n":
                    self.done = True
                    return
            raise BadRequest(HTTPStatus.BAD_REQUEST, "Too many trailers")

    def _expect_line_end(self) -> None:
        if self._connection.read_line(2) != b"\r\n":
            raise BadRequest(HTTPStatus.BAD_REQUEST, "A chunk is longer than it said")

    def discard(self) -> bool:
        """Read what the application left; False if that is too much or not worth waiting for."""
        if self._asked or self._connection.ending:
            return False
        scratch = bytearray(8192)
        for _ in range(MAX_DISCARD // len(scratch)):
            if self.done:
                return True
            self._read_into(scratch)
        return self.done


# The connection -------------------------------------------------------------------------------


class _Connection:
    """One client's requests, one after the other."""

    __slots__ = ("_buffer", "_deadline", "_server", "_socket", "address", "ending", "taken")

    def __init__(self, server: "Server", client: Any, address: Any) -> None:
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
            answer = _Answer(self, environ)
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

    def _body(self, environ: Environ) -> _Body | None:
        """Put the body into `environ`; None when it is there as a whole already."""
        chunked = "HTTP_TRANSFER_ENCODING" in environ
        length = int(environ.get("CONTENT_LENGTH") or 0)
        if not chunked and len(self._buffer) >= length:
            environ["wsgi.input"] = io.BytesIO(self._buffer[:length])
            self._buffer = self._buffer[length:]
            return None
        body = _Body(self, None if chunked else length, asked="HTTP_EXPECT" in environ)
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
            f"Content-Length: {len(body)}\r\nDate: {_http_date()}\r\nConnection: close\r\n\r\n"
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


def _http_date() -> str:
    return _date_of(int(time.time()))


@lru_cache(maxsize=1)
def _date_of(second: int) -> str:
    return formatdate(second, usegmt=True)


class _Answer:
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

    def __init__(self, connection: "_Connection", environ: Environ) -> None:
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
            lines.append(f"Date: {_http_date()}")
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


# The server -----------------------------------------------------------------------------------


def raise_descriptor_limit() -> int:
    """Allow this process as many descriptors as the system lets it; answers how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (ValueError, OSError) as error:
            log.warning("File descriptors stay limited to %d: %s", soft, error)
    log.info("Up to %d file descriptors may be open", soft)
    return soft


def listen(host: str, port: int, *, reuse_port: bool = False) -> list[Any]:
    """Listening sockets on every address that `host` stands for (localhost: IPv4 and IPv6).

    With port 0, all listen on the same free port. Raises `OSError` when none could be opened.
    """
    listening: list[Any] = []
    failure: OSError | None = None
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, kind, protocol, _, address in dict.fromkeys(found):
        opened = eventlet.green.socket.socket(family, kind, protocol)
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6 and len(found) > 1:
                opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # Accepted sockets inherit it: small frames must not wait for the peer's ACK.
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            same_port = listening[0].getsockname()[1] if listening else address[1]
            opened.bind((address[0], same_port, *address[2:]))
            opened.listen(BACKLOG)
        except OSError as error:
            opened.close()
            failure = failure or error
        else:
            listening.append(opened)
    if not listening:
        raise failure or OSError(f"{host} has no address")
    return listening


class Server:
    """A WSGI application on listening sockets, from `start` to `stop`."""

    def __init__(self, app: Wsgi, listening: list[Any], *, descriptors: int = 1024) -> None:
        self.app = app
        self.stopping = False
        self.idle: set[_Connection] = set()  # those that wait for a next request
        name, port = listening[0].getsockname()[:2]
        self.environ: Environ = {
            "SCRIPT_NAME": "",
            "SERVER_NAME": name,
            "SERVER_PORT": str(port),
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
            "wsgi.input_terminated": True,
        }
        self._listening = listening
        self._pool = eventlet.GreenPool(max(1, descriptors - SPARE_DESCRIPTORS))
        self._accepting: list[Any] = []

    @property
    def port(self) -> int:
        return int(self.environ["SERVER_PORT"])

    def start(self) -> None:
        """Begin to accept; returns at once."""
        self._accepting = [eventlet.spawn(self._accept, opened) for opened in self._listening]

    def _accept(self, opened: Any) -> None:
        accepted = 0
        while True:
            try:
                client, address = opened.accept()
            except OSError as error:
                if error.errno in (errno.EBADF, errno.EINVAL):
                    return  # closed, by `stop`
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    log.warning("Cannot accept more connections now: %s", error.strerror)
                    eventlet.sleep(0.5)
                continue  # else it was the client that failed
            self._pool.spawn_n(_Connection(self, client, address).serve)
            accepted += 1
            if accepted % 64 == 0:  # a storm of connections leaves the others their turn
                eventlet.sleep(0)

    def stop(self) -> None:
        """Close the listening sockets and idle connections; requests in flight go on.

        Their answers say that the connection is closed afterwards.
        """
        self.stopping = True
        for accepting in self._accepting:
            accepting.kill()
        for opened in self._listening:
            opened.close()
        for connection in list(self.idle):
            connection.hang_up()

    def finish(self, seconds: float) -> bool:
        """Wait until every request in flight has been answered; False if some were not in time."""
        with eventlet.Timeout(seconds, False):
            self._pool.waitall()
        return not self._pool.running()


class Stopping:
    """The order to stop: from SIGTERM, SIGINT, or a part of the process that cannot go on.

    A signal's handler runs between two instructions of whatever runs then, so it only takes a note;
    the interpreter itself writes a byte to a pipe that the event loop watches, which wakes it.
    """

    def __init__(self) -> None:
        self.failed = False
        self._reason: str | None = None
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._reading, False)
        os.set_blocking(self._writing, False)

    def catch_signals(self) -> None:
        signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: object) -> None:
        self._reason = self._reason or signal.Signals(number).name

    def fail(self, reason: str) -> None:
        """Stop, and let the process end with an error: better gone than half there."""
        self.failed = True
        self._reason = self._reason or reason
        os.write(self._writing, b"!")

    def wait(self) -> str:
        """Wait for the order; answers why it was given."""
        while self._reason is None:
            trampoline(self._reading, read=True)
            os.read(self._reading, 64)
        return self._reason


def serve(
    app: Wsgi,
    *,
    host: str,
    port: int,
    drain_seconds: float = 8.0,
    reuse_port: bool = False,
    stopping: Stopping | None = None,
    ready: Callable[[int], object] = lambda _port: None,
    drain: Callable[[float], object] = lambda _seconds: None,
) -> None:
    """Serve until SIGTERM, SIGINT or `stopping.fail`, then end in order within `drain_seconds`.

    `ready` is told the port once connections are accepted. At the end nothing new is accepted,
    `drain` is called with the seconds over which it may spread the closing of live connections, and
    requests in flight are finished. Raises `SystemExit` with 1 after `stopping.fail`.
    """
    descriptors = raise_descriptor_limit()
    server = Server(app, listen(host, port, reuse_port=reuse_port), descriptors=descriptors)
    stopping = stopping or Stopping()
    stopping.catch_signals()
    # What was made so far stays for good: the collector need not look at it again, which would stop
    # every socket for some 60 ms each time.
    gc.collect()
    gc.freeze()
    server.start()
    ready(server.port)
    reason = stopping.wait()
    log.info("%s: stopping within %g seconds", reason, drain_seconds)
    began = time.monotonic()
    server.stop()
    # Half of the time to tell the sockets, so that the last of them can still say goodbye.
    draining = eventlet.spawn(drain, drain_seconds / 2)
    in_time = server.finish(drain_seconds)
    with eventlet.Timeout(max(0.0, began + drain_seconds - time.monotonic()), False):
        draining.wait()
    log.info("Stopped" if in_time else "Stopped with requests in flight")
    if stopping.failed:
        raise SystemExit(1)
