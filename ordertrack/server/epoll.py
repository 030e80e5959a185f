"""Pollers: tell by callbacks in eventlet's hub which of many descriptors can be read or written.

`EpollPoller` (Linux) watches all descriptors with an epoll of its own, and the hub watches only
that: an idle connection costs the hub nothing. `HubPoller` asks the hub for each descriptor, which
works on every system and costs more; it exists for development on macOS.

Eventlet's hub silently forgets a descriptor whose callback raises. For the epoll's descriptor that
would silence every connection at once, so every exception goes to `on_broken` instead, and
`is_attached` says whether the hub still watches us.
"""

from collections.abc import Callable
from typing import Any, Final

import eventlet.hubs
import eventlet.patcher

# Descriptors handled in one turn; the others are reported again in the next.
CHUNK: Final = 128

# Called with (descriptor, readable, writable). Neither: the connection is broken.
OnReady = Callable[[int, bool, bool], None]

# Called with an exception after which no callback would run any more.
OnBroken = Callable[[Exception], None]

# Patching removes epoll from `select`; eventlet's own hub keeps the original in the same way.
_select: Any = eventlet.patcher.original("select")


class EpollPoller:
    def __init__(self, on_ready: OnReady, on_broken: OnBroken) -> None:
        self._on_ready = on_ready
        self._on_broken = on_broken
        self._known: set[int] = set()
        self._epoll = _select.epoll()
        self._hub = hub = eventlet.hubs.get_hub()
        self._listener = hub.add(hub.READ, self._epoll.fileno(), self._report, _ignore, _ignore)

    def watch(self, descriptor: int, *, read: bool, write: bool) -> None:
        """From now on report exactly these events; a new descriptor is added."""
        events = (_select.EPOLLIN if read else 0) | (_select.EPOLLOUT if write else 0)
        if descriptor in self._known:
            self._epoll.modify(descriptor, events)
        else:
            self._epoll.register(descriptor, events)
            self._known.add(descriptor)

    def forget(self, descriptor: int) -> None:
        """To be called before the descriptor is closed."""
        if descriptor in self._known:
            self._known.discard(descriptor)
            self._epoll.unregister(descriptor)

    def is_attached(self) -> bool:
        """Whether the hub still watches us."""
        listening = self._hub.listeners[self._hub.READ].get(self._epoll.fileno())
        return listening is self._listener

    def _report(self, _epoll: int) -> None:
        try:
            for descriptor, events in self._epoll.poll(0, CHUNK):
                self._on_ready(
                    descriptor, bool(events & _select.EPOLLIN), bool(events & _select.EPOLLOUT)
                )
        except Exception as error:  # noqa: BLE001 (handed on)
            self._on_broken(error)


class HubPoller:
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
        self._report(descriptor, readable=True)

    def _writable(self, descriptor: int) -> None:
        self._report(descriptor, readable=False)

    def _report(self, descriptor: int, *, readable: bool) -> None:
        try:
            self._on_ready(descriptor, readable, not readable)
        except Exception as error:  # noqa: BLE001 (handed on)
            self._on_broken(error)


Poller = EpollPoller | HubPoller


def make_poller(on_ready: OnReady, on_broken: OnBroken) -> Poller:
    """The poller that costs least on this system."""
    kind = EpollPoller if hasattr(_select, "epoll") else HubPoller
    return kind(on_ready, on_broken)


def _ignore(*_: object) -> None:
    """The hub would call this for a descriptor closed behind its back; ours are forgotten first."""
