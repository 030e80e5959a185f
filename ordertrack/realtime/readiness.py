"""Which of many descriptors can be read or written, told by callbacks in eventlet's hub.

Two ways with one face. `Epoll` (Linux) watches all descriptors with an epoll of its own, and the
hub watches only that: an idle connection costs the hub nothing. `HubListeners` (elsewhere, so that
macOS will do for development) asks the hub for each descriptor, which is portable and dearer.
"""

from collections.abc import Callable
from typing import Any, Final, Protocol

import eventlet.hubs
import eventlet.patcher

# Descriptors handled in one turn; the rest is reported again in the next.
CHUNK: Final = 128

# Called with (descriptor, readable, writable). Neither: the connection is broken.
OnReady = Callable[[int, bool, bool], None]

# Patching removes epoll from `select`; eventlet's own hub keeps the original in the same way.
_select: Any = eventlet.patcher.original("select")


class Readiness(Protocol):
    def watch(self, descriptor: int, *, read: bool, write: bool) -> None:
        """From now on tell of just these; a descriptor that is new is taken in."""

    def forget(self, descriptor: int) -> None:
        """Before the descriptor is closed."""


class Epoll:
    def __init__(self, on_ready: OnReady) -> None:
        self._on_ready = on_ready
        self._known: set[int] = set()
        self._epoll = _select.epoll()
        hub = eventlet.hubs.get_hub()
        hub.add(hub.READ, self._epoll.fileno(), self._tell, _ignore, None)

    def watch(self, descriptor: int, *, read: bool, write: bool) -> None:
        events = (_select.EPOLLIN if read else 0) | (_select.EPOLLOUT if write else 0)
        if descriptor in self._known:
            self._epoll.modify(descriptor, events)
        else:
            self._known.add(descriptor)
            self._epoll.register(descriptor, events)

    def forget(self, descriptor: int) -> None:
        self._known.discard(descriptor)
        self._epoll.unregister(descriptor)

    def _tell(self, _own: int) -> None:
        for descriptor, events in self._epoll.poll(0, CHUNK):
            self._on_ready(
                descriptor, bool(events & _select.EPOLLIN), bool(events & _select.EPOLLOUT)
            )


class HubListeners:
    def __init__(self, on_ready: OnReady) -> None:
        self._on_ready = on_ready
        self._hub = eventlet.hubs.get_hub()
        self._readers: dict[int, Any] = {}
        self._writers: dict[int, Any] = {}

    def watch(self, descriptor: int, *, read: bool, write: bool) -> None:
        self._set(self._readers, self._hub.READ, self._readable, descriptor, read)
        self._set(self._writers, self._hub.WRITE, self._writable, descriptor, write)

    def forget(self, descriptor: int) -> None:
        self.watch(descriptor, read=False, write=False)

    def _set(
        self,
        listeners: dict[int, Any],
        kind: Any,
        callback: Callable[[int], None],
        descriptor: int,
        wanted: bool,
    ) -> None:
        if wanted and descriptor not in listeners:
            listeners[descriptor] = self._hub.add(kind, descriptor, callback, _ignore, _ignore)
        elif not wanted and descriptor in listeners:
            self._hub.remove(listeners.pop(descriptor))

    def _readable(self, descriptor: int) -> None:
        self._on_ready(descriptor, True, False)

    def _writable(self, descriptor: int) -> None:
        self._on_ready(descriptor, False, True)


def best(on_ready: OnReady) -> Readiness:
    """What serves best on this system."""
    return Epoll(on_ready) if hasattr(_select, "epoll") else HubListeners(on_ready)


def _ignore(*_: object) -> None:
    """The hub would call this for a descriptor closed behind its back; ours are forgotten first."""
