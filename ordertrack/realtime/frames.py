"""RFC 6455 frames as pure data: what goes on the wire and what comes off it, without any I/O.

A server's frames are not masked, so a frame is a header before the payload and can be built once
for any number of recipients. A client's frames arrive in arbitrary pieces: `Parser` takes bytes as
they come and answers whole messages and control frames, within limits that hold whatever is sent.
Extensions (compression above all) are never negotiated, so reserved bits are an error.
"""

from typing import Final

CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

_FIN: Final = 0x80
_RESERVED: Final = 0x70
_CONTROL: Final = 0x8
_MASKED: Final = 0x80
_KNOWN: Final = frozenset({CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG})

Event = tuple[int, bytes]


def encode(opcode: int, payload: bytes) -> bytes:
    """One whole, final, unmasked frame."""
    size = len(payload)
    if size < 126:
        header = bytes((_FIN | opcode, size))
    elif size < 65_536:
        header = bytes((_FIN | opcode, 126)) + size.to_bytes(2, "big")
    else:
        header = bytes((_FIN | opcode, 127)) + size.to_bytes(8, "big")
    return header + payload


def text_frame(payload: str | bytes) -> bytes:
    """A text message; bytes must already be UTF-8."""
    return encode(TEXT, payload.encode() if isinstance(payload, str) else payload)


def binary_frame(payload: bytes) -> bytes:
    return encode(BINARY, payload)


def close_frame(code: int, reason: str = "") -> bytes:
    """The reason is cut so that the control frame keeps within its 125 bytes."""
    text = reason.encode()[:123].decode("utf-8", "ignore").encode()
    return encode(CLOSE, code.to_bytes(2, "big") + text)


def read_close(payload: bytes) -> tuple[int, str]:
    """Code and reason of a received close frame; 1005 stands for none.

    Raises `ProtocolError` for a payload that no peer may send.
    """
    if not payload:
        return 1005, ""
    code = int.from_bytes(payload[:2], "big")
    if len(payload) < 2 or not (1000 <= code <= 1014 or 3000 <= code <= 4999):
        raise ProtocolError(1002, "bad close code")
    if code in (1004, 1005, 1006):
        raise ProtocolError(1002, "reserved close code")
    try:
        return code, payload[2:].decode()
    except UnicodeDecodeError:
        raise ProtocolError(1007, "close reason is not UTF-8") from None


class ProtocolError(Exception):
    """What the peer sent cannot be accepted; `code` is the close code that says why."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Parser:
    """Takes a client's bytes in any pieces, answers its messages and control frames.

    Keeps at most one incomplete frame and one incomplete message, together never more than twice
    `limit` bytes: a frame that would make its message longer is refused by its header alone.
    """

    __slots__ = ("_buffer", "_message", "_need", "_opcode", "error", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.error: ProtocolError | None = None
        self._buffer: bytearray | None = None  # the beginning of a frame
        self._need = 0  # what it takes before looking at the buffer again is worth while
        self._message: bytearray | None = None  # fragments so far
        self._opcode = 0  # of that message

    def feed(self, data: bytes) -> list[Event]:
        """The events that `data` completes, as (opcode, unmasked payload), in order.

        A fragment that completes nothing is answered as (CONTINUATION, b""), so that a caller can
        count what it costs. After a violation `error` is set and nothing more must be fed.
        """
        events: list[Event] = []
        if self._buffer is not None:
            self._buffer += data
            if len(self._buffer) < self._need:
                return events
            data = bytes(self._buffer)
            self._buffer = None
        try:
            at = self._parse(data, events)
        except ProtocolError as error:
            self.error = error
            self._message = None
            return events
        if at < len(data):
            self._buffer = bytearray(data[at:])
        return events

    def _parse(self, data: bytes, events: list[Event]) -> int:
        """Take whole frames off the front of `data`; answer where the rest begins."""
        at, end = 0, len(data)
        while end - at >= 2:
            first, length = data[at], data[at + 1] & 0x7F
            if not data[at + 1] & _MASKED:
                raise ProtocolError(1002, "client frames must be masked")
            start = at + 6
            if length >= 126:
                width = 2 if length == 126 else 8
                start += width
                if end < start:
                    self._need = start - at
                    return at
                length = int.from_bytes(data[at + 2 : at + 2 + width], "big")
            self._check(first, length)
            if end < start + length:
                self._need = start + length - at
                return at
            payload = _unmask(data[start - 4 : start], data[start : start + length])
            at = start + length
            events.append(self._complete(first, payload))
        self._need = 2
        return at

    def _check(self, first: int, length: int) -> None:
        opcode = first & 0x0F
        if first & _RESERVED or opcode not in _KNOWN:
            raise ProtocolError(1002, "reserved bits or opcode")
        if opcode & _CONTROL:
            if length > 125 or not first & _FIN:
                raise ProtocolError(1002, "control frames are short and whole")
            return
        if (opcode == CONTINUATION) != (self._message is not None):
            raise ProtocolError(1002, "fragments out of order")
        if length + len(self._message or b"") > self.limit:
            raise ProtocolError(1009, f"messages are limited to {self.limit} bytes")

    def _complete(self, first: int, payload: bytes) -> Event:
        opcode = first & 0x0F
        if opcode & _CONTROL:
            return opcode, payload
        if first & _FIN:
            if self._message is None:
                return opcode, payload
            payload = bytes(self._message + payload)
            self._message = None
            return self._opcode, payload
        if self._message is None:
            self._message, self._opcode = bytearray(), opcode
        self._message += payload
        return CONTINUATION, b""


def _unmask(mask: bytes, payload: bytes) -> bytes:
    """XOR as one big integer: a loop over bytes in Python costs fifty times as much."""
    size = len(payload)
    key = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(key, "little")).to_bytes(
        size, "little"
    )
