"""Listening, accepting, and ending in order. Of this package the one module that knows eventlet."""

import errno
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import eventlet
import eventlet.green.socket
from eventlet.hubs import trampoline

from ordertrack.server import websocket
from ordertrack.server.counters import counters
from ordertrack.server.http_connection import Connection
from ordertrack.server.http_request import Environ
from ordertrack.server.http_response import Wsgi
from ordertrack.server.waiting import MAX_PER_ADDRESS, Waiting

log = logging.getLogger(__name__)

# Connections that the kernel accepts while we are busy: a thousand clients may come back at once.
BACKLOG: Final = 4096

# Errors of `accept` that are about the one connection: it was gone already, or may not be taken.
_CLIENTS_FAULT: Final = frozenset(
    {
        errno.ECONNABORTED,
        errno.EPROTO,
        errno.ENETDOWN,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.EPERM,
        errno.ETIMEDOUT,
    }
)

# … that will pass.
_SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

# How long to let others go on before the next try, and how often to say that it is so.
SHORTAGE_SECONDS: Final = 0.1
SHORTAGE_LINE_SECONDS: Final = 60.0

# Turns of the loop in which a connection that was hung up on ends; one is the rule.
TURNS_TO_END: Final = 4

# What the kernel keeps of an answer for one client. Left to itself it grows to megabytes, which
# take a slow client longer than we would wait to see that it reads at all.
SEND_BUFFER: Final = 65_536


def bind(host: str, port: int) -> list[Any]:
    """Sockets on every address that `host` stands for (localhost: IPv4 and IPv6).

    Clients are refused until `Server.start` listens on them. With port 0, all have the same free
    port. Raises `OSError` when none could be opened, as when somebody listens there.
    """
    listening: list[Any] = []
    failure: OSError | None = None
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, kind, protocol, _, address in dict.fromkeys(found):
        opened = eventlet.green.socket.socket(family, kind, protocol)
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6 and len(found) > 1:
                opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # Accepted sockets inherit it: small frames must not wait for the peer's ACK.
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            same_port = listening[0].getsockname()[1] if listening else address[1]
            opened.bind((address[0], same_port, *address[2:]))
        except OSError as error:
            opened.close()
            failure = failure or error
        else:
            listening.append(opened)
    if not listening:
        raise failure or OSError(f"{host} has no address")
    return listening


class Server:
    """A WSGI application on bound sockets, from `start` to `stop`.

    *most* connections may be open, WebSockets included: then those that wait for their client
    longest are given up for new ones, and where none waits, new ones wait. *per_address* bounds
    the waiting ones of one address (None: not at all, for behind a proxy). *on_failure* is called
    when nothing can be accepted any more.
    """

    def __init__(
        self,
        app: Wsgi,
        bound: list[Any],
        *,
        most: int = 1024,
        max_body_bytes: int = 65_536,
        per_address: int | None = MAX_PER_ADDRESS,
        on_failure: Callable[[str], object] = lambda _reason: None,
    ) -> None:
        self.app = app
        self.stopping = False
        self.max_body_bytes = max_body_bytes
        self.waiting: Waiting[Connection] = Waiting(per_address=per_address)
        self.connections: set[Connection] = set()
        name, port = bound[0].getsockname()[:2]
        self.environ: Environ = {
            "SCRIPT_NAME": "",
            "SERVER_NAME": name,
            "SERVER_PORT": str(port),
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
            "wsgi.input_terminated": True,
        }
        self._bound = bound
        self._most = most
        self._on_failure = on_failure
        self._accepting: list[Any] = []
        self._shortage_told = -SHORTAGE_LINE_SECONDS

    @property
    def port(self) -> int:
        return int(self.environ["SERVER_PORT"])

    def start(self) -> None:
        """Begin to accept; returns at once. Raises `OSError` if the port has been taken since."""
        for opened in self._bound:
            opened.listen(BACKLOG)
        self._accepting = [eventlet.spawn(self._accept, opened) for opened in self._bound]

    def _accept(self, opened: Any) -> None:
        try:
            self._accept_forever(opened)
        except Exception:  # whatever it was, a server that accepts nothing must not look alive
            if not self.stopping:
                log.critical("Connections cannot be accepted any more", exc_info=True)
                self._on_failure("connections cannot be accepted")

    def _accept_forever(self, opened: Any) -> None:
        accepted = 0
        while True:
            self._make_room()
            try:
                client, address = opened.accept()
            except OSError as error:
                if error.errno in _SHORTAGES:
                    self._make_do(f"{error.strerror}")
                elif error.errno in _CLIENTS_FAULT:
                    eventlet.sleep(0)
                else:
                    raise
                continue
            connection = Connection(self, client, address)
            self.connections.add(connection)
            eventlet.spawn_n(connection.serve)
            accepted += 1
            if accepted % 64 == 0:  # a storm of connections leaves the others their turn
                eventlet.sleep(0)

    def _make_room(self) -> None:
        """Wait until there may be another connection."""
        while len(self.connections) + counters.open >= self._most:
            self._make_do(f"{self._most} are open")

    def _make_do(self, reason: str) -> None:
        """Hang up on who has waited longest, and let it end; or wait for others to end.

        Where none waits, requests that never joined may hold what there is: `transport.make_room`.
        """
        now = time.monotonic()
        if now - self._shortage_told >= SHORTAGE_LINE_SECONDS:
            self._shortage_told = now
            log.warning("No more connections can be taken now: %s", reason)
        oldest = self.waiting.give_up_oldest()
        if oldest is None and not websocket.make_room(socket=False):
            eventlet.sleep(SHORTAGE_SECONDS)
            return
        for _ in range(TURNS_TO_END):
            if oldest is not None and oldest not in self.connections:
                break
            eventlet.sleep(0)

    def pause(self) -> None:
        """Let everything else that is ready have its turn."""
        eventlet.sleep(0)

    def ended(self, connection: Connection) -> None:
        """A connection is closed, or has become a WebSocket."""
        self.connections.discard(connection)

    def stop(self) -> None:
        """Close the listening sockets and idle connections; requests in flight go on.

        Their answers say that the connection is closed afterwards.
        """
        self.stopping = True
        for accepting in self._accepting:
            accepting.kill()
        for opened in self._bound:
            opened.close()
        for connection in self.waiting:
            if connection.idle:
                connection.hang_up()

    def finish(self, seconds: float) -> bool:
        """Wait until every request in flight has been answered; False if some were not in time."""
        end = time.monotonic() + seconds
        while self.connections and time.monotonic() < end:
            eventlet.sleep(0.01)
        return not self.connections


class Stopping:
    """The order to stop: from SIGTERM, SIGINT, or a part of the process that cannot go on.

    A signal's handler runs between two instructions of whatever runs then, so it only takes a note;
    the interpreter itself writes a byte to a pipe that the event loop watches, which wakes it.
    """

    def __init__(self) -> None:
        self.failed = False
        self._reason: str | None = None
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._reading, False)
        os.set_blocking(self._writing, False)

    def catch_signals(self) -> None:
        signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: object) -> None:
        self._reason = self._reason or signal.Signals(number).name

    def fail(self, reason: str) -> None:
        """Stop, and let the process end with an error: better gone than half there."""
        self.failed = True
        self._reason = self._reason or reason
        os.write(self._writing, b"!")

    def wait(self) -> str:
        """Wait for the order; answers why it was given."""
        while self._reason is None:
            trampoline(self._reading, read=True)
            os.read(self._reading, 64)
        return self._reason


def serve(
    app: Wsgi,
    bound: list[Any],
    *,
    most: int = 1024,
    max_body_bytes: int = 65_536,
    per_address: int | None = MAX_PER_ADDRESS,
    drain_seconds: float = 8.0,
    stopping: Stopping | None = None,
    ready: Callable[[int], object] = lambda _port: None,
    drain: Callable[[float], object] = lambda _seconds: None,
) -> None:
    """Serve until SIGTERM, SIGINT or `stopping.fail`, then end in order within `drain_seconds`.

    *most*, *max_body_bytes* and *per_address* are the `Server`'s. `ready` is told the port once
    connections are accepted. At the end nothing new is accepted, `drain` is called with the seconds
    over which it may spread the closing of live connections, and requests in flight are finished.
    Raises `OSError` when the port has been taken since it was bound, and `SystemExit` with 1 after
    `stopping.fail`.
    """
    stopping = stopping or Stopping()
    server = Server(
        app,
        bound,
        most=most,
        max_body_bytes=max_body_bytes,
        per_address=per_address,
        on_failure=stopping.fail,
    )
    stopping.catch_signals()
    # What was made so far stays for good: the collector need not look at it again, which would stop
    # every socket for some 60 ms each time.
    gc.collect()
    gc.freeze()
    server.start()
    ready(server.port)
    reason = stopping.wait()
    log.info("%s: stopping within %g seconds", reason, drain_seconds)
    began = time.monotonic()
    server.stop()
    # Half of the time to tell the sockets, so that the last of them can still say goodbye.
    draining = eventlet.spawn(drain, drain_seconds / 2)
    in_time = server.finish(drain_seconds)
    with eventlet.Timeout(max(0.0, began + drain_seconds - time.monotonic()), False):
        draining.wait()
    log.info("Stopped" if in_time else "Stopped with requests in flight")
    if stopping.failed:
        raise SystemExit(1)
