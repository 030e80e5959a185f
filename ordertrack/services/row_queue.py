"""Limits how many requests may wait for one order's row lock, so that a stuck row cannot exhaust
the connection pool.

A transaction that waits for a row lock holds a connection of the pool. If all requests for a stuck
order were let through, a dozen impatient clients of that order would take the whole pool, and with
it every other order. So within a process two requests per order go on to the database, and the rest
wait here, where waiting costs nothing.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ordertrack.errors import Unavailable

# One that holds the lock, and one that is already waiting for it when the first is done.
_AT_ONCE = 2

# Seconds to wait while no earlier request succeeds. Together with the lock's own timeout it must
# stay below what a caller is promised: that timeout and one second more.
_PATIENCE = 0.5


@dataclass(slots=True)
class _Queue:
    places: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(_AT_ONCE))
    users: int = 0  # requests that have a place or wait for one
    succeeded: int = 0  # requests that had one


class RowQueue:
    """One queue for each row that is in use, by its id. An unused row takes no memory."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queues: dict[int, _Queue] = {}

    @contextmanager
    def take(self, row_id: int) -> Iterator[None]:
        """Hold one of the few places at a row. Raises `Unavailable` when the queue is stuck."""
        with self._lock:
            queue = self._queues.setdefault(row_id, _Queue())
            queue.users += 1
        try:
            _wait(queue)
            try:
                yield
                queue.succeeded += 1
            finally:
                queue.places.release()
        finally:
            with self._lock:
                queue.users -= 1
                if not queue.users:
                    del self._queues[row_id]


def _wait(queue: _Queue) -> None:
    succeeded = queue.succeeded
    while not queue.places.acquire(timeout=_PATIENCE):
        if queue.succeeded == succeeded:
            raise Unavailable("The order is locked by another change. Try again.")
        succeeded = queue.succeeded
