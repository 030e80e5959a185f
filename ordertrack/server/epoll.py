"""Which of many descriptors can be read or written, told by callbacks in eventlet's hub.

Two ways with one face. `Epoll` (Linux) watches all descriptors with an epoll of its own, and the
hub watches only that: an idle connection costs the hub nothing. `HubListeners` (elsewhere, so that
macOS will do for development) asks the hub for each descriptor, which is portable and dearer.

Eventlet's hub forgets a descriptor whose callback raises, and says nothing. For ours that would
silence every connection at once, so whatever escapes here is handed to `on_broken`, and
`is_attached` says whether the hub still knows of us.
"""

from collections.abc import Callable
from typing import Any, Final, Protocol

import eventlet.hubs
import eventlet.patcher

# Descriptors handled in one turn; the rest is reported again in the next.
CHUNK: Final = 128

# Called with (descriptor, readable, writable). Neither: the connection is broken.
OnReady = Callable[[int, bool, bool], None]

# Called with an exception after which nobody would be told anything any more.
OnBroken = Callable[[Exception], None]

# Patching removes epoll from `select`; eventlet's own hub keeps the original in the same way.
_select: Any = eventlet.patcher.original("select")


class Readiness(Protocol):
    def watch(self, descriptor: int, *, read: bool, write: bool) -> None:
        """From now on tell of just these; a descriptor that is new is taken in."""

    def forget(self, descriptor: int) -> None:
        """Before the descriptor is closed."""

    def is_attached(self) -> bool:
        """Whether the hub still tells us."""


class Epoll:
    def __init__(self, on_ready: OnReady, on_broken: OnBroken) -> None:
        self._on_ready = on_ready
        self._on_broken = on_broken
        self._known: set[int] = set()
        self._epoll = _select.epoll()
        self._hub = hub = eventlet.hubs.get_hub()
        self._own = hub.add(hub.READ, self._epoll.fileno(), self._tell, _ignore, _ignore)

    def watch(self, descriptor: int, *, read: bool, write: bool) -> None:
        events = (_select.EPOLLIN if read else 0) | (_select.EPOLLOUT if write else 0)
        if descriptor in self._known:
            self._epoll.modify(descriptor, events)
        else:
            self._epoll.register(descriptor, events)
            self._known.add(descriptor)

    def forget(self, descriptor: int) -> None:
        if descriptor in self._known:
            self._known.discard(descriptor)
            self._epoll.unregister(descriptor)

    def is_attached(self) -> bool:
        listening = self._hub.listeners[self._hub.READ].get(self._epoll.fileno())
        return listening is self._own

    def _tell(self, _own: int) -> None:
        try:
            for descriptor, events in self._epoll.poll(0, CHUNK):
                self._on_ready(
                    descriptor, bool(events & _select.EPOLLIN), bool(events & _select.EPOLLOUT)
                )
        except Exception as error:  # noqa: BLE001 (handed on)
            self._on_broken(error)


class HubListeners:
    def __init__(self, on_ready: OnReady, on_broken: OnBroken) -> None:
        self._on_ready = on_ready
        self._on_broken = on_broken
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

    def is_attached(self) -> bool:
        return True  # each descriptor is attached by itself

    def _readable(self, descriptor: int) -> None:
        self._tell(descriptor, readable=True)

    def _writable(self, descriptor: int) -> None:
        self._tell(descriptor, readable=False)

    def _tell(self, descriptor: int, *, readable: bool) -> None:
        try:
            self._on_ready(descriptor, readable, not readable)
        except Exception as error:  # noqa: BLE001 (handed on)
            self._on_broken(error)


def best(on_ready: OnReady, on_broken: OnBroken) -> Readiness:
    """What serves best on this system."""
    kind = Epoll if hasattr(_select, "epoll") else HubListeners
    return kind(on_ready, on_broken)


def _ignore(*_: object) -> None:
    """The hub would call this for a descriptor closed behind its back; ours are forgotten first."""
