"""Requests, read out of a stream of bytes: each one whole, before anybody acts on it."""

import io
import itertools
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from ordertrack.server.http_request import (
    MAX_HEAD,
    MAX_HEADERS,
    BadRequest,
    Environ,
    malformed,
    parse_head,
    parse_trailer,
)

# The line before a chunk: its size, and extensions, which nobody sends.
MAX_CHUNK_LINE: Final = 256

# All lines behind a chunked body together.
MAX_TRAILERS: Final = 8_192

# Chunks read before the others get their turn: a byte each is allowed, and thousands may be there.
CHUNKS_IN_A_ROW: Final = 64

_CHUNK_LINE: Final = re.compile(
    rb"""([0-9A-Fa-f]{1,8})
    (?:;[!#$%&'*+.^_`|~0-9A-Za-z-]+
        (?:=(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+|"(?:[\t !\x23-\x5b\x5d-\x7e]|\\[\t -~])*"))?
    )*\r\n""",
    re.VERBOSE,
)


class RequestReader:
    """Reads requests out of the bytes that *receive* answers, which waits for them.

    What *receive* raises at the end of the stream comes out of `read`. *max_body* is the largest
    body that is taken, in bytes. *pause* is called in work that may take long.
    """

    __slots__ = ("_buffer", "_max_body", "_pause", "_receive")

    def __init__(
        self, receive: Callable[[], bytes], max_body: int, pause: Callable[[], None]
    ) -> None:
        self._receive = receive
        self._max_body = max_body
        self._pause = pause
        self._buffer = bytearray()

    @property
    def has_more(self) -> bool:
        """Whether something of a next request has arrived."""
        return bool(self._buffer)

    def receive(self) -> None:
        """Wait for more bytes."""
        self._buffer += self._receive()

    def rest(self) -> bytes:
        """What has arrived beyond the last request."""
        return bytes(self._buffer)

    def read(self, environ: Environ, go_on: Callable[[], None]) -> None:
        """Put the next request into `environ`; its body, of any coding, as ``wsgi.input``.

        *go_on* is called when the client wants to be told before it sends the body. Raises
        `BadRequest`.
        """
        parse_head(self._read_head(), environ)
        length = int(environ.get("CONTENT_LENGTH") or 0)
        if length > self._max_body:
            raise self._too_large()
        chunked = "HTTP_TRANSFER_ENCODING" in environ
        if "HTTP_EXPECT" in environ and (chunked or length > len(self._buffer)):
            go_on()
        if chunked:
            body = self._read_chunks()
            # For who asks how long it is: it has a length now, and chunks no more.
            environ["CONTENT_LENGTH"] = str(len(body))
            del environ["HTTP_TRANSFER_ENCODING"]
        else:
            body = self._take(length)
        environ["wsgi.input"] = io.BytesIO(body)

    def _read_head(self) -> str:
        buffer = self._buffer
        searched = 0
        skipped = False
        while True:
            if not skipped and buffer.startswith(b"\r\n"):
                del buffer[:2]  # RFC 9112, 2.2: some clients send one after a body
                skipped = True
            end = buffer.find(b"\r\n\r\n", searched)
            if end > MAX_HEAD or (end < 0 and len(buffer) > MAX_HEAD):
                raise BadRequest(
                    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "The request's head is too large"
                )
            if end >= 0:
                break
            if b"\n\n" in buffer:
                raise malformed("Lines must end with CRLF")  # else both would wait for the other
            searched = max(0, len(buffer) - 3)
            self.receive()
        head = buffer[:end].decode("latin-1")
        del buffer[: end + 4]
        return head

    def _read_chunks(self) -> bytes:
        body = bytearray()
        for number in itertools.count(1):
            if number % CHUNKS_IN_A_ROW == 0:
                self._pause()
            line = _CHUNK_LINE.fullmatch(self._read_line(MAX_CHUNK_LINE))
            if line is None:
                raise malformed("A chunk has no proper size")
            size = int(line[1], 16)
            if not size:
                self._skip_trailers()
                break
            if len(body) + size > self._max_body:
                raise self._too_large()
            body += self._take(size)
            if self._take(2) != b"\r\n":
                raise malformed("A chunk is longer than it said")
        return bytes(body)

    def _skip_trailers(self) -> None:
        left = MAX_TRAILERS
        for _ in range(MAX_HEADERS):
            line = self._read_line(left)
            if line == b"\r\n":
                return
            parse_trailer(line)
            left -= len(line)
        raise malformed("Too many trailers")

    def _read_line(self, most: int) -> bytes:
        """A line with its LF. Raises `BadRequest` if it is longer than `most`."""
        while True:
            end = self._buffer.find(b"\n", 0, most) + 1
            if end:
                return self._take(end)
            if len(self._buffer) >= most:
                raise malformed("A line is too long")
            self.receive()

    def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self.receive()
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    def _too_large(self) -> BadRequest:
        return BadRequest(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"The request body is too large: at most {self._max_body} bytes are taken.",
        )
