"""Changes messages inside a connection: loses, repeats, reorders or invents them.

A filter for `TcpProxy.filter`: it does to a client what a correct server never does. Only WebSocket
text messages from the server are changed; HTTP passes as it is.
"""

from collections.abc import Callable, Iterable

from tests.support.tcp_proxy import Filter

Mangle = Callable[[str], Iterable[str]]

_TEXT = 0x1


def mangling(make: Callable[[], Mangle]) -> Callable[[], Filter]:
    """A filter that passes each text message through *make()*'s function, one per connection.

    The function returns the messages to send in place of the one that it gets.
    """

    def start() -> Filter:
        return _Stream(make()).feed

    return start


def text_frame(text: str) -> bytes:
    """A message as a server sends it: one frame, not masked."""
    data = text.encode()
    size = len(data)
    if size < 126:
        head = bytes([0x80 | _TEXT, size])
    elif size < 1 << 16:
        head = bytes([0x80 | _TEXT, 126]) + size.to_bytes(2, "big")
    else:
        head = bytes([0x80 | _TEXT, 127]) + size.to_bytes(8, "big")
    return head + data


class _Stream:
    """What one server sends on one connection, cut into frames."""

    def __init__(self, mangle: Mangle) -> None:
        self._mangle = mangle
        self._waiting = b""
        self._upgraded: bool | None = None  # None: the answer's head is not complete yet

    def feed(self, data: bytes) -> bytes:
        if self._upgraded is False:
            return data
        self._waiting += data
        out = b""
        if self._upgraded is None:
            head, end, rest = self._waiting.partition(b"\r\n\r\n")
            if not end:
                return b""
            self._upgraded = b" 101 " in head.split(b"\r\n", 1)[0]
            if not self._upgraded:
                return self._waiting
            out, self._waiting = head + end, rest
        while frame := self._next_frame():
            out += frame
        return out

    def _next_frame(self) -> bytes:
        data = self._waiting
        if len(data) < 2:
            return b""
        size, start = data[1] & 0x7F, 2
        if size >= 126:
            start += 2 if size == 126 else 8
            size = int.from_bytes(data[2:start], "big")
        if len(data) < max(start, start + size):
            return b""
        frame, self._waiting = data[: start + size], data[start + size :]
        if frame[0] != 0x80 | _TEXT:
            return frame
        mangled = b"".join(map(text_frame, self._mangle(frame[start:].decode())))
        # An empty result means "no frame yet", so after a dropped message take the next one.
        return mangled or (self._next_frame() if self._waiting else b"")
