"""The body of a request, for as long as it has not arrived as a whole."""

import io
import re
from http import HTTPStatus
from typing import Any, Final, Protocol

from werkzeug import exceptions
from werkzeug.exceptions import ClientDisconnected

from ordertrack.serving.head import MAX_HEADERS, MAX_TARGET, BadRequest

# What an application has left unread is read for it up to here, so that the connection can be used
# again; beyond it is cheaper to close.
MAX_DISCARD: Final = 65_536

_CHUNK_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?\r\n")


class Gone(ConnectionError):
    """The client has left, or has kept us waiting for too long."""


class Source(Protocol):
    """The connection that the body comes from."""

    ending: bool

    def read(self, most: int) -> bytes: ...
    def read_line(self, most: int) -> bytes: ...
    def send(self, data: bytes) -> None: ...


class Body(io.RawIOBase):
    """A body that has not arrived as a whole yet. `io.BufferedReader` makes a file of it."""

    def __init__(self, source: Source, length: int | None, *, asked: bool) -> None:
        super().__init__()
        self._source = source
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
            self._source.ending = True
            raise ClientDisconnected from None
        except BadRequest as bad:
            self._source.ending = True
            raise exceptions.BadRequest(bad.detail) from None

    def _read_into(self, buffer: Any) -> int:
        if self._asked:
            self._asked = False
            self._source.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not self.done and self._chunked and not self._left:
            self._next_chunk()
        if self.done:
            return 0
        data = self._source.read(min(self._left, len(buffer)))
        buffer[: len(data)] = data
        self._left -= len(data)
        if not self._left:
            if self._chunked:
                self._expect_line_end()
            else:
                self.done = True
        return len(data)

    def _next_chunk(self) -> None:
        size = _CHUNK_SIZE.fullmatch(self._source.read_line(1024))
        if size is None:
            raise BadRequest(HTTPStatus.BAD_REQUEST, "A chunk has no proper size")
        self._left = int(size[1], 16)
        if not self._left:
            for _ in range(MAX_HEADERS):  # trailers are allowed, and ignored
                if self._source.read_line(MAX_TARGET) == b"\r\n":
                    self.done = True
                    return
            raise BadRequest(HTTPStatus.BAD_REQUEST, "Too many trailers")

    def _expect_line_end(self) -> None:
        if self._source.read_line(2) != b"\r\n":
            raise BadRequest(HTTPStatus.BAD_REQUEST, "A chunk is longer than it said")

    def discard(self) -> bool:
        """Read what the application left; False if that is too much or not worth waiting for."""
        if self._asked or self._source.ending:
            return False
        scratch = bytearray(8192)
        for _ in range(MAX_DISCARD // len(scratch)):
            if self.done:
                return True
            self._read_into(scratch)
        return self.done
