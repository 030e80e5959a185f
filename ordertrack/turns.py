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

# Together with the lock's own timeout it must stay below what a caller is promised: that timeout
# and one second more.
_PATIENCE = 0.5


class Turns:
    """Turns at things that are known by a number. A thing that nobody wants costs nothing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queues: dict[int, tuple[threading.Semaphore, int]] = {}  # and how many use it

    @contextmanager
    def take(self, number: int) -> Iterator[None]:
        """Have one of the few turns at *number*. Raises `Unavailable` when none comes soon."""
        with self._lock:
            queue, users = self._queues.get(number) or (threading.Semaphore(_AT_ONCE), 0)
            self._queues[number] = queue, users + 1
        try:
            if not queue.acquire(timeout=_PATIENCE):
                raise Unavailable("The order is locked by another change. Try again.")
            try:
                yield
            finally:
                queue.release()
        finally:
            with self._lock:
                _, users = self._queues[number]
                if users > 1:
                    self._queues[number] = queue, users - 1
                else:
                    del self._queues[number]
