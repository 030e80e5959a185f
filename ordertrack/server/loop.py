"""The event loop's sockets: callbacks when one is ready, one flush per turn, one sweep per second.

All sockets of the process live in one epoll of our own (`epoll`), and only that epoll is known to
eventlet's hub, as one descriptor to watch: a thousand idle connections cost the hub nothing. What
the rest of the server asks of eventlet is at the end: `spawn`, `sleep`, `pause`, `wait_readable`
and `Signal`.
"""

import errno
import logging
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

from ordertrack.server import epoll
from ordertrack.server.heartbeat import Deadlines, take_due

log = logging.getLogger(__name__)
monotonic = time.monotonic

T = TypeVar("T")

# With which the process ends when its loop is broken: EX_SOFTWARE, as when its relay is.
EXIT_CODE: Final = 70

# Recipients served in one turn of the loop: some 2 ms of work, after which others have their turn.
FLUSH_CHUNK: Final = 256


class Socket(Protocol):
    """A connection whose descriptor the loop watches."""

    @property
    def descriptor(self) -> int: ...
    def on_readable(self) -> None: ...
    def on_writable(self) -> None: ...
    def flush(self) -> None: ...
    def abort(self) -> None: ...
    def expire(self) -> None: ...
    def check_pace(self, now: float) -> None: ...


@dataclass(slots=True)
class _Sweep:
    """What is to be done again and again; `due` is when next."""

    period: float
    callback: Callable[[float], None]
    due: float = 0.0


class Loop:
    """The process's sockets: one epoll beneath eventlet's hub, one queue to flush, one sweep."""

    def __init__(self) -> None:
        self.buffer = bytearray(65_536)
        self.view = memoryview(self.buffer)
        self.sockets: dict[int, Socket] = {}
        self.dirty: deque[Socket] = deque()
        self.stalled: set[Socket] = set()
        self.closing: Deadlines[Socket] = deque()
        self.sweeps: list[_Sweep] = []
        self.room_makers: list[Callable[[bool], bool]] = []
        self.draining = False
        self._flushing = False
        self._readiness: epoll.Readiness | None = None
        self._hub: Any = None
        self.on_broken: Callable[[int], None] = os._exit

    def start(self) -> None:
        """Attach to the hub, once."""
        if self._readiness is not None:
            return
        self._hub = eventlet.hubs.get_hub()
        self._readiness = epoll.best(self._on_ready, self.broken)
        spawn(self._sweep_forever)

    # Faults ---------------------------------------------------------------------------------------

    def failed(self, ws: Socket, error: Exception) -> None:
        """An exception came out of one connection: end it, and nobody else."""
        log.error("A connection failed", exc_info=error)
        try:
            ws.abort()
        except Exception as another:  # noqa: BLE001 (handed on)
            self.broken(another)  # it would stay, and fail for ever

    def broken(self, error: Exception | None) -> None:
        """Nobody is told anything any more: end the process, so that clients turn to another."""
        log.critical("The sockets' event loop is broken", exc_info=error)
        self.on_broken(EXIT_CODE)

    # Descriptors ----------------------------------------------------------------------------------

    def add(self, ws: Socket) -> None:
        assert self._readiness is not None, "start first"
        self._readiness.watch(ws.descriptor, read=True, write=False)
        self.sockets[ws.descriptor] = ws

    def watch(self, ws: Socket, *, read: bool, write: bool) -> None:
        """Wait for just that from now on."""
        if self._readiness is not None:
            self._readiness.watch(ws.descriptor, read=read, write=write)

    def forget(self, ws: Socket) -> None:
        self.stalled.discard(ws)
        if self.sockets.pop(ws.descriptor, None) is not None and self._readiness is not None:
            self._readiness.forget(ws.descriptor)

    def _on_ready(self, descriptor: int, readable: bool, writable: bool) -> None:
        """Called by the hub for one of our sockets."""
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
            self.failed(ws, error)

    # Flushing -------------------------------------------------------------------------------------

    def flush_soon(self, ws: Socket) -> None:
        self.dirty.append(ws)
        if not self._flushing:
            self._flushing = True
            self._hub.schedule_call_global(0, self._flush)

    def _flush(self) -> None:
        dirty = self.dirty
        try:
            for _ in range(min(len(dirty), FLUSH_CHUNK)):
                ws = dirty.popleft()
                try:
                    ws.flush()
                except Exception as error:  # noqa: BLE001 (logged there)
                    self.failed(ws, error)
        finally:  # else nothing would ever be flushed again
            if dirty:
                self._hub.schedule_call_global(0, self._flush)
            else:
                self._flushing = False

    # Time -----------------------------------------------------------------------------------------

    def _sweep_forever(self) -> None:
        try:
            while True:
                sleep(min(sweep.period for sweep in self.sweeps))
                if self._readiness is not None and not self._readiness.is_attached():
                    self.broken(None)
                self._sweep(monotonic())
        except Exception as error:  # noqa: BLE001 (handed on)
            self.broken(error)  # no deadline would be kept any more

    def _sweep(self, now: float) -> None:
        for sweep in list(self.sweeps):
            if sweep.due > now:
                continue
            sweep.due = now + sweep.period
            try:
                sweep.callback(now)
            except Exception:  # the next one may well succeed, and must run
                log.exception("A sweep failed")

    def close_late(self, now: float) -> None:
        for ws in take_due(self.closing, now, pause):
            try:
                ws.expire()
            except Exception as error:  # noqa: BLE001 (logged there)
                self.failed(ws, error)

    def close_slow(self, now: float) -> None:
        for ws in list(self.stalled):
            try:
                ws.check_pace(now)
            except Exception as error:  # noqa: BLE001 (logged there)
                self.failed(ws, error)


event_loop = Loop()


def start() -> None:
    """Attach to the event loop. Done by the first connection; again, it does nothing."""
    event_loop.start()


def one_by_one(leaving: list[T], seconds: float) -> Iterator[T]:
    """Each of `leaving`, in random order, evenly spread over `seconds`: those who come back do not
    all come at once, and not always the same ones first.
    """
    random.shuffle(leaving)
    began = monotonic()
    for number, one in enumerate(leaving):
        due = began + seconds * number / len(leaving)
        if due > monotonic():
            sleep(due - monotonic())
        elif number % FLUSH_CHUNK == 0:
            pause()
        yield one


# What the rest of the server needs of eventlet ---------------------------------------------------


def spawn(function: Callable[..., object], *args: Any) -> None:
    """Run ``function(*args)`` in a greenlet of its own; an exception is logged."""
    eventlet.spawn_n(_guarded, function, args)


def _guarded(function: Callable[..., object], args: tuple[Any, ...]) -> None:
    try:
        function(*args)
    except (Exception, eventlet.Timeout):  # nobody waits for it, so nobody else can tell
        log.exception("A background task failed")


def sleep(seconds: float) -> None:
    eventlet.sleep(seconds)


def pause() -> None:
    """Let everything else that is ready have its turn: for loops that run long."""
    eventlet.sleep(0)


def flush() -> None:
    """Wait until everything enqueued so far has been handed to the kernel or is backlogged."""
    while event_loop.dirty:
        pause()


def every(period: float, callback: Callable[[float], None]) -> None:
    """Call ``callback(monotonic time)`` about every `period` seconds, from the first connection on.

    It may `pause`, and must not wait for anything.
    """
    event_loop.sweeps.append(_Sweep(period, callback))


def every_second(callback: Callable[[float], None]) -> None:
    every(1.0, callback)


def wait_readable(descriptor: Any, timeout: float | None = None) -> bool:
    """Wait until a descriptor (or object with `fileno`) can be read; False after `timeout` seconds.

    Raises `OSError` when the descriptor is closed meanwhile.
    """
    try:
        eventlet.hubs.trampoline(descriptor, read=True, timeout=timeout, timeout_exc=_TimedOut)
    except _TimedOut:
        return False
    except eventlet.hubs.IOClosed as error:
        raise OSError(errno.EBADF, "closed while waiting") from error
    return True


class _TimedOut(Exception):
    pass


class Signal:
    """A wake-up that is remembered once: setting it twice before anybody waits wakes once."""

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
        """Wait for the next `set`, or take one that was not waited for; False after `timeout`."""
        if timeout is not None and timeout <= 0:
            return bool(self._wakeups.acquire(blocking=False))
        return bool(self._wakeups.acquire(timeout=timeout))
