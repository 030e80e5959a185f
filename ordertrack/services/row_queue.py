"""Turns at an order: few wait for its row at a time, so that one stuck row leaves connections free.

Who waits for a row lock keeps a connection of the pool busy. Were everybody who wants to change a
stuck order let through, a dozen impatient clients of that one order would take the whole pool, and
with it every other order. So within a process a few go on to the database and the rest wait here,
where waiting costs nothing.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ordertrack.errors import Unavailable

# One that is at it, and one that is already there when the first is done.
_AT_ONCE = 2

# How long to wait while nobody before us succeeds. Together with the lock's own timeout it must
# stay below what a caller is promised: that timeout and one second more.
_PATIENCE = 0.5


class _Queue:
    __slots__ = ("done", "places", "users")

    def __init__(self) -> None:
        self.places = threading.Semaphore(_AT_ONCE)
        self.users = 0  # that have a place or wait for one
        self.done = 0  # turns that ended well


class RowQueue:
    """Turns at things that are known by a number. A thing that nobody wants costs nothing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queues: dict[int, _Queue] = {}

    @contextmanager
    def take(self, number: int) -> Iterator[None]:
        """Have one of the few turns at *number*. Raises `Unavailable` when the queue is stuck."""
        with self._lock:
            queue = self._queues.setdefault(number, _Queue())
            queue.users += 1
        try:
            _wait(queue)
            try:
                yield
                queue.done += 1
            finally:
                queue.places.release()
        finally:
            with self._lock:
                queue.users -= 1
                if not queue.users:
                    del self._queues[number]


def _wait(queue: _Queue) -> None:
    done = queue.done
    while not queue.places.acquire(timeout=_PATIENCE):
        if queue.done == done:
            raise Unavailable("The order is locked by another change. Try again.")
        done = queue.done
