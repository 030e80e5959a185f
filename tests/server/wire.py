"""A raw WebSocket client: it can send bytes that no library would send, and stop reading."""

import contextlib
import json
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10

DEADLINE = 10.0


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, masked: bool = True, rsv: int = 0
) -> bytes:
    """A client's frame, valid or not."""
    first = (0x80 if fin else 0) | rsv | opcode
    bit = 0x80 if masked else 0
    size = len(payload)
    if size < 126:
        header = bytes((first, bit | size))
    elif size < 65536:
        header = bytes((first, bit | 126)) + struct.pack(">H", size)
    else:
        header = bytes((first, bit | 127)) + struct.pack(">Q", size)
    if not masked:
        return header + payload
    mask = os.urandom(4)
    return header + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))


def handshake(path: str, port: int, *, omit: str = "", **changes: str) -> bytes:
    """A valid opening request, with header lines left out (`omit`) or replaced."""
    headers = {
        "Host": f"localhost:{port}",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    headers |= {name.replace("_", "-"): value for name, value in changes.items()}
    lines = [f"{name}: {value}" for name, value in headers.items() if name != omit]
    return "\r\n".join([f"GET {path} HTTP/1.1", *lines, "", ""]).encode()


class Peer:
    """One connection, after a successful handshake unless told otherwise."""

    def __init__(
        self,
        port: int,
        path: str = "/ws",
        *,
        receive_buffer: int | None = None,
        early: bytes = b"",
        opening: bytes | None = None,
    ) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:  # before connecting, so that the window is small
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(DEADLINE)
        self.socket.connect(("127.0.0.1", port))
        self._buffer = b""
        try:
            self.send(handshake(path, port) if opening is None else opening, early)
            self.status, self.headers, self.body = self._read_answer()
        except BaseException:
            self.close()
            raise

    def send(self, *parts: bytes) -> None:
        self.socket.sendall(b"".join(parts))

    def text(self, text: str) -> None:
        self.send(frame(TEXT, text.encode()))

    def _more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionResetError("closed")
        self._buffer += data

    def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._more()
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    def _read_answer(self) -> tuple[int, dict[str, str], Any]:
        while b"\r\n\r\n" not in self._buffer:
            self._more()
        head, self._buffer = self._buffer.split(b"\r\n\r\n", 1)
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        body = self._take(int(headers.get("content-length", "0")))
        is_json = "json" in headers.get("content-type", "")
        return int(first.split()[1]), headers, json.loads(body) if is_json else body

    def read(self) -> tuple[int, bytes]:
        """The next frame, as (opcode, payload). Frames of a server are whole and not masked."""
        first, second = self._take(2)
        assert first & 0xF0 == 0x80, "neither fragments nor extensions are ours"
        assert not second & 0x80, "a server does not mask"
        size = second
        if second == 126:
            (size,) = struct.unpack(">H", self._take(2))
        elif second == 127:
            (size,) = struct.unpack(">Q", self._take(8))
        return first & 0x0F, self._take(size)

    def read_text(self) -> str:
        opcode, payload = self.read()
        assert opcode == TEXT, (opcode, payload)
        return payload.decode()

    def read_close(self) -> int:
        """Skip to the close frame; its code."""
        while True:
            opcode, payload = self.read()
            if opcode == CLOSE:
                return int(struct.unpack(">H", payload[:2])[0]) if payload else 1005

    def at_end(self) -> bool:
        """Whether the server closes the connection, rather than sending more."""
        try:
            return self.socket.recv(65536) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.socket.close()


@contextlib.contextmanager
def peer(port: int, path: str = "/ws", **options: Any) -> Iterator[Peer]:
    made = Peer(port, path, **options)
    try:
        yield made
    finally:
        made.close()
