"""Listens, accepts connections, and stops in order: `serve` runs the process's HTTP server."""

import _socket  # its sockets lack what socket.socket adds for files and contexts, and are smaller
import errno
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final
from wsgiref.types import WSGIApplication

import eventlet
import eventlet.green.socket
import eventlet.hubs

from ordertrack.server.admission import admission
from ordertrack.server.counters import counters
from ordertrack.server.http_connection import Connection
from ordertrack.server.http_request import Environ
from ordertrack.server.loop import pause, sleep, spawn, wait_readable
from ordertrack.server.waiting_connections import MAX_PER_ADDRESS, WaitingConnections

log = logging.getLogger(__name__)

# Connections that the kernel accepts while we are busy: a thousand clients may reconnect at once.
BACKLOG: Final = 4096

# Errors of `accept` that concern one connection only: it was closed already, or is forbidden.
_CONNECTION_ERRORS: Final = frozenset(
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

# Errors of `accept` that pass when other connections end.
_SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

# The wait before the next try, and the time between two log lines about it.
SHORTAGE_SECONDS: Final = 0.1
SHORTAGE_LINE_SECONDS: Final = 60.0

# Turns of the loop in which an evicted connection ends; it usually takes one.
TURNS_TO_CLOSE: Final = 4

# What the kernel keeps for one client. Without a bound it grows to megabytes: a slow client reads
# a response of that size for longer than we wait for any sign that it reads, and a WebSocket's
# client that has stopped reading looks healthy for minutes.
SEND_BUFFER: Final = 65_536


def bind(host: str, port: int) -> list[Any]:
    """Sockets on every address that `host` stands for (localhost: IPv4 and IPv6).

    Clients are refused until `Server.start` listens on them. With port 0, all have the same free
    port. Raises `OSError` when none could be opened, as when another process listens there.
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


def accept(opened: Any) -> tuple[_socket.socket, Any]:
    """The next connection's socket, non-blocking, and its address. Does not wait either."""
    listening: socket.socket = opened.fd
    descriptor, address = listening._accept()  # type: ignore[attr-defined]
    eventlet.hubs.notify_opened(descriptor)
    # As `socket.accept`, which looks up the family and the kind in enumerations each time.
    client = _socket.socket(
        _socket.socket.family.__get__(listening), socket.SOCK_STREAM, 0, descriptor
    )
    client.setblocking(False)
    return client, address


class Server:
    """A WSGI application on bound sockets, from `start` to `stop`.

    *capacity* connections may be open, WebSockets included. At that limit the one that has waited
    longest for its client is evicted for a new one; if none waits, the new one has to.
    *per_address* bounds the waiting connections of one address (None: no bound, for use behind a
    proxy). *on_failure* is called when no connection can be accepted any more.
    """

    def __init__(
        self,
        app: WSGIApplication,
        bound: list[Any],
        *,
        capacity: int = 1024,
        max_body_bytes: int = 65_536,
        per_address: int | None = MAX_PER_ADDRESS,
        on_failure: Callable[[str], object] = lambda _reason: None,
    ) -> None:
        self.app = app
        self.stopping = False
        self.max_body_bytes = max_body_bytes
        self.waiting: WaitingConnections[Connection] = WaitingConnections(per_address=per_address)
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
        self._capacity = capacity
        self._on_failure = on_failure
        self._accepting: list[Any] = []
        self._shortage_logged = -SHORTAGE_LINE_SECONDS

    @property
    def port(self) -> int:
        return int(self.environ["SERVER_PORT"])

    def start(self) -> None:
        """Begin to accept; returns at once. Raises `OSError` if the port has been taken since."""
        for opened in self._bound:
            opened.listen(BACKLOG)
            opened.setblocking(False)
        self._accepting = [eventlet.spawn(self._accept, opened) for opened in self._bound]

    def _accept(self, opened: Any) -> None:
        try:
            self._accept_forever(opened)
        except Exception:  # a server that accepts nothing must not look alive
            if not self.stopping:
                log.critical("Connections cannot be accepted any more", exc_info=True)
                self._on_failure("connections cannot be accepted")

    def _accept_forever(self, opened: Any) -> None:
        accepted = 0
        while True:
            while len(self.connections) + counters.open >= self._capacity:
                self._evict(f"{self._capacity} are open")
            try:
                client, address = accept(opened)
            except BlockingIOError:
                wait_readable(opened)
                continue
            except OSError as error:
                if error.errno in _SHORTAGES:
                    self._evict(f"{error.strerror}")
                elif error.errno in _CONNECTION_ERRORS:
                    pause()
                else:
                    raise
                continue
            connection = Connection(self, client, address)
            self.connections.add(connection)
            spawn(connection.serve)
            accepted += 1
            if accepted % 64 == 0:  # a burst of connections must not block the loop
                pause()

    def _evict(self, reason: str) -> None:
        """Evict a connection and let it close; if there is none to evict, wait for others to end.

        The first is the one that has waited longest for its client, then one that has not
        authenticated (`admission`).
        """
        now = time.monotonic()
        if now - self._shortage_logged >= SHORTAGE_LINE_SECONDS:
            self._shortage_logged = now
            log.warning("No more connections can be taken now: %s", reason)
        oldest = self.waiting.evict_oldest()
        if oldest is None and not admission.evict(websocket=False):
            sleep(SHORTAGE_SECONDS)
            return
        for _ in range(TURNS_TO_CLOSE):
            if oldest is not None and oldest not in self.connections:
                break
            pause()

    def ended(self, connection: Connection) -> None:
        """A connection is closed, or has become a WebSocket."""
        self.connections.discard(connection)

    def stop(self) -> None:
        """Close the listening sockets and idle connections; requests in flight go on.

        Their responses say that the connection is closed afterwards.
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
        """Wait until every request in flight has been answered; False if *seconds* were too few."""
        end = time.monotonic() + seconds
        while self.connections and time.monotonic() < end:
            sleep(0.01)
        return not self.connections


class StopRequest:
    """The request to stop: SIGTERM, SIGINT, or a failure of a part that the process needs.

    A signal's handler interrupts any code between two instructions, so it only stores the reason;
    the interpreter itself writes a byte to a pipe, which wakes the greenlet in `wait`.
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
        """Stop, and let the process exit with status 1: its supervisor starts it again."""
        self.failed = True
        self._reason = self._reason or reason
        os.write(self._writing, b"!")

    def wait(self) -> str:
        """Wait for the request; returns its reason."""
        while self._reason is None:
            wait_readable(self._reading)
            with suppress(BlockingIOError):
                os.read(self._reading, 64)
        return self._reason


def serve(
    app: WSGIApplication,
    bound: list[Any],
    *,
    capacity: int = 1024,
    max_body_bytes: int = 65_536,
    per_address: int | None = MAX_PER_ADDRESS,
    drain_seconds: float = 8.0,
    ready: Callable[[int], object] = lambda _port: None,
    drain: Callable[[float], object] = lambda _seconds: None,
) -> None:
    """Serve until SIGTERM, SIGINT or a failure to accept; then stop within `drain_seconds`.

    *capacity*, *max_body_bytes* and *per_address* are the `Server`'s. `ready` is called with the
    port once connections are accepted. At the end no new connection is accepted, `drain` is called
    with the seconds over which it may spread the closing of WebSockets, and requests in flight are
    finished. Raises `OSError` when the port has been taken since it was bound, and `SystemExit`
    with 1 when connections could not be accepted any more.
    """
    stop_request = StopRequest()
    server = Server(
        app,
        bound,
        capacity=capacity,
        max_body_bytes=max_body_bytes,
        per_address=per_address,
        on_failure=stop_request.fail,
    )
    stop_request.catch_signals()
    # Objects made so far live as long as the process. Unfrozen, each full collection would visit
    # them again and block the loop for some 60 ms.
    gc.collect()
    gc.freeze()
    server.start()
    ready(server.port)
    reason = stop_request.wait()
    log.info("%s: stopping within %g seconds", reason, drain_seconds)
    began = time.monotonic()
    server.stop()
    # Half of the time, so that the last WebSocket has time for its closing handshake.
    draining = eventlet.spawn(drain, drain_seconds / 2)
    in_time = server.finish(drain_seconds)
    with eventlet.Timeout(max(0.0, began + drain_seconds - time.monotonic()), False):
        draining.wait()
    log.info("Stopped" if in_time else "Stopped with requests in flight")
    if stop_request.failed:
        raise SystemExit(1)
