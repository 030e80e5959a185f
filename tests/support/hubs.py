"""Runs code on eventlet's hub or on ours, beside the test process's own.

answer = with_hub("ours", function)
"""

import concurrent.futures
import threading
from collections.abc import Callable
from typing import TypeVar

import eventlet.hubs

from ordertrack import eventlet_hub

T = TypeVar("T")

HUBS = ("ours", "eventlet's")


def with_hub(which: str, function: Callable[[], T], *, seconds: float = 20) -> T:
    """Return ``function()``, called on that hub in a thread of its own: each thread has a hub."""
    result: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        try:
            if which == "ours":
                eventlet_hub.install()
                assert type(eventlet.hubs.get_hub()) is eventlet_hub.Hub
            with eventlet.Timeout(seconds):
                result.set_result(function())
        except BaseException as error:  # noqa: BLE001 (raised by the caller)
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return result.result(seconds + 5)
