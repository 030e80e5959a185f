"""The smallest Socket.IO client, on asyncio: thousands of connections fit into one thread.

It does no more than the protocol needs, so that a test measures the server and not the patience of
a client library. Users' clients, with the stock library, are in `tests.support.watchers`.
"""

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


def allow_descriptors() -> int:
    """Let this process open as many descriptors as the system permits; how many these are."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class BareClient:
    """One connection. Raises `OSError` or `asyncio.IncompleteReadError` when it breaks.

    on_event  is called with the name and the data of each event; without it, events are kept in
              ``events`` with the moment of their arrival
    """

    def __init__(self, on_event: Callable[[str, Any], None] | None = None) -> None:
        self.events: list[tuple[Any, float]] = []
        self.close_code: int | None = None
        self._on_event = on_event or self._keep
        self._reader: asyncio.StreamReader = None  # type: ignore[assignment]
        self._writer: asyncio.StreamWriter | None = None
        self._number = 0
        self._begun: asyncio.Task[str] | None = None  # a read that `step` did not wait out

    def _keep(self, _name: str, data: Any) -> None:
        self.events.append((data, time.monotonic()))

    async def connect(self, port: int, token: str) -> None:
        """Connect, and wait until the server has accepted the token."""
        await self.ask(port, token)
        await self.expect("40")

    async def ask(self, port: int, token: str, *, source: str = "127.0.0.1") -> None:
        """Open a WebSocket from the local address *source*, and send CONNECT."""
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
        assert self._writer is not None, "connect first"
        payload = text.encode()
        length = len(payload)
        size = bytes([0x80 | length]) if length < 126 else struct.pack("!BH", 0xFE, length)
        self._writer.write(b"\x81" + size + MASK + payload)

    async def expect(self, prefix: str) -> None:
        while (message := await self._receive()) == "2":  # a ping may come before the answer
            self._send("3")
        if not message.startswith(prefix):
            raise ConnectionError(message)

    async def _receive(self) -> str:
        """The next text message. At a close frame raises `ConnectionError` and keeps its code."""
        if self._begun is not None:
            begun, self._begun = self._begun, None
            return await begun
        return await self._read()

    async def _read(self) -> str:
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
        """Emit an event; its acknowledgement, when the events before it are handled."""
        number, self._number = self._number, self._number + 1
        self._send(f"42{number}" + json.dumps([name, data]))
        while True:
            message = await self._receive()
            if message.startswith(f"43{number}["):
                return json.loads(message.removeprefix(f"43{number}"))[0]
            self._handle(message)

    async def step(self, seconds: float) -> None:
        """Handle the next message, unless none comes within that time."""
        if self._begun is None:
            self._begun = asyncio.create_task(self._read())
        # A read that is cancelled in the middle of a frame would lose its first part.
        done, _ = await asyncio.wait({self._begun}, timeout=seconds)
        if done:
            self._handle(await self._receive())

    async def until(self, number: int) -> None:
        """Handle messages until *number* events are kept."""
        while len(self.events) < number:
            self._handle(await self._receive())

    async def listen(self) -> None:
        """Handle messages until the connection ends."""
        try:
            while True:
                self._handle(await self._receive())
        except (OSError, asyncio.IncompleteReadError):
            return

    def _handle(self, message: str) -> None:
        if message.startswith("42"):
            self._on_event(*json.loads(message[2:]))
        elif message == "2":
            self._send("3")

    def read_no_more(self) -> None:
        """Stop reading, as a program that hangs."""
        self._writer.transport.pause_reading()  # type: ignore[union-attr]

    def read_on(self) -> None:
        self._writer.transport.resume_reading()  # type: ignore[union-attr]

    def close(self) -> None:
        if self._begun is not None:
            self._begun.cancel()
        if self._writer is not None:
            self._writer.transport.abort()


async def all_of(
    clients: list[BareClient], action: Callable[[BareClient], Awaitable[Any]]
) -> list[Any]:
    """Do *action* with every client at once; the results. Raises the first failure."""
    return await asyncio.gather(*(action(client) for client in clients))
