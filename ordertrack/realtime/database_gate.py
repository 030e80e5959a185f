"""Limits how many connections query the database at once, so that HTTP requests find one free.

When a server or its network comes back, thousands of clients connect at once. Each asks the
database which user it belongs to and what it missed. They wait here for as long as it takes, and
not for a connection of the pool, which gives up after some seconds.

    gate = DatabaseGate(at_once=8, budget=Budget())
    actor = gate.identify(watcher)
    hub = Hub(catch_up=gate.catch_up)
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ordertrack.errors import Unavailable
from ordertrack.eventlog import Event
from ordertrack.policy import Actor, Caller
from ordertrack.realtime.hub import Answers, Watcher
from ordertrack.services import callers, orders
from ordertrack.services.orders import Budget, Wanted


class DatabaseGate:
    """Queries on behalf of watchers, *at_once* of them at a time. Needs an application context.

    Each raises `Unavailable` when the watcher's client has gone while it waited.
    """

    def __init__(self, at_once: int, budget: Budget) -> None:
        self._semaphore = threading.Semaphore(at_once)
        self._budget = budget

    def identify(self, watcher: Watcher, caller: Caller | None = None) -> Actor:
        """The watcher's user now, or the user of *caller*. Raises `InvalidToken`."""
        with self._turn(watcher):
            return callers.identify(caller or watcher.credential.caller)

    def catch_up(self, watcher: Watcher, wanted: Wanted) -> tuple[Actor, Answers]:
        """Where orders stand and what the watcher missed of them: see `orders.catch_up`."""
        with self._turn(watcher):
            return orders.catch_up(watcher.credential.caller, wanted, self._budget)

    def events(self, watcher: Watcher, order_id: int, after: int, limit: int) -> list[Event]:
        """At most *limit* events after a version: see `orders.history`."""
        with self._turn(watcher):
            return orders.history(
                watcher.credential.caller, order_id, after=after, limit=limit
            ).events

    @contextmanager
    def _turn(self, watcher: Watcher) -> Iterator[None]:
        with self._semaphore:
            if not watcher.is_alive:  # a turn would be taken from the others for nothing
                raise Unavailable("The connection has ended.")
            yield
