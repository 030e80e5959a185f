"""The event loop: callbacks for sockets that are ready, flushes once per turn, periodic sweeps.

The process has one `Loop`, `event_loop`, which owns the descriptors of all WebSockets.

*Ready.* All sockets are in one epoll (`epoll`), and eventlet's hub watches only that, so that an
idle connection costs the hub nothing. A socket that is ready gets `on_readable` or `on_writable`.

*Flush.* A socket with something to send asks for `flush_soon` and gets one `flush`, however much it
has gathered until then, in the order in which the sockets asked. A turn does not flush them all: a
third of the time is for flushes while any are due, and the rest for everything else. So a request
is answered in the middle of a broadcast, and the more there is to do, the more frames leave in one
`send`.

*Sweep.* Whatever is due again and again is a callback of `every`, so that there is no timer for
each connection.

*Faults.* An exception in a socket's callback aborts that connection only. An exception in the loop
itself would leave every connection silent, so the process ends (`EXIT_CODE`), and clients connect
to another.

The functions at the end (`spawn`, `sleep`, `pause`, `wait_readable`, `Signal`) are what the rest of
the package uses of eventlet.
"""

import logging
import math
import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

import eventlet
import eventlet.hubs
import eventlet.semaphore
import greenlet

from ordertrack import eventlet_hub
from ordertrack.eventlet_hub import wait_until
from ordertrack.server import epoll

log = logging.getLogger(__name__)
monotonic = time.monotonic

T = TypeVar("T")

# The process's exit status when its loop is broken: EX_SOFTWARE, as when its relay is.
EXIT_CODE: Final = 70

# What a callback may raise; eventlet's timeouts are no `Exception`.
FAILURES: Final[tuple[type[BaseException], ...]] = (Exception, eventlet.Timeout)

# While flushes are due, those of a turn may take this part of the time that everything else took
# since the last ones, within these bounds in seconds; it is checked after `FLUSH_STEP` sockets.
FLUSH_SHARE: Final = 0.5
SHORTEST_FLUSH: Final = 0.0002
LONGEST_FLUSH: Final = 0.005
FLUSH_STEP: Final = 32

# Connections closed in a row before others run: some 2 ms of work.
CLOSE_CHUNK: Final = 256


class Socket(Protocol):
    """A connection whose descriptor the loop watches."""

    @property
    def descriptor(self) -> int: ...
    def on_readable(self) -> None: ...
    def on_writable(self) -> None: ...
    def flush(self) -> None: ...
    def abort(self) -> None: ...


@dataclass(slots=True)
class _Sweep:
    """A periodic callback; `due` is the monotonic time of its next run."""

    period: float
    callback: Callable[[float], None]
    due: float = 0.0


class Loop:
    """The process's sockets: one epoll beneath eventlet's hub, one flush queue, periodic sweeps."""

    def __init__(self) -> None:
        self.buffer = bytearray(65_536)  # every socket is read into it: one read is handled at once
        self.view = memoryview(self.buffer)
        self.sockets: dict[int, Socket] = {}  # by descriptor
        self.dirty: deque[Socket] = deque()  # to be flushed
        self.answering: deque[Socket] = deque()  # to be flushed before those
        self.sweeps: list[_Sweep] = []
        self._flushing = False  # a flush is scheduled
        self._flushed_at = 0.0  # when the last one ended, or the first socket asked
        self._poller: epoll.Poller | None = None
        self._hub: Any = None
        self.exit: Callable[[int], None] = os._exit

    def start(self) -> None:
        """Attach to eventlet's hub. The first connection does that; later calls do nothing."""
        if self._poller is not None:
            return
        self._hub = eventlet.hubs.get_hub()
        self._poller = epoll.make_poller(self._on_ready, self.exit_broken)
        spawn(self._sweep_forever)

    # Faults ---------------------------------------------------------------------------------------

    def abort_failed(self, ws: Socket, error: Exception) -> None:
        """An exception came out of a connection's callback: end this connection only."""
        log.error("A connection failed", exc_info=error)
        try:
            ws.abort()
        except Exception as another:  # noqa: BLE001 (handed on)
            self.exit_broken(another)  # the connection would stay, and fail for ever

    def guard(self, ws: Socket, callback: Callable[..., object], *args: Any) -> None:
        """Call ``callback(*args)`` for `ws`; an exception ends that connection only."""
        try:
            callback(*args)
        except Exception as error:  # noqa: BLE001 (logged there)
            self.abort_failed(ws, error)

    def exit_broken(self, error: Exception | None) -> None:
        """End the process: no connection would be served any more, and no client could tell."""
        log.critical("The sockets' event loop is broken", exc_info=error)
        self.exit(EXIT_CODE)

    # Descriptors ----------------------------------------------------------------------------------

    def add(self, ws: Socket) -> None:
        assert self._poller is not None, "start first"
        self._poller.watch(ws.descriptor, read=True, write=False)
        self.sockets[ws.descriptor] = ws

    def watch(self, ws: Socket, *, read: bool, write: bool) -> None:
        """From now on call `ws` when it can be read, written, both or neither."""
        if self._poller is not None:
            self._poller.watch(ws.descriptor, read=read, write=write)

    def forget(self, ws: Socket) -> None:
        """To be called before the descriptor is closed."""
        if self.sockets.pop(ws.descriptor, None) is not None and self._poller is not None:
            self._poller.forget(ws.descriptor)

    def _on_ready(self, descriptor: int, readable: bool, writable: bool) -> None:
        """Called by the poller for one of our sockets; neither flag means that it is broken."""
        ws = self.sockets.get(descriptor)
        if ws is None:
            return
        try:
            if writable:
                ws.on_writable()
            if readable:
                ws.on_readable()
            elif not writable:
                ws.abort()
        except Exception as error:  # noqa: BLE001 (logged there)
            self.abort_failed(ws, error)

    # Flushing -------------------------------------------------------------------------------------

    def flush_soon(self, ws: Socket) -> None:
        self.dirty.append(ws)
        if not self._flushing:
            self._begin_flushing()

    def flush_first(self, ws: Socket) -> None:
        """As `flush_soon`, but in the next turn whatever waits: for an answer to one client."""
        self.answering.append(ws)
        if not self._flushing:
            self._begin_flushing()

    def _begin_flushing(self) -> None:
        self._flushing = True
        self._flushed_at = monotonic()
        self._hub.schedule_call_global(0, self._flush)

    def _flush(self) -> None:
        dirty = self.dirty
        now = monotonic()
        share = (now - self._flushed_at) * FLUSH_SHARE
        end = now + min(max(share, SHORTEST_FLUSH), LONGEST_FLUSH)
        try:
            self._flush_some(self.answering, len(self.answering))
            while dirty and now < end:
                self._flush_some(dirty, min(len(dirty), FLUSH_STEP))
                now = monotonic()
        finally:  # else nothing would ever be flushed again
            if dirty or self.answering:
                self._flushed_at = now
                self._hub.schedule_call_global(0, self._flush)
            else:
                self._flushing = False

    def _flush_some(self, sockets: deque[Socket], count: int) -> None:
        for _ in range(count):
            ws = sockets.popleft()
            try:
                ws.flush()
            except Exception as error:  # noqa: BLE001 (logged there)
                self.abort_failed(ws, error)

    # Sweeps ---------------------------------------------------------------------------------------

    def _sweep_forever(self) -> None:
        try:
            while True:
                sleep(min(sweep.period for sweep in self.sweeps))
                if self._poller is not None and not self._poller.is_attached():
                    self.exit_broken(None)
                self._sweep(monotonic())
        except Exception as error:  # noqa: BLE001 (handed on)
            self.exit_broken(error)  # no deadline would be kept any more

    def _sweep(self, now: float) -> None:
        for sweep in list(self.sweeps):
            if sweep.due > now:
                continue
            sweep.due = now + sweep.period
            try:
                sweep.callback(now)
            except Exception:  # the next one may well succeed, and must run
                log.exception("A sweep failed")


event_loop = Loop()


def every(period: float, callback: Callable[[float], None]) -> None:
    """Call ``callback(monotonic time)`` about every `period` seconds, from the first connection on.

    It may `pause`, and must not wait for anything.
    """
    event_loop.sweeps.append(_Sweep(period, callback))


def every_second(callback: Callable[[float], None]) -> None:
    every(1.0, callback)


def spread(leaving: list[T], seconds: float) -> Iterator[T]:
    """Each of `leaving` in random order, evenly spread over `seconds`.

    Clients that are closed at this pace do not all reconnect at once, nor always in one order.
    """
    random.shuffle(leaving)
    began = monotonic()
    for number, one in enumerate(leaving):
        due = began + seconds * number / len(leaving)
        if due > monotonic():
            sleep(due - monotonic())
        elif number % CLOSE_CHUNK == 0:
            pause()
        yield one


# What the rest of the package uses of eventlet ----------------------------------------------------


# Greenlets that wait for their next function, of this hub. Making one, with the stacks that it
# needs, takes five microseconds more.
_idle: list[Any] = []
MAX_IDLE: Final = 128


def spawn(function: Callable[..., object], *args: Any) -> None:
    """Run ``function(*args)`` in a greenlet, in the loop's next turn; an exception is logged."""
    hub = eventlet.hubs.get_hub()
    if _idle and _idle[-1].parent is hub.greenlet:
        worker = _idle.pop()
    else:
        worker = greenlet.greenlet(_run_each, hub.greenlet)
    hub.schedule_call_global(0, worker.switch, [function, args])


def _run_each(job: list[Any]) -> None:
    """A greenlet that runs one function after the other. It empties *job*, which outlives it."""
    this = greenlet.getcurrent()
    hub = eventlet.hubs.get_hub()
    while True:
        function, args = job
        job.clear()
        try:
            function(*args)
        except FAILURES:  # no caller is left to handle it
            log.exception("A background task failed")
        if len(_idle) >= MAX_IDLE:
            return
        del function, args  # else they would be kept until the next job
        this.gr_context = None  # the next one begins without the context variables of this one
        _idle.append(this)
        job = hub.switch()


def sleep(seconds: float) -> None:
    eventlet.sleep(seconds)


def pause() -> None:
    """Let everything else that is ready run: for loops that take long."""
    eventlet.sleep(0)


def wait_readable(descriptor: Any, timeout: float | None = None) -> bool:
    """Wait until a descriptor (or object with `fileno`) can be read; False after `timeout` seconds.

    Raises `OSError` when the descriptor is closed meanwhile. Rarely there is nothing to read after
    all, so the read must not block.
    """
    return wait_until(
        descriptor if isinstance(descriptor, int) else descriptor.fileno(),
        eventlet_hub.READ,
        math.inf if timeout is None else monotonic() + timeout,
    )


class Signal:
    """A wake-up that is remembered once: set twice before a `wait`, it wakes one `wait`."""

    def __init__(self) -> None:
        self._wakeups = eventlet.semaphore.Semaphore(0)

    @property
    def is_set(self) -> bool:
        """Whether the next `wait` would return at once."""
        return bool(self._wakeups.counter > 0)

    def set(self) -> None:
        if self._wakeups.counter < 1:
            self._wakeups.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the next `set`, or consume one from before; False after `timeout` seconds."""
        if timeout is not None and timeout <= 0:
            return bool(self._wakeups.acquire(blocking=False))
        return bool(self._wakeups.acquire(timeout=timeout))
