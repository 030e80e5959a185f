"""Waits until a condition becomes true, in place of fixed sleeps."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# Generous: a condition that comes true ends the wait at once, however long it could have been.
DEADLINE = 20.0


def eventually(check: Callable[[], T], timeout: float = DEADLINE, *, every: float = 0.01) -> T:
    """Call *check* until it returns something truthy, and return that.

    An `AssertionError` in *check* counts as "not yet". Past *timeout* seconds the last one is
    raised, or one that shows the last answer.
    """
    deadline = time.monotonic() + timeout
    while True:
        error = None
        answer: T | None = None
        try:
            answer = check()
            if answer:
                return answer
        except AssertionError as not_yet:
            error = not_yet
        if time.monotonic() > deadline:
            if error is not None:
                raise error
            raise AssertionError(f"not within {timeout:g} s; last answer: {answer!r}")
        time.sleep(every)
