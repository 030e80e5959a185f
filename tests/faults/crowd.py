"""Very many Socket.IO clients in one thread: as little of a client as can be, on asyncio."""

import asyncio
import base64
import json
import os
import resource
import struct
import time
from collections.abc import Awaitable, Callable
from typing import Any

MASK = b"\0\0\0\0"  # allowed, and the payload stays as it is


def allow_descriptors() -> None:
    """As many as the system lets this process have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Client:
    """One connection. Raises `OSError` or `asyncio.IncompleteReadError` when it breaks."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, float]] = []  # with the moment when it came
        self.close_code: int | None = None
        self._reader: asyncio.StreamReader = None  # type: ignore[assignment]
        self._writer: asyncio.StreamWriter = None  # type: ignore[assignment]
        self._number = 0

    async def connect(self, port: int, token: str) -> None:
        """Connect, and wait until the server has let it in."""
        await self.ask(port, token)
        await self.expect("40")

    async def ask(self, port: int, token: str, *, source: str = "127.0.0.1") -> None:
        """As far as sending CONNECT; *source* is the address that it comes from, one of ours."""
        self._reader, self._writer = await asyncio.open_connection(
            "127.0.0.1", port, local_addr=(source, 0)
        )
        key = base64.b64encode(os.urandom(16)).decode()
        self._writer.write(
            f"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        head = await self._reader.readuntil(b"\r\n\r\n")
        if b" 101 " not in head.split(b"\r\n", 1)[0]:
            raise ConnectionError(head.decode())
        await self.expect("0")
        self._send("40" + json.dumps({"token": token}))

    def _send(self, text: str) -> None:
        payload = text.encode()
        length = len(payload)
        size = bytes([0x80 | length]) if length < 126 else struct.pack("!BH", 0xFE, length)
        self._writer.write(b"\x81" + size + MASK + payload)

    async def expect(self, prefix: str) -> None:
        while (message := await self.receive()) == "2":  # the answer may take longer than that
            self._send("3")
        if not message.startswith(prefix):
            raise ConnectionError(message)

    async def receive(self) -> str:
        """The next text message. At a close frame raises `ConnectionError` and keeps its code."""
        while True:
            first, second = await self._reader.readexactly(2)
            length = second & 0x7F
            if length == 126:
                (length,) = struct.unpack("!H", await self._reader.readexactly(2))
            elif length == 127:
                (length,) = struct.unpack("!Q", await self._reader.readexactly(8))
            payload = await self._reader.readexactly(length)
            if first & 0x0F == 1:
                return payload.decode()
            if first & 0x0F == 8:
                self.close_code = struct.unpack("!H", payload[:2])[0] if payload else 1005
                raise ConnectionError(f"closed with {self.close_code}")

    async def call(self, name: str, data: Any) -> Any:
        """Emit an event and answer its acknowledgement."""
        number, self._number = self._number, self._number + 1
        self._send(f"42{number}" + json.dumps([name, data]))
        while True:
            message = await self.receive()
            if message.startswith(f"43{number}["):
                return json.loads(message.removeprefix(f"43{number}"))[0]
            self._handle(message)

    async def listen(self) -> None:
        """Note events until the connection ends."""
        try:
            while True:
                self._handle(await self.receive())
        except (OSError, asyncio.IncompleteReadError):
            return

    def _handle(self, message: str) -> None:
        if message.startswith("42"):
            self.events.append((json.loads(message[2:])[1], time.monotonic()))
        elif message == "2":
            self._send("3")

    def read_no_more(self) -> None:
        """Stop reading, as a program that hangs."""
        self._writer.transport.pause_reading()  # type: ignore[attr-defined]

    def read_on(self) -> None:
        self._writer.transport.resume_reading()  # type: ignore[attr-defined]

    def close(self) -> None:
        self._writer.transport.abort()


async def all_of(clients: list[Client], action: Callable[[Client], Awaitable[Any]]) -> list[Any]:
    """Do *action* with every client at once; the results. Raises the first failure."""
    return await asyncio.gather(*(action(client) for client in clients))
