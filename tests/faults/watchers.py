"""Watchers that write down what they receive: one thread each, over Socket.IO or a raw WebSocket.

They come back by themselves, with the versions that they have seen, and check nothing: that is the
history check's part. The Socket.IO here is as little as the protocol needs, so that what is tested
is the server and not a client library's patience.
"""

import contextlib
import json
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import websocket

from tests.faults.history import Event, Leg

# A server that is gone is a reset or an end of file, and one without its database says so. Silence
# for so long is a finding.
ANSWER_SECONDS = 20.0

Address = Callable[[], str]  # where to connect now, such as ws://127.0.0.1:8080


class SocketIO:
    """One Socket.IO connection over a WebSocket.

    Raises `ConnectionError` when refused, and what `websocket` raises when the connection breaks.
    """

    def __init__(
        self, url: str, token: str, on_event: Callable[[str, Any], None] = lambda _name, _data: None
    ) -> None:
        self._on_event = on_event
        self._acks: dict[int, Any] = {}
        self._number = 0
        self._ws = websocket.create_connection(
            f"{url}/socket.io/?EIO=4&transport=websocket",
            timeout=ANSWER_SECONDS,
            suppress_origin=True,
        )
        try:
            self._expect("0")
            self._ws.send("40" + json.dumps({"token": token}))
            self._expect("40")
        except BaseException:
            self._ws.close()
            raise

    def _expect(self, prefix: str) -> None:
        message = self._receive()
        if not message.startswith(prefix):
            raise ConnectionError(f"expected {prefix}, got {message!r}")

    def _receive(self) -> str:
        message = self._ws.recv()
        if not message:
            raise websocket.WebSocketConnectionClosedException("closed")
        return message if isinstance(message, str) else message.decode()

    def step(self, timeout: float) -> bool:
        """Handle one message; False when none came within *timeout*."""
        self._ws.settimeout(timeout)
        try:
            message = self._receive()
        except websocket.WebSocketTimeoutException:
            return False
        if message.startswith("42"):
            name, data = json.loads(message[2:])
            self._on_event(name, data)
        elif message.startswith("43"):
            number, bracket, rest = message[2:].partition("[")
            self._acks[int(number)] = json.loads(bracket + rest)[0]
        elif message == "2":
            self._ws.send("3")
        elif message.startswith("41"):
            raise ConnectionError("disconnected by the server")
        return True

    def call(self, name: str, data: Any, timeout: float = ANSWER_SECONDS) -> Any:
        """Emit an event and answer its acknowledgement; events that come first are handled."""
        number, self._number = self._number, self._number + 1
        self._ws.send(f"42{number}" + json.dumps([name, data]))
        deadline = time.monotonic() + timeout
        while number not in self._acks:
            if not self.step(max(0.01, deadline - time.monotonic())):
                raise TimeoutError(f"no acknowledgement of {name}")
        return self._acks.pop(number)

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._ws.close(timeout=1)


class Watcher(threading.Thread):
    """Watches until it is stopped. `legs` is what it received; `faults` what it cannot explain."""

    def __init__(self, name: str, address: Address, token: str) -> None:
        super().__init__(name=name, daemon=True)
        self.address = address
        self.token = token
        self.legs: list[Leg] = []
        self.faults: list[str] = []
        self.connections = 0
        self.seen: dict[str, int] = {}  # by order; 0: wanted, and nothing seen yet
        self._current: dict[str, Leg] = {}
        self._stopping = threading.Event()

    def stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.watch()
            except (TimeoutError, websocket.WebSocketTimeoutException) as error:
                self.faults.append(f"{self.name} was not answered: {error!r}")
            except (OSError, websocket.WebSocketException):
                self._stopping.wait(random.uniform(0.02, 0.1))
            except Exception as error:  # noqa: BLE001 (is a finding, and must not end the watch)
                self.faults.append(f"{self.name}: {error!r}")
                self._stopping.wait(0.1)

    def watch(self) -> None:
        """Connect, and receive until the connection breaks or `stop`."""
        raise NotImplementedError

    def reached(self, versions: dict[str, int]) -> bool:
        """Whether it has seen *versions*, as far as it watches those orders."""
        return all(seen >= versions.get(order, 0) for order, seen in list(self.seen.items()))

    def complete(self) -> list[Leg]:
        """All legs; those that it was still watching at the end must reach the trail's end."""
        for leg in self._current.values():
            leg.complete = True
        return self.legs

    def begin(self, order_id: str, after: int | None) -> Leg:
        leg = self._current[order_id] = Leg(self.name, order_id, after)
        self.legs.append(leg)
        return leg

    def take(self, event: Event) -> None:
        order_id = event["order_id"]
        self._current[order_id].events.append(event)
        self.seen[order_id] = event["version"]


def _refusal(problem: dict[str, Any]) -> Exception:
    """What passes by itself breaks the connection off; anything else is a finding."""
    if problem["code"] in ("unavailable", "too_many_requests"):
        return ConnectionError(problem["detail"])
    return AssertionError(f"refused: {problem}")


class SocketIOWatcher(Watcher):
    """Watches any number of orders in one subscription."""

    def __init__(self, name: str, address: Address, token: str) -> None:
        super().__init__(name, address, token)
        self._wanted: list[str] = []
        self._subscribed: set[str] = set()

    def want(self, order_id: str) -> None:
        """Watch this order too, from its first event on."""
        self._wanted.append(order_id)

    def watch(self) -> None:
        self._subscribed = set()
        connection = SocketIO(self.address(), self.token, self._on_event)
        self.connections += 1
        try:
            while not self._stopping.is_set():
                wanted = [one for one in list(self._wanted) if one not in self._subscribed]
                if wanted:
                    self._subscribe(connection, wanted[:200])
                connection.step(0.1)
        finally:
            connection.close()

    def _subscribe(self, connection: SocketIO, orders: list[str]) -> None:
        asked = [{"order_id": one, "after": self.seen.setdefault(one, 0)} for one in orders]
        answer = connection.call("subscribe", {"orders": asked})
        if not answer["ok"]:
            raise _refusal(answer["error"])
        for one, result in zip(asked, answer["results"], strict=True):
            order_id = one["order_id"]
            if not result["ok"]:
                raise _refusal(result["error"])
            if result.get("reset"):
                self.begin(order_id, result["version"])
                self.seen[order_id] = result["version"]
            else:
                self.begin(order_id, one["after"])
                for event in result["events"]:
                    self.take(event)
            if self.seen[order_id] != result["version"]:
                self.faults.append(f"{self.name}: {result['version']} acknowledged in {result}")
            self._subscribed.add(order_id)

    def _on_event(self, name: str, data: Any) -> None:
        if name != "order_update" or data["order_id"] not in self._subscribed:
            self.faults.append(f"{self.name}: unexpected {name} {data}")
        else:
            self.take(data)


class FeedWatcher(Watcher):
    """Watches everything. A feed replays nothing, so each connection is a history of its own."""

    def watch(self) -> None:
        self._current = {}
        self.seen = {}
        connection = SocketIO(self.address(), self.token, self._on_event)
        self.connections += 1
        try:
            answer = connection.call("subscribe", {"feed": "orders"})
            if not answer["ok"]:
                raise _refusal(answer["error"])
            while not self._stopping.is_set():
                connection.step(0.1)
        finally:
            connection.close()

    def _on_event(self, name: str, data: Any) -> None:
        if name != "order_update":
            self.faults.append(f"{self.name}: unexpected {name} {data}")
            return
        if data["order_id"] not in self._current:
            self.begin(data["order_id"], None)
        self.take(data)


class RawWatcher(Watcher):
    """Watches one order after the other over a raw WebSocket; `pick` names the next."""

    def __init__(
        self, name: str, address: Address, token: str, pick: Callable[[], str | None]
    ) -> None:
        super().__init__(name, address, token)
        self._pick = pick
        self._order: str | None = None

    def watch(self) -> None:
        if self._order is None:
            self._order = self._pick()
        if self._order is None:
            self._stopping.wait(0.05)
            return
        after = self.seen.setdefault(self._order, 0)
        try:
            ws = websocket.create_connection(
                f"{self.address()}/ws/orders/{self._order}?after={after}",
                header=[f"Authorization: Bearer {self.token}"],
                timeout=ANSWER_SECONDS,
                suppress_origin=True,
            )
        except websocket.WebSocketBadStatusException as refused:
            if refused.status_code != 503:
                self.faults.append(f"{self.name}: {refused}")
            raise
        self.connections += 1
        self.begin(self._order, after)
        ws.settimeout(0.1)
        try:
            while not self._stopping.is_set():
                try:
                    message = ws.recv()
                except websocket.WebSocketTimeoutException:
                    continue
                if not message:
                    return
                event = json.loads(message)
                self.take(event)
                if event["status"] in ("Completed", "Cancelled"):
                    self._order = None
                    return
        finally:
            with contextlib.suppress(Exception):
                ws.close(timeout=1)
