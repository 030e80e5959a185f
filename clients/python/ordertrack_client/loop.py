"""Runs everything of a stream on one thread, so that nothing needs a lock and callbacks come
one at a time, in order.
"""

import heapq
import logging
import queue
import threading
import time
from collections.abc import Callable
from itertools import count

log = logging.getLogger(__name__)

Task = Callable[[], None]


class Timer:
    """A task for later."""

    __slots__ = ("task",)

    def __init__(self, task: Task) -> None:
        self.task: Task | None = task

    def cancel(self) -> None:
        self.task = None


class Loop:
    """Runs tasks in the order in which they were posted, and timers when they are due."""

    def __init__(self, name: str) -> None:
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._timers: list[tuple[float, int, Timer]] = []
        self._numbers = count()
        # A daemon: a program that forgot to close its stream can still end.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def post(self, task: Task) -> None:
        """Run *task* on the loop's thread. May be called from any thread."""
        self._tasks.put(task)

    def later(self, delay: float, task: Task) -> Timer:
        """Run *task* after *delay* seconds. To be called on the loop's thread."""
        timer = Timer(task)
        heapq.heappush(self._timers, (time.monotonic() + delay, next(self._numbers), timer))
        return timer

    def stop(self, timeout: float) -> None:
        """End after what has been posted so far, and wait for that unless called on the loop."""
        self._tasks.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            try:
                task = self._tasks.get(timeout=self._until_next_timer())
            except queue.Empty:
                _, _, timer = heapq.heappop(self._timers)
                task = timer.task or _nothing
            if task is None:
                return
            try:
                task()
            except Exception:
                log.exception("an error in the stream itself; it goes on")

    def _until_next_timer(self) -> float | None:
        while self._timers and self._timers[0][2].task is None:
            heapq.heappop(self._timers)  # cancelled
        if not self._timers:
            return None
        return max(0.0, self._timers[0][0] - time.monotonic())


def _nothing() -> None:
    pass
