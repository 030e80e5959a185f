"""Keeps slow work from blocking eventlet's loop: real threads, bounded waits for PostgreSQL, and a
cheap way to wait for another request.

In the server the standard library is patched by eventlet, and all requests and sockets share one
thread. On the command line and in most tests nothing is patched, and there is no loop to block.
"""

import math
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

import eventlet.patcher
import eventlet.semaphore
import eventlet.tpool
import psycopg2
from eventlet.hubs import get_hub
from greenlet import getcurrent
from psycopg2.extensions import POLL_OK, POLL_READ, POLL_WRITE, STATUS_SETUP, set_wait_callback

from ordertrack import eventlet_hub
from ordertrack.errors import TooManyRequests
from ordertrack.eventlet_hub import wait_until

T = TypeVar("T")

monotonic = time.monotonic

_EVENTS = {POLL_READ: eventlet_hub.READ, POLL_WRITE: eventlet_hub.WRITE}

# The unpatched module: eventlet's `select` has no `poll`.
_SELECT = eventlet.patcher.original("select")
_THREAD = eventlet.patcher.original("_thread")

# Each argon2id hash takes 19 MiB and some 20 ms of a core. Two at a time keep two cores busy and
# leave the loop its share.
_MAX_THREADS = 2
# Calls that wait for a thread, when many people log in at once. At 50 the last one waits half a
# second; beyond that a client is told to try again.
_MAX_WAITING = 50
_threads = eventlet.semaphore.Semaphore(_MAX_THREADS)


def run_in_thread(function: Callable[..., T], *args: Any) -> T:
    """Return ``function(*args)``, called on a real thread while the event loop runs on.

    For work that keeps the processor busy, as hashing does. Raises what *function* raises, and
    `TooManyRequests` when `_MAX_WAITING` calls wait for a thread already.
    """
    if not eventlet.patcher.is_monkey_patched("thread"):
        return function(*args)
    if _threads.balance <= -_MAX_WAITING:
        raise TooManyRequests("Too many people sign in at once. Try again.", retry_after=2)
    with _threads:
        return cast(T, eventlet.tpool.execute(function, *args))


class NoAnswer(psycopg2.OperationalError):
    """The database sent nothing within the time allowed."""


def has_input(descriptor: int) -> bool:
    """Whether *descriptor* has something to read or its other end is closed. Does not wait."""
    poll = _SELECT.poll()
    poll.register(descriptor, _SELECT.POLLIN)
    return bool(poll.poll(0))


def bound_database_waits(*, connect: float, answer: float | None) -> None:
    """Limit each connection attempt to *connect* seconds, and each wait for the database while a
    query runs to *answer* seconds (None: unlimited).

    PostgreSQL's own timeouts end a slow statement; this ends a wait for a machine that is gone and
    will never answer. psycopg2 then closes the connection, and the statement's outcome is unknown.
    Replaces eventlet's wait callback for psycopg2, which has no limit; libpq's connect_timeout has
    no effect where a wait callback is set.
    """

    def wait(connection: Any) -> None:
        connecting = connection.status == STATUS_SETUP
        seconds = connect if connecting else math.inf if answer is None else answer
        deadline = monotonic() + seconds
        while (state := connection.poll()) != POLL_OK:
            if not wait_until(connection.fileno(), _EVENTS[state], deadline):
                raise NoAnswer(f"no answer from the database for {seconds} seconds")
            if not connecting:
                deadline = monotonic() + seconds

    set_wait_callback(wait)


def real_lock() -> Any:
    """A lock that excludes real threads, for sections in which no greenlet can be switched.

    Under eventlet `threading.Lock` is a semaphore that costs fifty times as much.
    """
    return _THREAD.allocate_lock()


class WakeUp(Protocol):
    """Lets the greenlet or thread that made it wait until another wakes it. It is used once."""

    def wait(self) -> None: ...
    def wake(self) -> None: ...


def wake_up() -> WakeUp:
    """A `WakeUp` for the caller: a greenlet in the server, otherwise a thread."""
    if eventlet.patcher.is_monkey_patched("thread"):
        return _GreenletWakeUp()
    return _ThreadWakeUp()


class _GreenletWakeUp:
    """Switches through eventlet's hub, which is a tenth of the work of its semaphores."""

    __slots__ = ("_greenlet", "_is_woken")

    def __init__(self) -> None:
        self._greenlet: Any = getcurrent()
        self._is_woken = False

    def wait(self) -> None:
        try:
            while not self._is_woken:
                get_hub().switch()
        finally:
            self._greenlet = None

    def wake(self) -> None:
        self._is_woken = True
        get_hub().schedule_call_global(0, self._resume)

    def _resume(self) -> None:
        # One that was killed meanwhile waits no longer, or waits for something else.
        if self._greenlet is not None:
            self._greenlet.switch()


class _ThreadWakeUp:
    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = real_lock()
        self._lock.acquire()

    def wait(self) -> None:
        self._lock.acquire()

    def wake(self) -> None:
        self._lock.release()
