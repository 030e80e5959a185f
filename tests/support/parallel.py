"""Runs calls in parallel threads that start together."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def at_once(calls: Iterable[Callable[[], T]]) -> list[T]:
    """Make all *calls* in parallel, released together; their results in the same order.

    Raises what the first failing call raised.
    """
    listed = list(calls)
    start = threading.Barrier(len(listed))

    def released(call: Callable[[], T]) -> T:
        start.wait()
        return call()

    with ThreadPoolExecutor(len(listed)) as pool:
        return [future.result() for future in [pool.submit(released, call) for call in listed]]
