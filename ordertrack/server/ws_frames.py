"""Encodes and parses WebSocket frames (RFC 6455, 5), without any I/O.

A server's frames are not masked (5.1), so one is encoded once for any number of recipients. A
client's frames arrive in arbitrary pieces: `Parser` is fed bytes and returns whole messages and
control frames, within limits that hold whatever is sent. Extensions such as compression are never
negotiated (9.1), so reserved bits are an error.
"""

import codecs
from enum import IntEnum
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

Received = tuple[int, str | bytes]  # opcode and payload


class CloseCode(IntEnum):
    """Why a connection ends, as its close frame says (RFC 6455, 7.4.1, and IANA's registry).

    A client should reconnect after GOING_AWAY, INTERNAL_ERROR, SERVICE_RESTART and TRY_AGAIN_LATER.
    NO_STATUS and ABNORMAL stand for a close frame without a code and for a missing close frame:
    they are never sent.
    """

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    NO_STATUS = 1005
    ABNORMAL = 1006
    INVALID_DATA = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013


def encode(opcode: int, payload: bytes) -> bytes:
    """One final, unmasked frame (5.2)."""
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
    """A close frame (RFC 6455, 5.5.1); with NO_STATUS its payload is empty.

    The reason is cut so that the control frame keeps within its 125 bytes.
    """
    if code == CloseCode.NO_STATUS:
        return encode(CLOSE, b"")
    text = reason.encode()[:123].decode("utf-8", "ignore").encode()
    return encode(CLOSE, code.to_bytes(2, "big") + text)


def read_close(payload: bytes) -> tuple[int, str]:
    """Code and reason of a received close frame (7.1.5, 7.4); NO_STATUS stands for none.

    Raises `ProtocolError` for a payload that a peer must not send.
    """
    if not payload:
        return CloseCode.NO_STATUS, ""
    code = int.from_bytes(payload[:2], "big")
    if len(payload) < 2 or not (1000 <= code <= 1014 or 3000 <= code <= 4999):
        raise ProtocolError("bad close code")
    if code in (1004, CloseCode.NO_STATUS, CloseCode.ABNORMAL):
        raise ProtocolError("reserved close code")
    try:
        return code, payload[2:].decode()
    except UnicodeDecodeError:
        raise ProtocolError("close reason is not UTF-8", CloseCode.INVALID_DATA) from None


class ProtocolError(Exception):
    """What the peer sent cannot be accepted; `code` is the close code that says why."""

    def __init__(self, reason: str, code: int = CloseCode.PROTOCOL_ERROR) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Parser:
    """Parses a client's bytes, fed in any pieces, into messages and control frames, one by one.

    Bytes are parsed only by `next`, so the caller decides after each frame whether it wants
    another. Besides what was not asked for yet, the parser keeps at most one incomplete frame and
    one incomplete message, together never more than twice `limit` bytes: a frame that would make
    its message longer is refused as soon as its header is complete.
    """

    __slots__ = ("_at", "_data", "_decoder", "_message", "_need", "_opcode", "error", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.error: ProtocolError | None = None
        self._data: bytes | bytearray = b""  # fed; not parsed from `_at` on
        self._at = 0
        self._need = 2  # bytes needed before parsing is tried again
        self._message: bytearray | None = None  # the fragments so far
        self._opcode = 0  # of that message
        self._decoder: codecs.IncrementalDecoder | None = None  # of that message, if it is text

    @property
    def held(self) -> int:
        """Bytes that the parser keeps."""
        return len(self._data) - self._at + len(self._message or b"")

    def feed(self, data: bytes) -> None:
        """Add bytes that the client sent; after a violation they are ignored."""
        if self.error is not None:
            return
        if self._at == len(self._data):
            self._data = data
        elif isinstance(self._data, bytearray):
            del self._data[: self._at]
            self._data += data
        else:
            self._data = bytearray(memoryview(self._data)[self._at :]) + data
        self._at = 0

    def next(self) -> Received | None:
        """The next message or control frame, as (opcode, payload); None when none is complete.

        The payload of TEXT is a string, of all else bytes. A fragment that completes no message is
        (CONTINUATION, b""), so that the caller can count what it costs. After a violation of the
        protocol the result is None and `error` is set.
        """
        if self.error is not None or len(self._data) - self._at < self._need:
            return None
        try:
            return self._parse()
        except ProtocolError as error:
            self.error = error
        except UnicodeDecodeError:
            self.error = ProtocolError("text is not UTF-8", CloseCode.INVALID_DATA)
        self._data, self._at, self._message, self._decoder = b"", 0, None, None
        return None

    def _parse(self) -> Received | None:
        """Remove one frame from the front of the data (5.2); None when it is not complete."""
        data, at = self._data, self._at
        first, length = data[at], data[at + 1] & 0x7F
        self._check_opcode(first, length)
        if not data[at + 1] & _MASKED:
            raise ProtocolError("client frames must be masked")  # 5.1
        start = at + 6
        if length >= 126:
            width = 2 if length == 126 else 8
            if len(data) < at + 2 + width:
                self._need = 2 + width
                return None
            start += width
            length = int.from_bytes(data[at + 2 : at + 2 + width], "big")
            if length < (126 if width == 2 else 65_536) or length >> 63:
                raise ProtocolError("a length must be in its shortest form")
        if not first & _CONTROL and length + len(self._message or b"") > self.limit:
            raise ProtocolError(
                f"messages are limited to {self.limit} bytes", CloseCode.MESSAGE_TOO_BIG
            )
        end = start + length
        if len(data) < end:
            self._need = end - at
            return None
        payload = _unmask(bytes(data[start - 4 : start]), bytes(data[start:end]))
        self._need = 2
        if end == len(data):
            self._data, self._at = b"", 0
        else:
            self._at = end
        return self._complete(first, payload)

    def _check_opcode(self, first: int, length: int) -> None:
        """`length` is the one in the frame's second byte, as a control frame's always is (5.5)."""
        opcode = first & 0x0F
        if first & _RESERVED or opcode not in _KNOWN:
            raise ProtocolError("reserved bits or opcode")
        if opcode & _CONTROL:
            if length > 125 or not first & _FIN:
                raise ProtocolError("a control frame is too long or fragmented")
        elif (opcode == CONTINUATION) != (self._message is not None):
            raise ProtocolError("fragments out of order")

    def _complete(self, first: int, payload: bytes) -> Received:
        opcode, final = first & 0x0F, bool(first & _FIN)
        if opcode & _CONTROL:
            return opcode, payload
        if self._message is None:
            if final:
                return opcode, payload.decode() if opcode == TEXT else payload
            self._message, self._opcode = bytearray(), opcode
            self._decoder = _utf8() if opcode == TEXT else None
        if self._decoder is not None:
            self._decoder.decode(payload, final)  # fails at the first invalid fragment (8.1)
        self._message += payload
        if not final:
            return CONTINUATION, b""
        whole = self._message.decode() if self._decoder is not None else bytes(self._message)
        self._message = self._decoder = None
        return self._opcode, whole


_utf8 = codecs.getincrementaldecoder("utf-8")


def _unmask(mask: bytes, payload: bytes) -> bytes:
    """XOR with the mask (5.3), as one big integer: a loop over bytes takes fifty times as long."""
    size = len(payload)
    key = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(key, "little")).to_bytes(
        size, "little"
    )
