"""Deadlines and pings for any number of connections, without a timer each.

Whatever waits equally long can stand in a queue: the first that was put in is the first due.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

Deadlines = deque[tuple[float, T]]

# Connections that are dealt with at once: some milliseconds of work.
CHUNK = 256


def take_due(queue: Deadlines[T], now: float, pause: Callable[[], object]) -> Iterator[T]:
    """Take what is due off the front, calling `pause` now and then to let others run."""
    taken = 0
    while queue and queue[0][0] <= now:
        yield queue.popleft()[1]
        taken += 1
        if taken % CHUNK == 0:
            pause()


class Heartbeat:
    """Pings connections every `interval` seconds, the first time that long after they were added.

    One that sent nothing at all within `timeout` seconds of a ping is expired. A connection has
    `alive` and `heard`; it is forgotten when it is no longer alive, which `expire` has to see to.
    """

    def __init__(
        self,
        interval: float,
        timeout: float,
        *,
        ping: Callable[[Any], object],
        expire: Callable[[Any], object],
        pause: Callable[[], object],
    ) -> None:
        if not 0 < timeout < interval:
            raise ValueError("A heartbeat's timeout must be shorter than its interval")
        self._interval = interval
        self._timeout = timeout
        self._ping = ping
        self._expire = expire
        self._pause = pause
        self._to_ping: Deadlines[Any] = deque()
        self._to_check: Deadlines[Any] = deque()

    def add(self, connection: Any) -> None:
        self._to_ping.append((time.monotonic() + self._interval, connection))

    def sweep(self, now: float) -> None:
        """To be called about once a second, with the monotonic time."""
        for connection in take_due(self._to_check, now, self._pause):
            if connection.alive and not connection.heard:
                self._expire(connection)
        for connection in take_due(self._to_ping, now, self._pause):
            if connection.alive:
                connection.heard = False
                self._ping(connection)
                self._to_check.append((now + self._timeout, connection))
                self._to_ping.append((now + self._interval, connection))
