"""Reads requests from a stream of bytes (RFC 9112), each one whole before it is handled."""

import io
import itertools
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from ordertrack.errors import PayloadTooLarge
from ordertrack.server.http_request import (
    MAX_HEAD,
    MAX_HEADERS,
    BadRequest,
    Environ,
    parse_head,
    parse_trailer,
)

# Bytes of the line before a chunk: its size, and extensions, which clients hardly ever send.
MAX_CHUNK_LINE: Final = 256

# Bytes of all lines after a chunked body.
MAX_TRAILERS: Final = 8_192

# Chunks read before other greenlets run: a chunk may be one byte, and thousands may have arrived.
CHUNKS_IN_A_ROW: Final = 64

_CHUNK_LINE: Final = re.compile(
    rb"""([0-9A-Fa-f]{1,8})
    (?:;[!#$%&'*+.^_`|~0-9A-Za-z-]+
        (?:=(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+|"(?:[\t !\x23-\x5b\x5d-\x7e]|\\[\t -~])*"))?
    )*\r\n""",
    re.VERBOSE,
)


class RequestReader:
    """Reads requests from the bytes that *receive* waits for and returns.

    `read` lets through what *receive* raises at the end of the stream. *max_body* bounds a body, in
    bytes. *pause* is called in work that may take long, to let other greenlets run.
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
        """Whether bytes beyond the last request have arrived."""
        return bool(self._buffer)

    def receive(self) -> None:
        """Wait for more bytes."""
        self._buffer += self._receive()

    def rest(self) -> bytes:
        """The bytes that have arrived beyond the last request."""
        return bytes(self._buffer)

    def read(self, environ: Environ, go_on: Callable[[], None]) -> None:
        """Put the next request into `environ`, its decoded body as ``wsgi.input``.

        *go_on* is called when the client waits for "100 Continue" before it sends the body. Raises
        `BadRequest`, and `PayloadTooLarge` for the body.
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
            # The application sees a body that is no longer chunked.
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
                    "The request's head is too large", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
                )
            if end >= 0:
                break
            if b"\n\n" in buffer:
                raise BadRequest("Lines must end with CRLF")  # else both sides would wait
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
                raise BadRequest("The size of a chunk is invalid")
            size = int(line[1], 16)
            if not size:
                self._skip_trailers()
                break
            if len(body) + size > self._max_body:
                raise self._too_large()
            body += self._take(size)
            if self._take(2) != b"\r\n":
                raise BadRequest("A chunk is longer than its size")
        return bytes(body)

    def _skip_trailers(self) -> None:
        left = MAX_TRAILERS
        for _ in range(MAX_HEADERS):
            line = self._read_line(left)
            if line == b"\r\n":
                return
            parse_trailer(line)
            left -= len(line)
        raise BadRequest("Too many trailers")

    def _read_line(self, most: int) -> bytes:
        """A line with its LF. Raises `BadRequest` if it is longer than `most`."""
        while True:
            end = self._buffer.find(b"\n", 0, most) + 1
            if end:
                return self._take(end)
            if len(self._buffer) >= most:
                raise BadRequest("A line is too long")
            self.receive()

    def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self.receive()
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    def _too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(
            f"The request body is too large: at most {self._max_body} bytes are accepted."
        )
