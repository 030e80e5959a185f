"""Watchers that reconnect, resume by version and keep what they receive: one thread each.

They check nothing: the history check does. They are built from the two test clients that make one
connection, `BareClient` for Socket.IO and `raw_watching` for raw WebSockets.
"""

import asyncio
import random
import threading
from collections.abc import Callable
from typing import Any

import websocket

from tests.faults.history import Event, Leg
from tests.support.bare_client import BareClient
from tests.support.watchers import RawWatcher, Refused, raw_watching

# A server that is gone is a reset or an end of file, and one without its database answers with an
# error. Silence for so long is a finding.
ANSWER_SECONDS = 20.0

Port = Callable[[], int]  # where to connect now


class ResumingWatcher(threading.Thread):
    """Watches until it is stopped, and comes back whenever its connection breaks.

    legs      what it received
    faults    what must not happen, in sentences
    seen      the last version of each order; 0 for one of which it has no event yet
    """

    def __init__(self, name: str, port: Port, token: str) -> None:
        super().__init__(name=name, daemon=True)
        self.port = port
        self.token = token
        self.legs: list[Leg] = []
        self.faults: list[str] = []
        self.connections = 0
        self.seen: dict[str, int] = {}
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
            except (OSError, EOFError, websocket.WebSocketException):
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
    """A refusal that passes by itself breaks the connection; any other one is a finding."""
    if problem["code"] in ("unavailable", "too_many_requests"):
        return ConnectionError(problem["detail"])
    return AssertionError(f"refused: {problem}")


class _SocketIOWatcher(ResumingWatcher):
    """Watches over Socket.IO."""

    def watch(self) -> None:
        asyncio.run(self._watch())

    async def _watch(self) -> None:
        self.start_over()
        client = BareClient(self._on_event)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await client.connect(self.port(), self.token)
            self.connections += 1
            while not self._stopping.is_set():
                await self.subscribe(client)
                await client.step(0.1)
        finally:
            client.close()

    def start_over(self) -> None:
        """Forget what only the last connection had."""
        raise NotImplementedError

    async def subscribe(self, client: BareClient) -> None:
        """Subscribe to what is not yet subscribed to on this connection."""
        raise NotImplementedError

    async def ask(self, client: BareClient, wanted: Any) -> Any:
        """Subscribe to *wanted*; the acknowledgement, which is good."""
        async with asyncio.timeout(ANSWER_SECONDS):
            answer = await client.call("subscribe", wanted)
        if not answer["ok"]:
            raise _refusal(answer["error"])
        return answer

    def _on_event(self, name: str, data: Any) -> None:
        raise NotImplementedError


class OrdersWatcher(_SocketIOWatcher):
    """Watches any number of orders on one connection."""

    def __init__(self, name: str, port: Port, token: str) -> None:
        super().__init__(name, port, token)
        self._wanted: list[str] = []
        self._subscribed: set[str] = set()

    def want(self, order_id: str) -> None:
        """Watch this order too, from its first event on."""
        self._wanted.append(order_id)

    def start_over(self) -> None:
        self._subscribed = set()

    async def subscribe(self, client: BareClient) -> None:
        orders = [one for one in list(self._wanted) if one not in self._subscribed][:200]
        if not orders:
            return
        asked = [{"order_id": one, "after": self.seen.setdefault(one, 0)} for one in orders]
        answer = await self.ask(client, {"orders": asked})
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


class FeedWatcher(_SocketIOWatcher):
    """Watches the feed of all orders, which replays nothing: each connection is its own history."""

    def start_over(self) -> None:
        self._current = {}
        self.seen = {}
        self._subscribed = False

    async def subscribe(self, client: BareClient) -> None:
        if not self._subscribed:
            await self.ask(client, {"feed": "orders"})
            self._subscribed = True

    def _on_event(self, name: str, data: Any) -> None:
        if name != "order_update":
            self.faults.append(f"{self.name}: unexpected {name} {data}")
            return
        if data["order_id"] not in self._current:
            self.begin(data["order_id"], None)
        self.take(data)


class ResumingRawWatcher(ResumingWatcher):
    """Watches one order after the other over a raw WebSocket; `pick` names the next."""

    def __init__(self, name: str, port: Port, token: str, pick: Callable[[], str | None]) -> None:
        super().__init__(name, port, token)
        self._pick = pick
        self._order: str | None = None

    def watch(self) -> None:
        if self._order is None:
            self._order = self._pick()
        if self._order is None:
            self._stopping.wait(0.05)
            return
        after = self.seen.setdefault(self._order, 0)
        address = f"ws://127.0.0.1:{self.port()}"
        try:
            with raw_watching(address, self._order, self.token, after=after) as raw:
                self.connections += 1
                self.begin(self._order, after)
                self._listen(raw)
        except Refused as refused:
            if refused.status != 503:
                self.faults.append(f"{self.name}: {refused}")
            self._stopping.wait(random.uniform(0.02, 0.1))

    def _listen(self, raw: RawWatcher) -> None:
        while not self._stopping.is_set():
            try:
                event = raw.next(0.1)
            except TimeoutError:
                continue
            self.take(event)
            if event["status"] in ("Completed", "Cancelled"):
                self._order = None
                return
