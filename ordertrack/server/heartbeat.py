"""Deadlines and pings for any number of connections, without a timer for each.

Deadlines that are all equally far away need only a queue: the first one in is the first one due.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

log = logging.getLogger(__name__)

Deadlines = deque[tuple[float, T]]

# Shorter intervals and timeouts are refused: the sweep would take all of the process's time.
SHORTEST = 0.1

# Connections handled before others run: some milliseconds of work.
CHUNK = 256


def take_due(
    queue: Deadlines[T], now: float, pause: Callable[[], object]
) -> Iterator[tuple[float, T]]:
    """Remove and yield what is due, calling `pause` now and then to let others run."""
    taken = 0
    while queue and queue[0][0] <= now:
        yield queue.popleft()
        taken += 1
        if taken % CHUNK == 0:
            pause()


class Heartbeat:
    """Pings connections every `interval` seconds, the first time that long after they were added.

    `expire` is called for one that sent nothing at all within `timeout` seconds of a ping, or that
    cannot be pinged. A connection has the attributes `alive` and `heard`; it is forgotten when it
    is no longer alive, which `expire` has to bring about. An exception for one does not affect
    others.

    `sweep` has to be called every `period` seconds.
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
        if not timeout < interval:
            raise ValueError("A heartbeat's timeout must be shorter than its interval")
        if timeout < SHORTEST:
            raise ValueError(f"A heartbeat's timeout must be {SHORTEST} s or more")
        self.period = min(1.0, timeout / 4)
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
        """To be called every `period` seconds, with the monotonic time.

        The client's time counts from when its ping was due, or from a `period` ago if the sweep is
        later than that: a busy loop does not shorten it.
        """
        for _, connection in take_due(self._to_check, now, self._pause):
            try:
                if connection.alive and not connection.heard:
                    self._expire(connection)
            except Exception:  # the others are due as well
                log.exception("A connection could not be expired")
        for due, connection in take_due(self._to_ping, now, self._pause):
            try:
                if connection.alive:
                    connection.heard = False
                    self._ping(connection)
                    began = max(due, now - self.period)
                    self._to_check.append((began + self._timeout, connection))
                    self._to_ping.append((began + self._interval, connection))
            except Exception:
                log.exception("A connection could not be pinged")
                # It is in neither queue: let the next sweep expire it.
                self._to_check.appendleft((now, connection))
