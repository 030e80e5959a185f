"""Pings for any number of connections, on the monotonic clock."""

import time
from collections import deque
from collections.abc import Callable
from typing import Any


class Heartbeat:
    """Pings any number of connections with two queues instead of a timer each.

    Every connection is pinged `interval` seconds after it was added and after its last ping. One
    that sent nothing at all within `timeout` seconds of a ping is expired.
    """

    def __init__(
        self,
        interval: float,
        timeout: float,
        ping: Callable[[Any], None],
        expire: Callable[[Any], None],
    ) -> None:
        if not 0 < timeout < interval:
            raise ValueError("A heartbeat's timeout must be shorter than its interval")
        self._interval = interval
        self._timeout = timeout
        self._ping = ping
        self._expire = expire
        # Each in order of time, as what is appended is always due later than what is there.
        self._to_ping: deque[tuple[float, Any]] = deque()
        self._to_check: deque[tuple[float, Any]] = deque()

    def add(self, connection: Any) -> None:
        """`connection` has `alive` and `heard`; it is forgotten when it is no longer alive."""
        self._to_ping.append((time.monotonic() + self._interval, connection))

    def sweep(self, now: float) -> None:
        while self._to_check and self._to_check[0][0] <= now:
            due, connection = self._to_check.popleft()
            if not connection.alive:
                continue
            if connection.heard:
                self._to_ping.append((due - self._timeout + self._interval, connection))
            else:
                self._expire(connection)
        while self._to_ping and self._to_ping[0][0] <= now:
            _, connection = self._to_ping.popleft()
            if connection.alive:
                connection.heard = False
                self._ping(connection)
                self._to_check.append((now + self._timeout, connection))
