"""Leaving the loop: work that would hold everybody up runs on real threads.

Under the server the standard library is patched by eventlet and everything shares one thread; on
the command line and in most tests nothing is patched and there is no loop to spare.
"""

import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

import eventlet.patcher
import eventlet.semaphore
import eventlet.tpool
import psycopg2
from eventlet.hubs import trampoline
from psycopg2.extensions import (
    POLL_OK,
    POLL_READ,
    POLL_WRITE,
    STATUS_SETUP,
    set_wait_callback,
)

from ordertrack.errors import TooManyRequests

T = TypeVar("T")

# The system's own, which eventlet takes out of the module.
_SELECT = eventlet.patcher.original("select")

# Each argon2id hash takes 19 MiB and some 20 ms of a core. Two at a time keep two cores busy and
# leave the loop its share; the rest of a login storm waits here, without a thread each.
_AT_ONCE = 2
# More than these wait for a second already, and whoever is turned away may try again.
_MOST_WAITING = 50
_turns = eventlet.semaphore.Semaphore(_AT_ONCE)


def off_the_loop(function: Callable[..., T], *args: Any) -> T:
    """Call ``function(*args)`` on a real thread while the loop goes on; its result or exception.

    Raises `TooManyRequests` when too many wait for their turn already.
    """
    if not eventlet.patcher.is_monkey_patched("thread"):
        return function(*args)
    if _turns.balance <= -_MOST_WAITING:
        raise TooManyRequests("Too many people sign in at once. Try again.", retry_after=2)
    with _turns:
        return cast(T, eventlet.tpool.execute(function, *args))


class NoAnswer(psycopg2.OperationalError):
    """The database, or the network to it, was silent for too long."""


def has_input(descriptor: int) -> bool:
    """Whether there is something to read, or the other end has gone. Does not wait."""
    poll = _SELECT.poll()
    poll.register(descriptor, _SELECT.POLLIN)
    return bool(poll.poll(0))


def bound_database_waits(*, connect: float, answer: float | None) -> None:
    """Let no connection attempt take longer than *connect* seconds, and no query wait longer than
    *answer* for the database; None: as long as it takes.

    PostgreSQL's own timeouts end what takes too long; this ends what has no end, on a machine that
    is gone without a word. psycopg2 then closes the connection, with the outcome unknown. Replaces
    eventlet's way of waiting for psycopg2, which knows no bound; libpq's connect_timeout has no
    effect on a connection that is waited for in this way.
    """

    def wait(connection: Any) -> None:
        connecting = connection.status == STATUS_SETUP
        seconds = connect if connecting else answer
        end = time.monotonic() + connect
        while (state := connection.poll()) != POLL_OK:
            trampoline(
                connection.fileno(),
                read=state == POLL_READ,
                write=state == POLL_WRITE,
                timeout=max(0.01, end - time.monotonic()) if connecting else seconds,
                timeout_exc=NoAnswer(f"no answer from the database for {seconds} seconds"),
            )

    set_wait_callback(wait)
