"""Eventlet's hub with waits that cost a third: no registration, timer or listener for each.

A wait of eventlet's adds its descriptor to the epoll and deletes it again, and makes a listener, a
timer and an exception. `Hub.wait_until` does less:

*Registration.* A descriptor stays in the epoll when its wait ends, with EPOLLONESHOT: it is armed
for one event only, so that nothing is reported while nobody waits. Each wait arms it again, in one
system call. We keep no list of what is registered, because it would go wrong as soon as a library
closed a descriptor without telling us, and its number was given to another file. The kernel knows:
it forgets a file that is closed, and says ENOENT when we arm one that it does not know. Then the
wait registers it.

*Deadlines.* All are in `_waits`, and looked through when the earliest may have passed: at most once
in `PRECISION` seconds, so that this costs little with thousands of connections. A wait never ends
early, and at most that much late.

*One at a time.* Only one greenlet may wait for a descriptor; another gets a `RuntimeError`, unless
the kernel says that the number means another file by now. Then the first gets `IOClosed`.

Every wait may end early, as if the descriptor were ready, although it is not: reads and writes are
non-blocking, and whoever waits tries again.

What uses eventlet's own functions (`trampoline`, its sockets, pipes and threads) works as before.
Where there is no epoll, eventlet's own hub is used, and `wait_until` asks that.
"""

import errno
import math
import sys
import time
from contextlib import suppress
from typing import Any, Final

import eventlet.hubs
import eventlet.hubs.epolls
import eventlet.hubs.hub
import eventlet.patcher
from greenlet import getcurrent

monotonic = time.monotonic

# Seconds by which a wait may end after its deadline.
PRECISION: Final = 0.05

# As in epoll's masks; an error or the other end's closing is always reported.
READ: Final = 0x1  # EPOLLIN
WRITE: Final = 0x4  # EPOLLOUT
_ONESHOT: Final = 0x4000_0000

_select: Any = eventlet.patcher.original("select")


class Hub(eventlet.hubs.epolls.Hub):  # type: ignore[misc]
    """Eventlet's epoll hub, with the waits described above."""

    is_available = staticmethod(eventlet.hubs.epolls.is_available)

    def __init__(self, clock: Any = None) -> None:
        super().__init__(clock)
        # By descriptor: the greenlet that waits, None once it is to go on; and its deadline.
        self._waits: dict[int, list[Any]] = {}
        self._look_at = math.inf  # when a deadline may have passed
        self._others: list[tuple[int, int]] = []  # events for eventlet's own listeners

    def wait_until(self, descriptor: int, events: int, deadline: float) -> bool:
        """Wait for READ or WRITE; False when the monotonic `deadline` passes first.

        Raises `OSError` when the descriptor is not open, and `IOClosed`, which is one, when it was
        closed meanwhile and its number is used again.
        """
        waits = self._waits
        readers, writers = self.listeners.values()
        if descriptor in waits or descriptor in readers or descriptor in writers:
            self._require_reused(descriptor)
        try:
            self.poll.modify(descriptor, events | _ONESHOT)
        except FileNotFoundError:
            self.poll.register(descriptor, events | _ONESHOT)
        except ValueError:  # -1: a socket object that is closed
            raise OSError(errno.EBADF, "not open") from None
        waits[descriptor] = wait = [getcurrent(), deadline]
        if deadline < self._look_at:  # noqa: PLR1730 (a call of `min` costs more)
            self._look_at = deadline
        try:
            return self.switch() is not False
        finally:
            if wait[0] is not None:  # not by `_end`
                wait[0] = None
                if waits.get(descriptor) is wait:
                    del waits[descriptor]

    def _require_reused(self, descriptor: int) -> None:
        """End the waits for a file that was closed; `RuntimeError` if it is still open."""
        try:
            self.poll.register(descriptor, 0)
        except FileExistsError:
            raise RuntimeError(f"Two greenlets wait for descriptor {descriptor}") from None
        self.poll.unregister(descriptor)
        self._obsolete(descriptor)

    # What eventlet calls --------------------------------------------------------------------------

    def add(self, evtype: Any, fileno: int, cb: Any, tb: Any, mark_as_closed: Any) -> Any:
        if fileno in self._waits:
            self._require_reused(fileno)
        listener = eventlet.hubs.hub.BaseHub.add(self, evtype, fileno, cb, tb, mark_as_closed)
        self.register(fileno)  # arms it, if it is known from one of our waits
        return listener

    def register(self, fileno: int, new: bool = False) -> None:
        # A listener for a file that was closed is removed late: its number may be waited for again.
        if fileno not in self._waits:
            super().register(fileno, new)

    def _obsolete(self, fileno: int) -> bool:
        found: bool = super()._obsolete(fileno)
        wait = self._waits.pop(fileno, None)
        if wait is not None:
            error = eventlet.hubs.IOClosed(errno.EBADF, "closed while waiting")
            self.schedule_call_global(0, self._end, wait, error)
        return found or wait is not None

    def sleep_until(self) -> float | None:
        until: float | None = super().sleep_until()
        if self._look_at == math.inf:
            return until
        return self._look_at if until is None else min(until, self._look_at)

    def wait(self, seconds: float | None = None) -> None:
        """Wait for events, and let those go on who waited for them."""
        waits = self._waits
        ready = []
        for event in self.poll.poll(seconds):
            wait = waits.pop(event[0], None)
            if wait is None:
                self._others.append(event)
            else:
                ready.append(wait)
        for wait in ready:
            self._end(wait)
        if self._others:
            super().wait(0)
            self._others.clear()  # which does nothing as long as there are no listeners
        if monotonic() >= self._look_at:
            self._end_late()

    def do_poll(self, _seconds: float) -> list[tuple[int, int]]:
        """The events that `wait` has left to eventlet's method of that name."""
        events, self._others = self._others, []
        return events

    def _end(self, wait: list[Any], result: bool | BaseException = True) -> None:
        greenlet, wait[0] = wait[0], None
        if greenlet is None:
            return  # it was ended while its event was on the way
        try:
            if isinstance(result, bool):
                greenlet.switch(result)
            else:
                greenlet.throw(result)
        except self.SYSTEM_EXCEPTIONS:
            raise
        except BaseException:  # noqa: BLE001 (printed) of a greenlet that nobody guards; the others go on
            self.squelch_generic_exception(sys.exc_info())

    def _end_late(self) -> None:
        now = monotonic()
        late = [key for key, wait in self._waits.items() if wait[1] <= now]
        ended = [self._waits.pop(key) for key in late]
        earliest = min((wait[1] for wait in self._waits.values()), default=math.inf)
        self._look_at = max(earliest, now + PRECISION)
        for wait in ended:
            self._end(wait, False)


def install() -> None:
    """Make it this thread's hub, where there is epoll. To be called before `monkey_patch`."""
    if Hub.is_available():
        eventlet.hubs.use_hub(Hub)


def wait_until(descriptor: int, events: int, deadline: float) -> bool:
    """`Hub.wait_until`, with whatever hub is in use."""
    hub = eventlet.hubs.get_hub()
    if type(hub) is Hub:
        return hub.wait_until(descriptor, events, deadline)
    try:
        eventlet.hubs.trampoline(
            descriptor,
            read=events == READ,
            write=events == WRITE,
            timeout=None if deadline == math.inf else max(0.0, deadline - monotonic()),
            timeout_exc=_TimedOut,
        )
    except _TimedOut:
        return False
    return True


def forget(descriptor: int) -> None:
    """Take a descriptor that stays open out of the hub's epoll: somebody else watches it now."""
    hub = eventlet.hubs.get_hub()
    if type(hub) is Hub:
        with suppress(OSError):  # nobody has waited for it
            hub.poll.unregister(descriptor)


class _TimedOut(Exception):
    pass
