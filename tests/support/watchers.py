"""Clients that watch orders on one connection, over Socket.IO and over a plain WebSocket.

The first is the stock Python library, as users have it. Clients that reconnect and resume are in
`tests.faults.watchers`; thousands of connections take `tests.support.bare_client`.
"""

import json
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import socketio
import websocket
from socketio.exceptions import ConnectionError as NotConnected

from tests.support.people import id_of
from tests.support.servers import Server
from tests.support.waiting import eventually

TIMEOUT = 20


class Refused(Exception):
    """The connection was refused: ``problem`` says why, ``status`` is HTTP's, if it was by HTTP."""

    def __init__(self, status: int | None, problem: Any) -> None:
        super().__init__(f"{status} {problem}")
        self.status = status
        self.problem = problem

    @property
    def code(self) -> Any:
        return self.problem["code"]


class SocketIOWatcher:
    """A Socket.IO client. What the server sends is kept in ``updates`` and ``signed_out``."""

    def __init__(
        self,
        server: Server,
        auth: Any,
        *,
        transports: Iterable[str] = ("websocket",),
        headers: dict[str, str] | None = None,
    ) -> None:
        self.updates: list[dict[str, Any]] = []
        self.signed_out: list[dict[str, Any]] = []
        self.closed = threading.Event()
        self._refusal: Any = None
        self._client = socketio.Client(reconnection=False)
        self._client.on("order_update", self.updates.append)
        self._client.on("signed_out", self.signed_out.append)
        self._client.on("disconnect", lambda *_: self.closed.set())
        self._client.on("connect_error", self._refused)
        try:
            self._client.connect(
                server.url,
                auth=auth,
                transports=list(transports),
                headers=headers or {},
                wait_timeout=TIMEOUT,
            )
        except NotConnected as error:
            self._client.disconnect()
            raise Refused(None, self._refusal) from error

    def _refused(self, data: Any) -> None:
        # Stock servers send {"message", "data"}; without data, the message itself.
        self._refusal = data["data"] if isinstance(data, dict) and "data" in data else data

    def call(self, event: str, data: Any = None) -> Any:
        """Emit and wait for the acknowledgement."""
        return self._client.call(event, data, timeout=TIMEOUT)

    def emit(self, event: str, data: Any = None) -> None:
        self._client.emit(event, data)

    def watch(self, order: Any, after: int | None = None) -> dict[str, Any]:
        """Subscribe to one order; its acknowledgement, which must be good."""
        wanted: dict[str, Any] = {"order_id": id_of(order)}
        if after is not None:
            wanted["after"] = after
        answer: dict[str, Any] = self.call("subscribe", wanted)
        assert answer["ok"], answer
        return answer

    def versions(self, order: Any) -> list[int]:
        """The versions of *order* that have come so far."""
        return [one["version"] for one in list(self.updates) if one["order_id"] == id_of(order)]

    def close(self) -> None:
        self._client.disconnect()
        websocket_left_open = getattr(self._client.eio, "ws", None)
        if websocket_left_open is not None:  # as when the server closed first
            websocket_left_open.shutdown()


@contextmanager
def watching(server: Server, token: str | None, **options: Any) -> Iterator[SocketIOWatcher]:
    """A connected Socket.IO client with *token*. Raises `Refused`."""
    watcher = SocketIOWatcher(server, {"token": token}, **options)
    try:
        yield watcher
    finally:
        watcher.close()


class RawWatcher:
    """A plain WebSocket on one order."""

    def __init__(self, connection: websocket.WebSocket) -> None:
        self.connection = connection
        self.close_code: int | None = None

    @property
    def subprotocol(self) -> str | None:
        found: str | None = self.connection.getsubprotocol()
        return found

    def next(self, timeout: float = TIMEOUT) -> dict[str, Any]:
        """The next message, waited for.

        Raises `EOFError` when the server closes instead, and `TimeoutError` when nothing comes.
        """
        self.connection.settimeout(timeout)
        try:
            opcode, data = self.connection.recv_data()
        except websocket.WebSocketTimeoutException as error:
            raise TimeoutError from error
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            self.close_code = int.from_bytes(data[:2], "big") if data else 1005
            raise EOFError(self.close_code)
        assert opcode == websocket.ABNF.OPCODE_TEXT
        message: dict[str, Any] = json.loads(data)
        return message

    def take(self, number: int) -> list[dict[str, Any]]:
        return [self.next() for _ in range(number)]

    def until_closed(self) -> int:
        """Read to the end; the close code."""
        try:
            while True:
                self.next()
        except EOFError:
            assert self.close_code is not None
            return self.close_code


@contextmanager
def raw_watching(
    server: Server | str,
    order: Any,
    token: str | None = None,
    *,
    after: Any = None,
    query: str | None = None,
    headers: dict[str, str] | None = None,
    subprotocols: list[str] | None = None,
    origin: str | None = None,
) -> Iterator[RawWatcher]:
    """A raw socket on *order* of *server*, or of the server behind that ``ws://`` address.

    Raises `Refused` with the HTTP answer's status and problem.
    """
    address = server if isinstance(server, str) else server.ws_url
    if query is None:
        query = "" if after is None else f"?after={after}"
    sent = dict(headers or {})
    if token is not None:
        sent["Authorization"] = f"Bearer {token}"
    try:
        connection = websocket.create_connection(
            f"{address}/ws/orders/{id_of(order)}{query}",
            header=sent,
            subprotocols=subprotocols,
            origin=origin,
            suppress_origin=origin is None,
            timeout=TIMEOUT,
        )
    except websocket.WebSocketBadStatusException as error:
        body = error.resp_body or b""
        problem = json.loads(body) if body[:1] == b"{" else body
        raise Refused(error.status_code, problem) from error
    try:
        yield RawWatcher(connection)
    finally:
        connection.close(timeout=1)
        connection.shutdown()  # which `close` leaves out when the server has closed already


def settled(watcher: SocketIOWatcher, order: Any, last: int) -> list[int]:
    """The versions of *order* that came, once *last* is among them."""
    eventually(lambda: last in watcher.versions(order))
    return watcher.versions(order)
