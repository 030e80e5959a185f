"""Injects exceptions into the callbacks of WebSockets and the loop, in echo_app.py's process.

Each fault is raised once: the first time that its callback runs for the given connection (None: for
any connection).
"""

import itertools
from collections.abc import Callable
from typing import Any

import eventlet

from ordertrack.server import heartbeat, loop, websocket
from ordertrack.server.loop import event_loop
from ordertrack.server.websocket import WebSocket

# Faults after which only their own connection ends.
ONE_CONNECTION = (
    "flush",
    "on_readable",
    "on_writable",
    "feed",
    "check_pace",
    "expire",
    "on_open",
    "on_message_in_loop",
    "on_message",
    "timeout in on_message",
    "on_close",
    "watch",
)
HEARTBEAT = ("ping", "heartbeat's expire")

# Faults of the loop itself, after which no callback would run any more.
THE_LOOP = ("_on_ready", "abort", "_sweep", "poll", "attachment")


class Injected(RuntimeError):
    pass


def _break(owner: Any, name: str, ws: WebSocket | None, error: BaseException | None = None) -> None:
    original: Callable[..., Any] = getattr(owner, name)

    def broken(*arguments: Any, **named: Any) -> Any:
        if ws is None or any(argument is ws for argument in arguments):
            setattr(owner, name, original)
            raise error or Injected(name)
        return original(*arguments, **named)

    setattr(owner, name, broken)


def inject(what: str, ws: WebSocket | None, handler: type) -> None:
    if what in {"flush", "on_readable", "on_writable", "feed", "check_pace", "expire"}:
        _break(WebSocket, what, ws)
    elif what in {"on_open", "on_message_in_loop", "on_message", "on_close"}:
        _break(handler, what, ws)
    else:
        _OTHERS[what](ws, handler)


def _detach() -> None:
    """Do what the hub does to a descriptor whose callback raises."""
    poller: Any = event_loop._poller
    poller._hub.remove_descriptor(poller._epoll.fileno())


def _break_the_epoll() -> None:
    poller: Any = event_loop._poller
    poller._epoll.close()
    poller._report(0)


def _break_abort(ws: WebSocket | None) -> None:
    _break(WebSocket, "on_readable", ws)
    _break(WebSocket, "abort", ws)


_OTHERS: dict[str, Callable[[WebSocket | None, type], object]] = {
    # Not an `Exception`.
    "timeout in on_message": lambda ws, handler: _break(
        handler, "on_message", ws, eventlet.Timeout(60)
    ),
    "ping": lambda ws, _: _break(websocket._pings, "_ping", ws),
    "heartbeat's expire": lambda ws, _: _break(websocket._pings, "_expire", ws),
    "watch": lambda ws, _: _break(event_loop, "watch", ws),
    "sweep": lambda *_: loop.every_second(_fail),
    "_on_ready": lambda *_: _break(event_loop._poller, "_on_ready", None),
    "_sweep": lambda *_: _break(event_loop, "_sweep", None),
    "abort": lambda ws, _: _break_abort(ws),
    "poll": lambda *_: _break_the_epoll(),
    "attachment": lambda *_: _detach(),
}


def _fail(_now: float) -> None:
    raise Injected("sweep")


def ping_every(interval: float, timeout: float) -> None:
    """Ping at this interval instead of every 25 seconds."""
    there = websocket._pings
    websocket._pings = heartbeat.Heartbeat(
        interval, timeout, ping=there._ping, expire=there._expire, pause=loop.pause
    )
    event_loop.sweeps[:] = itertools.filterfalse(
        lambda one: one.callback == there.sweep, event_loop.sweeps
    )
    loop.every(websocket._pings.period, websocket._pings.sweep)
